"""Where a study's first trials come from, as a person sees it: `dialin run`, `status` and `show`."""

from __future__ import annotations

import json

import pytest
from studies import OBJECTIVES, TINY, Inside, assert_settled, trials

RUN = ("run", TINY, "--workers", 1, "--seed", 1, "--pruner", "none", "--epochs", 1)
OWN_LOOP = OBJECTIVES / "own_loop.py"


def origins(inside: Inside, study: str, *at: object) -> list[str]:
    """Of the study's first trials, as `status` has them."""
    told = json.loads(inside("status", study, "--json", *at).out)["first_trials"]
    assert [one["trial"] for one in told] == [*range(len(told))]
    return [one["origin"] for one in told]


def test_a_study_starts_with_what_won_the_one_before_it(inside: Inside, either_url: str) -> None:
    at = ("--storage", either_url)
    assert inside(*RUN, "--trials", 6, *at).status == 0
    assert all(origin.startswith("shipped: ") for origin in origins(inside, "tiny-1", *at))
    best = json.loads(inside("best", "tiny-1", "--format", "json", *at).out)[0]

    assert inside(*RUN, "--trials", 7, *at).status == 0
    assert origins(inside, "tiny-2", *at)[0] == "won study tiny-1"
    first = assert_settled(either_url, "tiny-2", 7)[0]
    assert first.user_attrs["origin"] == "won study tiny-1"
    assert first.user_attrs["settings"]["lr"] == pytest.approx(best["recipe"]["lr"])
    assert first.user_attrs["recipe"] == trials(either_url, "tiny-1")[best["trial"]].user_attrs["recipe"]
    assert first.user_attrs["model"] == best["model"]
    assert "first trials: 0: won study tiny-1; " in inside("status", "tiny-2", *at).out
    shown = inside("show", "tiny-2", 0, *at).out
    assert "from: won study tiny-1" in shown.splitlines()
    assert json.loads(inside("show", "tiny-2", 0, "--json", *at).out)["origin"] == "won study tiny-1"


def test_without_transfer_it_starts_with_the_defaults(inside: Inside, sqlite_url: str) -> None:
    at = ("--storage", sqlite_url)
    assert inside(*RUN, "--trials", 6, *at).status == 0
    assert inside(*RUN, "--trials", 4, "--no-transfer", *at).status == 0
    assert origins(inside, "tiny-2", *at) == ["default of momentum", "default of adam", "default of adamw"]
    said = inside("status", "tiny-2", *at).out
    assert "first trials: 0: default of momentum; 1: default of adam; 2: default of adamw" in said.splitlines()
    origin = assert_settled(sqlite_url, "tiny-2", 4)[3].user_attrs.get("origin", "")
    assert not origin.startswith(("default", "shipped", "won"))


def test_a_loop_of_ones_own_starts_with_them_where_it_asks_for_a_recipe(inside: Inside, sqlite_url: str) -> None:
    at = ("--storage", sqlite_url)
    said = inside("run", OWN_LOOP, "--workers", 1, "--seed", 1, "--trials", 2, "--no-transfer", *at)
    assert said.status == 0, said.err
    found = trials(sqlite_url, "own_loop-1")
    assert [trial.user_attrs["origin"] for trial in found] == ["default of momentum", "default of adam"]
    assert [trial.params["optimizer"] for trial in found] == ["momentum", "adam"]


def test_a_budget_smaller_than_the_portfolio_takes_the_first_of_it(inside: Inside, sqlite_url: str) -> None:
    at = ("--storage", sqlite_url)
    assert inside(*RUN, "--trials", 2, *at).status == 0
    assert len(origins(inside, "tiny-1", *at)) == 2
    assert_settled(sqlite_url, "tiny-1", 2)
