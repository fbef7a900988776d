"""Two workers that draw the same recipe at the same moment: the second to write it notices, and nothing is written."""

from __future__ import annotations

import optuna
import pytest
from storage_places import make_study, optuna_study, worker_on

from storage.claims import DrawnMeanwhile
from storage.space_view import SpaceView

pytest_plugins = ["storage_fixtures"]


@pytest.mark.parametrize("claimed", ["before", "meanwhile"])
def test_the_second_of_two_that_draw_the_same_notices(common_url: str, storage_test: None, claimed: str) -> None:
    here, there = worker_on(common_url), worker_on(common_url)
    record = make_study(here)
    mine: optuna.Trial = optuna_study(here, record).ask()
    here.view = there.view = SpaceView()
    study = optuna_study(there, record)
    other: optuna.Trial | None = study.ask() if claimed == "before" else None

    def drawn(value: int, kind: str) -> None:
        nonlocal other
        with here.sampling(mine, once=True):
            here.get_all_trials(record.study_id)  # what it is drawn from
            mine.suggest_int("width", value, value)
            mine.suggest_categorical("kind", [kind])
            other = other or study.ask()
            with there.sampling(other):
                other.suggest_int("width", 4, 4)
                other.suggest_categorical("kind", ["a"])

    with pytest.raises(DrawnMeanwhile):
        drawn(4, "a")
    assert optuna_study(there, record).trials[mine.number].params == {}
    assert other is not None
    assert optuna_study(here, record).trials[other.number].params == {"width": 4, "kind": "a"}


def test_another_recipe_or_one_that_may_have_no_twin_is_written(common_url: str, storage_test: None) -> None:
    here, there = worker_on(common_url), worker_on(common_url)
    record = make_study(here)
    here.view = there.view = SpaceView()
    trials = [optuna_study(here, record).ask() for _ in range(3)]
    for trial, kind, once in zip(trials, "aba", (True, True, False), strict=True):
        with here.sampling(trial, once):
            here.get_all_trials(record.study_id)
            trial.suggest_categorical("kind", [kind])
    found = optuna_study(there, record).trials
    assert [trial.params["kind"] for trial in found] == ["a", "b", "a"]
