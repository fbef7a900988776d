"""`around(1e-3, factor=10)`: how a belief is written, what it leaves of a range, and that a study's draws follow it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from studies import TINY, Inside, assert_settled
from torch import nn

from search import Objective, ObjectiveError, around
from search.narrowing import NothingLeftError, beliefs, narrow
from search.space import recipe_knobs, starting_points
from search.wishes import from_json, parse_space, to_json


def objective(**knobs: Any) -> Objective:
    return Objective(model=lambda trial: nn.Linear(1, 1), data=lambda root: None, loss=nn.MSELoss(), knobs=knobs)  # type: ignore[arg-type,return-value]


class TestHowItIsWritten:
    def test_on_the_command_line_and_with_a_study(self) -> None:
        said = parse_space([], ["width=4:8"], ["lr=1e-3", "l2 = 1e-4:3"])
        assert said == {"width": (4, 8), "lr": around(1e-3, 10), "l2": around(1e-4, factor=3)}
        assert from_json(json.loads(json.dumps(to_json(said)))) == said

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (lambda: around(0), "center must be a number above 0, but got 0"),
            (lambda: around(1, factor=1), "factor must be a number above 1, but got 1"),
            (lambda: around(float("inf")), "center must be a number above 0, but got inf"),
            (lambda: parse_space([], [], ["lr=a"]), "lr=a is not VALUE or VALUE:FACTOR"),
            (lambda: parse_space([], [], ["lr=1:2:3"]), "lr=1:2:3 is not VALUE or VALUE:FACTOR"),
            (lambda: parse_space([], ["lr=1:2"], ["lr=1"]), "lr is given by --range and by --around: leave one out"),
            (lambda: objective(batch_size=around(32)), "batch_size cannot be around 32"),
            (lambda: objective(optimizer=around(1)), "optimizer cannot be around 1"),
            (lambda: objective(warmup=around(2.0)), "warmup must be at least 0 and at most 1, but got 2"),
        ],
    )
    def test_a_slip_is_told_with_what_was_meant(self, wrong: Callable[[], object], said: str) -> None:
        with pytest.raises(ObjectiveError) as raised:
            wrong()
        assert said in str(raised.value)


class TestWhatIsSearched:
    def test_two_factors_either_way_and_no_more_than_the_knobs_own_range(self) -> None:
        knobs = {"width": around(32, factor=2), "rate": around(0.1, factor=10)}
        assert narrow(knobs, "width", IntDistribution(1, 1000, log=True)) == IntDistribution(8, 128, log=True)
        assert narrow(knobs, "rate", FloatDistribution(0.0, 0.5)) == FloatDistribution(0.001, 0.5)
        with pytest.raises(NothingLeftError, match=r"it is 64 \.\. 1000"):
            narrow(knobs, "width", IntDistribution(64, 1000))
        with pytest.raises(ObjectiveError, match="not a range"):
            narrow(knobs, "width", CategoricalDistribution([16, 32]))

    def test_the_recipes_knobs_with_the_belief_as_their_default(self) -> None:
        made = objective(lr=around(1e-3), momentum=around(0.9, factor=2), warmup=around(0.05, factor=2))
        knobs = {knob.name: knob for knob in recipe_knobs(made)}
        assert knobs["lr"].distribution == FloatDistribution(1e-5, 1e-1, log=True)
        assert knobs["one_minus_momentum"].distribution == FloatDistribution(0.025, 0.4, log=True)
        assert knobs["one_minus_momentum"].default == pytest.approx(0.1)
        assert [point["lr"] for point in starting_points(made)] == [1e-3] * 3
        found = beliefs(made.knobs)
        assert found["one_minus_momentum"].center == pytest.approx(0.1)
        assert found["warmup"].factor == 2


class TestAStudy:
    def test_draws_near_it_what_is_on_record_in_real_values(self, inside: Inside, either_url: str) -> None:
        wishes = ("--around", "lr=1e-2:3", "--around", "width=6:1.2", "--fix", "optimizer=adam", "--fix", "warmup=0")
        run = ("run", TINY, "--trials", 30, "--workers", 1, "--sampler", "random", "--seed", 1, "--epochs", 1)
        said = inside(*run, *wishes, "--storage", either_url)
        assert said.status == 0, said.err
        found = assert_settled(either_url, "tiny-1", 30)[3:]
        rates = np.log([trial.params["lr"] / 1e-2 for trial in found]) / np.log(3)
        assert np.mean(np.abs(rates) < 1) > 0.8, "half of them, if all of the range were alike"
        assert np.abs(rates).max() <= 2
        assert all(trial.distributions["lr"] == FloatDistribution(1e-2 / 9, 9e-2, log=True) for trial in found)
        assert {trial.params["width"] for trial in found} <= {5, 6, 7, 8}
        assert "lr=around 0.01 (factor 3)" in inside("status", "--storage", either_url).out

    def test_in_a_bare_function_too(self, inside: Inside, sqlite_url: str, tmp_path: Any) -> None:
        (tmp_path / "mine.py").write_text(
            'def objective(trial):\n    return trial.suggest_float("x", 1e-6, 1, log=True)\n'
        )
        run = ("run", "mine.py:objective", "--trials", 30, "--workers", 1, "--sampler", "random", "--seed", 1)
        assert inside(*run, "--around", "x=1e-3", "--storage", sqlite_url).status == 0
        drawn = np.log10([trial.params["x"] for trial in assert_settled(sqlite_url, "mine-1", 30)])
        assert np.mean(np.abs(drawn + 3) < 1) > 0.8
