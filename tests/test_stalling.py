"""When nothing more is to be gained: the estimate is about right, and a study ends by it and says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState
from storage_places import optuna_study, worker_on
from studies import TINY_TEXT, Inside, assert_settled, trials

from storage import stalling, studies
from storage.claims import Settlement
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.studies import StudySpec

pytest_plugins = ["storage_fixtures"]

SPEC = StudySpec("digits", "0" * 64, "loss", "minimize", epochs=5, trials=60, seed=1, sampler="tpe", pruner="none")


@pytest.fixture
def storage(common_url: str, storage_test: None) -> SharedStorage:
    return worker_on(common_url)


@pytest.mark.parametrize("draw", ["exponential", "normal", "gumbel"])
def test_what_is_expected_is_about_what_comes_on_average_and_rather_more(draw: str) -> None:
    random, expected, came, chances, gains = np.random.default_rng(1), [], [], [], []
    for _ in range(400):
        values = getattr(random, draw)(size=60)
        best = float(values[:40].max())
        found = stalling.expected([float(value) for value in values[:40]], best, ahead=20)
        assert found is not None
        gain = max(0.0, float(values[40:].max()) - best)
        expected.append(found[0])
        chances.append(found[1])
        came.append(gain)
        gains.append(gain > 0)
    # A normal distribution has a shorter tail than an exponential one: 1.8 times what comes is expected of it.
    assert 0.75 < np.mean(expected) / np.mean(came) < 2.0
    assert np.mean(chances) == pytest.approx(np.mean(gains), abs=0.12)


def test_where_values_cannot_get_better_little_is_expected() -> None:
    random = np.random.default_rng(1)
    near_the_end = [float(one) for one in 1 - 1e-4 * random.random(40)]
    found = stalling.expected(near_the_end, max(near_the_end))
    assert found is not None
    assert found[0] < 1e-4
    assert stalling.expected([0.9] * 40, 0.9) == (0.0, 0.0)
    assert stalling.expected([0.9, 0.8] * 9, 0.9) is None, "too early"
    assert stalling.expected([0.9] * 7 + [None] * 30, 0.9) is None, "too few that were trained to their end"


def test_pruned_trials_make_a_gain_less_likely() -> None:
    values = [float(one) for one in np.random.default_rng(1).random(20)]
    alone, among = stalling.expected(values, max(values)), stalling.expected([*values, *[None] * 20], max(values))
    assert alone is not None
    assert among is not None
    assert 0 < among[0] < alone[0]


def test_a_study_is_closed_by_what_it_wants(storage: SharedStorage) -> None:
    record = studies.create(storage, SPEC, stem="stalls")
    study = optuna_study(storage, record)
    random = np.random.default_rng(1)
    for number in range(24):
        trial = study.ask()
        outcome = Outcome.PRUNED if number % 3 == 0 else Outcome.COMPLETE
        storage.settle(study, trial, Settlement(outcome), 0.1 + 0.01 * random.random())
    found = stalling.outlook(storage, record)
    assert found.gain is not None
    assert 0 < found.gain < 0.01
    assert not found.stalled
    assert stalling.close_if_stalled(storage, record) == ""
    storage.set_study_system_attr(record.study_id, stalling.KEY, found.gain / 2)
    assert stalling.close_if_stalled(storage, record) == ""
    storage.set_study_system_attr(record.study_id, stalling.KEY, 0.01)
    reason = stalling.close_if_stalled(storage, record)
    assert reason.startswith("20 more trials are likely to gain 0.00")
    assert reason.endswith("chance of any), less than 0.01")
    closed = studies.find(storage, record.name)
    assert (closed.trials, closed.reason) == (24, reason)


def test_a_search_ends_and_goes_on_when_it_is_told_to(inside: Inside, either_url: str) -> None:
    Path("mine.py").write_text(TINY_TEXT.replace("epochs=4,", "epochs=1,"))
    common = ("--workers", 1, "--storage", either_url)
    run = ("run", Path("mine.py"), "--pruner", "none", "--sampler", "random", "--seed", 1, "--trials", 60)
    said = inside(*run, "--min-gain", 5, *common)
    assert said.status == 0, said.err
    assert "20/20 trials" in said.out
    assert "finished: 20 more trials are likely to gain" in said.out
    assert "less than 5" in said.out
    assert "--trials +20 --min-gain 0" in said.out
    assert "outlook: 20 more trials are likely to gain" in inside("status", "--storage", either_url).out
    again = ("resume", "--objective", Path("mine.py"), "--trials", "+2", "--min-gain", 0)
    assert inside(*again, *common).status == 0
    assert_settled(either_url, "mine-1", 22)


def test_a_small_space_ends_when_it_is_searched_whole(inside: Inside, either_url: str) -> None:
    Path("small.py").write_text(
        'def objective(trial):\n    return trial.suggest_int("a", 0, 2) + trial.suggest_categorical("b", [0, 1])\n'
    )
    said = inside("run", "small.py:objective", "--trials", 30, "--workers", 2, "--seed", 1, "--storage", either_url)
    assert said.status == 0, said.err
    assert "finished: every recipe of the space is on record" in said.out
    found = trials(either_url, "small-1")
    recipes = [tuple(trial.params.items()) for trial in found if trial.state == TrialState.COMPLETE]
    assert {*recipes} == {(("a", a), ("b", b)) for a in range(3) for b in range(2)}
    assert max(Counter(recipes).values()) <= 2, "two workers of such a function may draw the same at once"
