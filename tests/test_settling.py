"""How a trial ends in the database, what an error costs, and what is written when a recipe is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState
from sqlalchemy import delete, event, update
from sqlalchemy.exc import IntegrityError
from storage_places import (
    DONE,
    an_epoch,
    dialin_rows,
    fresh,
    make_study,
    optuna_study,
    rows,
    run_trial,
    worker_on,
)

from storage import leases, pausing, steering, studies, workers
from storage.claims import Checkpoint, Lease, LeaseLost, Settlement
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.studies import StudyRecord
from storage.tables import CheckpointRow, LeaseRow, OwnerRow, StudyState, TrialRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

BUG = Settlement(Outcome.ERROR, "ValueError: no such layer")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


@contextmanager
def writes_counted(storage: SharedStorage) -> Iterator[list[list[str]]]:
    """One list for each transaction with writing statements that is committed in this block: their first words."""
    committed: list[list[str]] = []
    current: list[str] = []

    def execute(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            current.append(" ".join(sql.split()[:3]))

    def commit(_connection: Any) -> None:
        if current:
            committed.append([*current])
        current.clear()

    event.listen(storage.backend.engine, "after_cursor_execute", execute)
    event.listen(storage.backend.engine, "commit", commit)
    yield committed
    event.remove(storage.backend.engine, "after_cursor_execute", execute)
    event.remove(storage.backend.engine, "commit", commit)


# -- Settling


@pytest.mark.parametrize("outcome", list(Outcome))
def test_settling_writes_everything_at_once_and_ends_the_lease(
    worker: SharedStorage, study: StudyRecord, outcome: Outcome
) -> None:
    mine = optuna_study(worker, study)
    trial = mine.ask()
    lease = worker.lease_of(trial)
    worker.record_epoch(lease, an_epoch(1, 0.75), Checkpoint(1, "state.pt", "1" * 64))
    weights = Checkpoint(1, "weights.pt", "2" * 64)
    settlement = Settlement(outcome, "why", best_epoch=1, weights=weights, attrs={"epochs": 1, "outcome": outcome})
    with writes_counted(worker) as transactions:
        worker.settle(mine, trial, settlement, 0.75)
    assert len(transactions) == 1
    told = worker.get_trial(lease.trial_id)
    assert told.state == outcome.state
    # Optuna gives a pruned trial its last epoch's value; one that failed has none.
    assert told.value == (None if outcome.state == TrialState.FAIL else 0.75)
    assert told.user_attrs == {"epochs": 1, "outcome": outcome.value}
    assert rows(worker, LeaseRow, LeaseRow.trial_id == lease.trial_id) == []
    (row,) = rows(worker, TrialRow, TrialRow.trial_id == lease.trial_id)
    assert (row.outcome, row.reason, row.best_epoch) == (outcome.value, "why", 1)
    assert row.settlement is not None
    assert row.settled_at >= row.started_at
    (kept,) = rows(worker, CheckpointRow, CheckpointRow.trial_id == lease.trial_id)
    assert (kept.kind, kept.path) == ("weights", "weights.pt")


def test_a_trial_cannot_be_settled_twice(worker: SharedStorage, study: StudyRecord) -> None:
    trial = run_trial(worker, study)
    before = rows(worker, TrialRow, TrialRow.trial_id == trial._trial_id)
    with pytest.raises(LeaseLost):
        worker.settle(optuna_study(worker, study), trial, BUG)
    assert rows(worker, TrialRow, TrialRow.trial_id == trial._trial_id) == before
    assert fresh(worker, study).returned == 0


def test_an_error_returns_its_ticket(worker: SharedStorage, study: StudyRecord) -> None:
    run_trial(worker, study, BUG)
    run_trial(worker, study)
    now = fresh(worker, study)
    assert (now.taken, now.returned, now.state) == (1, 1, StudyState.RUNNING)


def test_other_failures_keep_their_ticket(worker: SharedStorage, study: StudyRecord) -> None:
    for outcome in (Outcome.OUT_OF_MEMORY, Outcome.LOST, Outcome.DIVERGED):
        run_trial(worker, study, Settlement(outcome))
    now = fresh(worker, study)
    assert (now.taken, now.returned, now.state) == (3, 0, StudyState.RUNNING)


def test_three_errors_in_a_row_stop_the_study_with_the_reason(worker: SharedStorage, study: StudyRecord) -> None:
    for outcome in (BUG, BUG, DONE, BUG, BUG):  # what succeeds between them begins a new row
        run_trial(worker, study, outcome)
    assert fresh(worker, study).state is StudyState.RUNNING
    run_trial(worker, make_study(worker), BUG)  # another study's are its own
    assert fresh(worker, study).state is StudyState.RUNNING


def test_a_third_error_in_a_row_stops_the_study_until_it_is_resumed(worker: SharedStorage, study: StudyRecord) -> None:
    for _ in range(3):
        run_trial(worker, study, BUG)
    now = fresh(worker, study)
    assert now.state is StudyState.STOPPED
    assert now.reason == "3 trials in a row ended in an error, the last: ValueError: no such layer"
    steering.resume(worker, study.study_id, Wish(), "bo")
    run_trial(worker, study, BUG)
    assert fresh(worker, study).state is StudyState.RUNNING


def test_no_more_tickets_return_than_the_budget_has(worker: SharedStorage) -> None:
    study = make_study(worker, trials=2)
    for _ in range(2):
        run_trial(worker, study, BUG)
    assert (fresh(worker, study).taken, fresh(worker, study).returned) == (0, 2)
    run_trial(worker, study, DONE)
    run_trial(worker, study, BUG)
    assert (fresh(worker, study).taken, fresh(worker, study).returned) == (2, 2)


# -- Others' hands on a trial


def test_a_trial_told_elsewhere_is_lost_to_its_owner(worker: SharedStorage, study: StudyRecord) -> None:
    mine = optuna_study(worker, study)
    trial = mine.ask()
    lease = worker.lease_of(trial)
    optuna_study(RDBStorage(worker.backend.url), study).tell(trial.number, 0.125)
    with pytest.raises(LeaseLost):
        worker.record_epoch(lease, an_epoch(1))
    with pytest.raises(LeaseLost):
        worker.settle(mine, trial, DONE, 0.5)
    told = worker.get_trial(lease.trial_id)
    assert (told.value, told.intermediate_values) == (0.125, {})
    assert worker.adopt(study.study_id) is None
    standing = pausing.standing(worker, study.study_id)
    assert standing is not None
    assert not standing.leased


@pytest.mark.parametrize("way", ["handed back", "died"])
def test_a_trial_told_elsewhere_is_on_record_whatever_becomes_of_its_owner(
    worker: SharedStorage, study: StudyRecord, way: str
) -> None:
    trial = optuna_study(worker, study).ask()
    lease = worker.lease_of(trial)
    worker.record_epoch(lease, an_epoch(1), Checkpoint(1, "state-1.pt", "1" * 64))
    optuna_study(RDBStorage(worker.backend.url), study).tell(trial.number, 0.125)
    if way == "died":
        assert workers.end(worker, lease.worker_id) == 0
    else:
        worker.hand_back(lease)
    [row] = rows(worker, TrialRow, TrialRow.trial_id == lease.trial_id)
    assert (row.outcome, row.reason) == ("complete", leases.TOLD_ELSEWHERE)
    for table in (LeaseRow, CheckpointRow):
        assert rows(worker, table, table.trial_id == lease.trial_id) == []
    assert [owner.ending for owner in rows(worker, OwnerRow, OwnerRow.trial_id == lease.trial_id)] == ["handed_back"]


def test_a_settlement_that_breaks_a_constraint_is_no_silent_end(
    worker: SharedStorage, study: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = optuna_study(worker, study)
    trial = mine.ask()

    def collide(*_: Any) -> None:
        raise IntegrityError("INSERT", {}, ValueError("UNIQUE constraint failed"))

    monkeypatch.setattr(leases, "settle", collide)
    with pytest.raises(IntegrityError):
        worker.settle(mine, trial, DONE, 0.5)
    assert worker.lease_of(trial).generation == 1


def test_a_trial_told_elsewhere_in_the_middle_of_settling_is_lost_to_its_owner(
    worker: SharedStorage, study: StudyRecord
) -> None:
    elsewhere = optuna_study(RDBStorage(worker.backend.url), study)

    class Slow(RandomSampler):
        def after_trial(self, *_: Any) -> None:
            elsewhere.tell(0, 0.125)

    mine = optuna_study(worker, study, Slow())
    trial = mine.ask()
    with pytest.raises(LeaseLost):
        worker.settle(mine, trial, DONE, 0.5)
    assert worker.get_trial(trial._trial_id).value == 0.125


def lose(worker: SharedStorage, study: StudyRecord, trial: Trial, way: str) -> None:
    lease, elsewhere = worker.lease_of(trial), worker_on(worker.backend.url)
    if way == "handed back":
        worker.hand_back(lease)
    elif way == "adopted":
        workers.end(elsewhere, lease.worker_id)
        assert elsewhere.adopt(study.study_id) is not None
    elif way == "told":
        optuna_study(RDBStorage(worker.backend.url), study).tell(trial.number, 0.125)
    else:
        elsewhere.delete_study(study.study_id)


@pytest.mark.parametrize("way", ["handed back", "adopted", "told", "deleted"])
def test_a_person_s_own_code_writes_nothing_to_a_trial_that_is_lost(
    worker: SharedStorage, study: StudyRecord, way: str
) -> None:
    trial = optuna_study(worker, study).ask()
    trial.set_user_attr("note", "while it is held")
    lose(worker, study, trial, way)
    for write in (
        lambda: trial.set_user_attr("note", "too late"),
        lambda: trial.suggest_float("x", 0, 1),
        lambda: trial.report(0.5, 1),
        lambda: worker.set_trial_system_attr(trial._trial_id, "artifacts:0", "{}"),
    ):
        with pytest.raises(LeaseLost):
            write()
    if way != "deleted":
        seen = open_storage(worker.backend.url).get_trial(trial._trial_id)
        noted = (seen.user_attrs, seen.system_attrs, seen.params, seen.intermediate_values)
        assert noted == ({"note": "while it is held"}, {}, {}, {})


@pytest.mark.parametrize("plain", [False, True], ids=["dialin", "plain-optuna"])
def test_deleting_a_study_leaves_nothing_of_it(storage_url: str, plain: bool) -> None:
    worker = worker_on(storage_url)
    kept = make_study(worker)
    run_trial(worker, kept)
    before = dialin_rows(worker)
    study = make_study(worker, first=1)
    weights = Checkpoint(1, "weights.pt", "2" * 64)
    run_trial(worker, study, replace(DONE, weights=weights))
    trial = optuna_study(worker, study).ask()
    lease = worker.lease_of(trial)
    worker.record_epoch(lease, an_epoch(1), weights)
    assert dialin_rows(worker) != before
    optuna.delete_study(study_name=study.name, storage=RDBStorage(worker.backend.url) if plain else worker)
    assert dialin_rows(worker) == before
    with pytest.raises(LeaseLost):
        worker.record_epoch(lease, an_epoch(2))
    with pytest.raises(LeaseLost):
        worker.settle(optuna_study(worker, kept), trial, DONE, 0.5)
    assert worker.study_state(study.study_id) is None
    # SQLite gives the ids of what was deleted again.
    run_trial(worker, make_study(worker))


def test_a_study_is_deleted_while_its_trials_record_epochs(worker: SharedStorage) -> None:
    study = make_study(worker)
    mine = optuna_study(worker, study)
    leases = [worker.lease_of(mine.ask()) for _ in range(4)]
    training = Barrier(len(leases) + 1)

    def train(lease: Lease) -> None:
        for number in range(1, 2_000):
            worker.record_epoch(lease, an_epoch(number))
            if number == 1:
                training.wait(60)

    with ThreadPoolExecutor(len(leases)) as pool:
        trained = [pool.submit(train, lease) for lease in leases]
        training.wait(60)
        optuna.delete_study(study_name=study.name, storage=open_storage(worker.backend.url))
        assert [type(future.exception(60)) for future in trained] == [LeaseLost] * len(leases)
    assert study.name not in studies.names(worker)


# -- Sampling


@pytest.mark.parametrize("make", [RandomSampler, partial(TPESampler, n_startup_trials=1, multivariate=True)])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_recipe_is_written_in_one_transaction_at_the_end(
    worker: SharedStorage, study: StudyRecord, make: Callable[..., BaseSampler]
) -> None:
    mine = optuna_study(worker, study, make(seed=1))
    for _ in range(3):
        trial = mine.ask()
        with writes_counted(worker) as transactions, worker.sampling(trial):
            params = {f"x{n}": trial.suggest_float(f"x{n}", 1e-3, 1, log=True) for n in range(4)}
            params["batch"] = trial.suggest_categorical("batch", [16, 32])
            trial.set_user_attr("lr", 0.1)
            assert trial.params == params
            assert worker.get_trial(trial._trial_id).user_attrs == {"lr": 0.1}
            assert worker.get_all_trials(study.study_id)[trial.number].params == params
            assert transactions == []
        assert len(transactions) == 1
        seen = open_storage(worker.backend.url).get_trial(trial._trial_id)
        assert (seen.params, seen.user_attrs) == (params, {"lr": 0.1})
        worker.settle(mine, trial, DONE, params["x0"])


def test_an_enqueued_trials_parameters_are_taken(worker: SharedStorage) -> None:
    study = make_study(worker, first=2)
    for expected in (0.0, 1.0):
        trial = optuna_study(worker, study).ask()
        with worker.sampling(trial):
            assert trial.suggest_float("x", 0, 10) == expected


def test_nothing_is_written_when_sampling_raises(worker: SharedStorage, study: StudyRecord) -> None:
    trial = optuna_study(worker, study).ask()

    def objective() -> None:
        with worker.sampling(trial):
            trial.suggest_float("x", 0, 1)
            trial.set_user_attr("lr", 0.1)
            raise ValueError("a mistake in the objective")

    with writes_counted(worker) as transactions, pytest.raises(ValueError, match="mistake"):
        objective()
    assert transactions == []
    seen = worker.get_trial(trial._trial_id)
    assert (seen.params, seen.user_attrs) == ({}, {})


# -- Deleted trials


def delete_trial(storage: SharedStorage, trial: Trial) -> None:
    """As optuna-dashboard does."""
    with storage.backend.write() as session:
        session.execute(delete(models.TrialModel).where(models.TrialModel.trial_id == trial._trial_id))


@pytest.mark.parametrize("number", [0, 2])
def test_no_number_is_given_again_after_a_trial_was_deleted(
    worker: SharedStorage, study: StudyRecord, number: int
) -> None:
    mine = optuna_study(worker, study)
    trials = [mine.ask() for _ in range(3)]
    delete_trial(worker, trials[number])
    assert mine.ask().number == 3
    assert optuna_study(open_storage(worker.backend.url), study).ask().number == 4


def test_a_worker_settles_its_own_trial_where_two_have_one_number(worker: SharedStorage, study: StudyRecord) -> None:
    other = worker_on(worker.backend.url)
    mine, theirs = optuna_study(worker, study), optuna_study(other, study)
    trial, namesake = mine.ask(), theirs.ask()
    with worker.backend.write() as session:  # as versions before gave numbers
        session.execute(
            update(models.TrialModel).where(models.TrialModel.trial_id == namesake._trial_id).values(number=0)
        )
    worker.get_all_trials(study.study_id)  # as samplers do: the cache knows one of them by its number
    worker.settle(mine, trial, DONE, 0.9)
    assert worker.get_trial(trial._trial_id).value == 0.9
    assert other.get_trial(namesake._trial_id).state == TrialState.RUNNING


def test_a_worker_cannot_tell_what_another_trains(worker: SharedStorage, study: StudyRecord) -> None:
    trial, other = optuna_study(worker, study).ask(), worker_on(worker.backend.url)
    with pytest.raises(LeaseLost):
        optuna_study(other, study).tell(trial.number, 0.9)
    worker.settle(optuna_study(worker, study), trial, DONE, 0.5)
