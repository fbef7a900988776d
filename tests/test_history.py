"""What a new search reads of the finished studies in its database."""

from __future__ import annotations

import math
from typing import Any

import pytest
from storage_places import an_epoch, make_study, optuna_study, worker_on

from storage import steering
from storage.claims import Settlement
from storage.history import BEST, LEAST_COMPLETE, OTHERS, PastStudy, evenly, past_studies
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def run(worker: SharedStorage, study: StudyRecord, value: float | None, outcome: Outcome = Outcome.COMPLETE) -> int:
    """Run a trial to its end as a worker does; its number."""
    mine = optuna_study(worker, study)
    trial = mine.ask()
    with worker.sampling(trial):
        trial.set_user_attr("settings", {"optimizer": "adam", "lr": 0.1 / (1 + trial.number)})
        trial.set_user_attr("model", {"width": trial.number})
    worker.record_epoch(worker.lease_of(trial), an_epoch(1, math.nan if value is None else value))
    worker.settle(mine, trial, Settlement(outcome), value)
    return int(trial.number)


def finished(worker: SharedStorage, *values: float, **changes: Any) -> StudyRecord:
    study = make_study(worker, trials=len(values), **changes)
    for value in values:
        run(worker, study, value)
    return study


def read(worker: SharedStorage, study: StudyRecord) -> PastStudy | None:
    return next((one for one in past_studies(worker) if one.name == study.name), None)


FIVE = (0.5, 0.9, 0.7, 0.6, 0.8)


def test_a_finished_studys_trials_are_read_best_first_with_their_recipes(worker: SharedStorage) -> None:
    found = read(worker, finished(worker, *FIVE, objective="/a/net.py"))
    assert found is not None
    assert (found.objective, found.metric, found.direction) == ("/a/net.py", "accuracy", "maximize")
    assert [trial.value for trial in found.trials] == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert [trial.rank for trial in found.trials] == [0, 1, 2, 3, 4]
    assert found.trials[0].settings == {"optimizer": "adam", "lr": 0.05}
    assert found.trials[0].model == {"width": 1}


def test_the_lowest_comes_first_where_lower_is_better(worker: SharedStorage) -> None:
    found = read(worker, finished(worker, *FIVE, direction="minimize", metric="loss"))
    assert found is not None
    assert [trial.value for trial in found.trials] == [0.5, 0.6, 0.7, 0.8, 0.9]


def test_what_was_pruned_or_diverged_comes_last_and_has_no_rank(worker: SharedStorage) -> None:
    study = make_study(worker, trials=8)
    run(worker, study, None, Outcome.DIVERGED)
    run(worker, study, 0.99, Outcome.PRUNED)
    for value in FIVE:
        run(worker, study, value)
    run(worker, study, None, Outcome.OUT_OF_MEMORY)
    found = read(worker, study)
    assert found is not None
    assert [trial.rank for trial in found.trials] == [0, 1, 2, 3, 4, None, None]
    assert found.trials[5].value == 0.99
    assert math.isnan(found.trials[6].value)


def test_a_study_that_still_runs_is_not_read_and_a_stopped_one_is(worker: SharedStorage) -> None:
    study = make_study(worker, trials=9)
    for value in FIVE:
        run(worker, study, value)
    assert read(worker, study) is None
    steering.stop(worker, study.study_id, "enough", "bo")
    assert read(worker, study) is not None


def test_a_study_with_few_complete_trials_is_not_read(worker: SharedStorage) -> None:
    assert read(worker, finished(worker, *FIVE[: LEAST_COMPLETE - 1])) is None


def test_a_bare_functions_study_has_no_recipes(worker: SharedStorage) -> None:
    assert read(worker, finished(worker, *FIVE, epochs=0)) is None


def test_the_newest_come_first_and_no_more_than_asked_for(worker: SharedStorage) -> None:
    names = [finished(worker, *FIVE).name for _ in range(3)]
    assert [one.name for one in past_studies(worker, most=2)] == names[:0:-1]


def test_of_a_large_study_the_best_and_an_even_choice_of_the_others_are_read(worker: SharedStorage) -> None:
    count = BEST + 2 * OTHERS
    found = read(worker, finished(worker, *(1 - number / count for number in range(count))))
    assert found is not None
    ranks = [trial.rank for trial in found.trials]
    assert ranks == [*range(BEST), *range(BEST, count, 2)]


def test_an_even_choice_has_the_first_and_nearly_the_last() -> None:
    assert evenly(range(3), 5) == [0, 1, 2]
    assert evenly(range(10), 5) == [0, 2, 4, 6, 8]
