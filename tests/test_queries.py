"""What people ask of a study, answered from the database: where it stands, what is best, whose weights are kept."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pauses
import pytest
from optuna.storages import RDBStorage
from storage_places import an_epoch, fresh, make_study, optuna_study, run_trial, worker_on

from storage import queries, workers
from storage.claims import Checkpoint, Settlement
from storage.outcomes import Outcome
from storage.retention import WEIGHTS_KEPT, retire_weights, worth_keeping
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

ALL_OUTCOMES = (Outcome.COMPLETE, Outcome.PRUNED, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.LOST)


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def complete(
    worker: SharedStorage, study: StudyRecord, value: float, outcome: Outcome = Outcome.COMPLETE, keep: bool = False
) -> int:
    """Run a trial to its end as a worker does; its number."""
    mine = optuna_study(worker, study)
    trial = mine.ask()
    with worker.sampling(trial):
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("recipe", f"recipe of {trial.number}")
    worker.record_epoch(worker.lease_of(trial), an_epoch(1, value))
    kept = keep and worth_keeping(worker, study, value)
    weights = Checkpoint(1, f"weights-{trial.number}.pt", "0" * 64) if kept else None
    worker.settle(mine, trial, Settlement(outcome, f"why {trial.number}", 1, weights), value)
    return int(trial.number)


# -- Status


def test_a_study_is_finished_when_all_its_trials_are_begun_and_none_is_left(worker: SharedStorage) -> None:
    study = make_study(worker, trials=2)

    def finished() -> bool:
        told = queries.is_finished(worker, fresh(worker, study))
        assert queries.status(worker, fresh(worker, study)).finished is told
        return told

    run_trial(worker, study)
    assert not finished()
    last = pauses.paused(worker, study)
    assert not finished()
    pauses.taken(worker, study, last.number)
    assert not finished()
    worker.settle(optuna_study(worker, study), last, Settlement(Outcome.COMPLETE), 0.5)
    assert finished()


def test_trials_are_counted_by_outcome(worker: SharedStorage) -> None:
    study = make_study(worker, trials=20, first=8)
    for outcome in (*ALL_OUTCOMES, Outcome.ERROR):
        run_trial(worker, study, Settlement(outcome))
    status = queries.status(worker, fresh(worker, study))
    assert status.counts == {
        "complete": 1,
        "pruned": 2,
        "diverged": 1,
        "out_of_memory": 1,
        "lost": 1,
        "error": 1,
    }
    assert status.settled == 6  # the error's ticket was returned
    assert status.waiting == 1
    assert (status.running, status.finished) == ((), False)
    assert status.epochs_trained == 7
    assert status.seconds == 7 * 0.25
    assert status.epochs_saved == 2 * (study.epochs - 1)  # by pruning alone
    assert status.age >= 0


def test_an_empty_study_has_a_status(worker: SharedStorage) -> None:
    study = make_study(worker)
    status = queries.status(worker, study)
    assert (status.counts, status.settled, status.epochs_trained, status.seconds) == ({}, 0, 0, 0.0)
    assert (status.epochs_saved, status.failures, status.waiting) == (0, (), 0)
    assert queries.best(worker, study) == []
    assert queries.settled(worker, study, 0.0) == []


def test_a_trial_told_by_plain_optuna_is_counted_by_its_state(worker: SharedStorage) -> None:
    study = make_study(worker)
    plain = optuna_study(RDBStorage(worker.backend.url), study)
    plain.tell(plain.ask().number, 0.5)
    plain.tell(plain.ask().number, state=optuna.trial.TrialState.PRUNED)
    assert queries.status(worker, study).counts == {"complete": 1, "pruned": 1}
    assert [trial.value for trial in queries.best(worker, study)] == [0.5]


@pytest.mark.parametrize(("direction", "best"), [("maximize", 0.9), ("minimize", 0.2)])
def test_a_running_trial_shows_its_epoch_now_and_best(worker: SharedStorage, direction: str, best: float) -> None:
    study = make_study(worker, direction=direction)
    claimant = worker.backend.claimant
    assert claimant is not None
    workers.register(worker, claimant.worker_id, study.study_id, [workers.Place("cuda:3", None)])
    asked = optuna_study(worker, study)
    first, second = asked.ask(), asked.ask()
    for number, value in enumerate((0.2, 0.9, 0.5), start=1):
        worker.record_epoch(worker.lease_of(first), an_epoch(number, value))
    worker.hand_back(worker.lease_of(second))
    one, two = queries.status(worker, study).running
    assert (one.number, one.epoch, one.now, one.best, one.adoptable) == (0, 3, 0.5, best, False)
    assert (one.slot, one.seen_ago < 60) == ("cuda:3", True)
    assert (two.number, two.epoch, two.now, two.best, two.adoptable) == (1, 0, None, None, True)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_an_epoch_without_a_finite_value_is_not_a_running_trials_best(
    worker: SharedStorage, direction: str, odd: float
) -> None:
    study = make_study(worker, direction=direction)
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1, odd))
    (row,) = queries.status(worker, study).running
    assert (row.now, row.best) == (None, None)
    worker.record_epoch(lease, an_epoch(2, 0.5))
    worker.record_epoch(lease, an_epoch(3, odd))
    (row,) = queries.status(worker, study).running
    assert (row.now, row.best) == (0.5, 0.5)
    assert queries.status(worker, study).epochs_trained == 3


def test_the_last_failures_are_shown_with_their_reasons(worker: SharedStorage) -> None:
    study = make_study(worker, trials=20)
    for number, outcome in enumerate((Outcome.ERROR, *ALL_OUTCOMES, Outcome.ERROR)):
        run_trial(worker, study, Settlement(outcome, f"why {number}"))
    failures = queries.status(worker, study).failures
    assert [(failed.number, failed.outcome, failed.reason) for failed in failures] == [
        (7, "error", "why 7"),
        (6, "lost", "why 6"),
        (5, "out_of_memory", "why 5"),
    ]


# -- Best


@pytest.mark.parametrize(("direction", "order"), [("maximize", [2, 0, 4, 1]), ("minimize", [1, 0, 4, 2])])
def test_the_best_are_the_complete_ones_by_direction_and_ties_by_number(
    worker: SharedStorage, direction: str, order: list[int]
) -> None:
    study = make_study(worker, direction=direction, trials=20)
    for value in (0.5, 0.1, 0.7):
        complete(worker, study, value)
    complete(worker, study, 0.99 if direction == "maximize" else 0.01, Outcome.PRUNED)  # 3: no final value
    complete(worker, study, 0.5)
    complete(worker, study, math.inf if direction == "maximize" else -math.inf)  # 5: no number to rank
    best = queries.best(worker, study, 10)
    assert [trial.number for trial in best] == order
    assert [trial.number for trial in queries.best(worker, study)] == order[:1]
    first = best[0]
    assert (first.best_epoch, first.epochs, first.seconds) == (1, 1, 0.25)
    assert first.attrs == {"recipe": f"recipe of {order[0]}"}


# -- What has settled since


def test_settled_trials_are_told_in_their_order(worker: SharedStorage) -> None:
    study = make_study(worker, trials=20)
    mine = optuna_study(worker, study)
    late = mine.ask()
    complete(worker, study, 0.5)
    complete(worker, study, 0.25, Outcome.PRUNED)
    complete(worker, study, 0.1, Outcome.ERROR)
    worker.settle(mine, late, Settlement(Outcome.COMPLETE), 0.75)
    told = queries.settled(worker, study, 0.0)
    assert [(trial.number, trial.outcome, trial.value, trial.epochs, trial.recipe, trial.reason) for trial in told] == [
        (1, Outcome.COMPLETE, 0.5, 1, "recipe of 1", "why 1"),
        (2, Outcome.PRUNED, 0.25, 1, "recipe of 2", "why 2"),
        (3, Outcome.ERROR, None, 1, "recipe of 3", "why 3"),
        (0, Outcome.COMPLETE, 0.75, 0, "", ""),
    ]
    since = told[2].settled_at
    assert [trial.number for trial in queries.settled(worker, study, since)] == [3, 0]
    assert queries.settled(worker, study, told[-1].settled_at + 1) == []


# -- Weights


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_only_the_best_trials_weights_are_kept(worker: SharedStorage, direction: str) -> None:
    study = make_study(worker, direction=direction, trials=20)
    sign = 1 if direction == "maximize" else -1
    forgotten = []
    for value in (1, 5, 2, 9, 3, 8, 0, 4):
        complete(worker, study, sign * float(value), keep=True)
        forgotten += retire_weights(worker, study)
    kept = {number for number in range(8) if queries.weights_of(worker, study, number) is not None}
    assert kept == {1, 3, 4, 5, 7} == {trial.number for trial in queries.best(worker, study, WEIGHTS_KEPT)}
    assert forgotten == ["weights-0.pt", "weights-2.pt"]  # the value 0 was never worth keeping
    assert queries.weights_of(worker, study, 3) == ("weights-3.pt", "0" * 64)
    other = make_study(worker)
    assert queries.weights_of(worker, other, 3) is None
    assert retire_weights(worker, other) == []


def test_the_best_of_equals_has_weights_though_it_ends_last(worker: SharedStorage) -> None:
    study = make_study(worker, trials=20)
    mine = optuna_study(worker, study)
    first = mine.ask()
    for _ in range(WEIGHTS_KEPT):
        complete(worker, study, 1.0, keep=True)
    assert worth_keeping(worker, study, 1.0)
    weights = Checkpoint(1, "weights-0.pt", "0" * 64)
    worker.settle(mine, first, Settlement(Outcome.COMPLETE, weights=weights), 1.0)
    assert retire_weights(worker, study) == [f"weights-{WEIGHTS_KEPT}.pt"]
    (best,) = queries.best(worker, study)
    assert queries.weights_of(worker, study, best.number) == ("weights-0.pt", "0" * 64)


# -- Other programs


def test_plain_optuna_reads_a_dialin_study(common_url: str, worker: SharedStorage) -> None:
    study = make_study(worker)
    complete(worker, study, 0.5)
    complete(worker, study, 0.75)
    plain: Any = optuna.load_study(study_name=study.name, storage=open_storage(common_url).backend.url)
    assert (plain.best_value, plain.best_trial.number, plain.direction.name) == (0.75, 1, "MAXIMIZE")
    assert plain.best_trial.intermediate_values == {1: 0.75}
    assert plain.best_trial.user_attrs["recipe"] == "recipe of 1"
    assert list(plain.best_params) == ["x"]
