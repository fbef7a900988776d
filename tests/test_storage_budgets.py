"""Budgets of epochs, which are exact, and deadlines by the database's clock."""

from __future__ import annotations

import math

import pytest
from sqlalchemy import func, select, update
from storage_crew import PROCESSES, Crew, train_several_at_a_time, train_until_stopped
from storage_places import DONE, an_epoch, fresh, make_study, optuna_study, rows, run_trial, worker_on

from storage import queue, steering
from storage.claims import Checkpoint, EpochsSpent, Lease, StudyStopped
from storage.engine import database_now
from storage.errors import UsageError
from storage.limits import Limits
from storage.shared import SharedStorage
from storage.steering import Wish
from storage.studies import StudyRecord
from storage.tables import EpochRow, LeaseRow, StudyRow, StudyState, TrialRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

HOUR = 3600.0


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def now(storage: SharedStorage) -> float:
    with storage.backend.read() as session:
        return session.scalar(select(database_now())) or 0.0


def on_record(storage: SharedStorage, study: StudyRecord) -> int:
    """Epochs of the study's trials in the database."""
    with storage.backend.read() as session:
        query = select(func.count(EpochRow.epoch)).join(TrialRow, TrialRow.trial_id == EpochRow.trial_id)
        return session.scalar(query.where(TrialRow.study_id == study.study_id)) or 0


def set_deadline(storage: SharedStorage, study: StudyRecord, moment: float) -> None:
    """As if so much time had gone by."""
    with storage.backend.write() as session:
        session.execute(update(StudyRow).where(StudyRow.study_id == study.study_id).values(deadline=moment))


# -- Epochs


def test_the_last_epoch_of_the_budget_stops_the_study_and_none_is_recorded_after_it(worker: SharedStorage) -> None:
    study = make_study(worker, budget_epochs=3)
    mine = optuna_study(worker, study)
    first, second = (worker.lease_of(mine.ask()) for _ in range(2))
    assert worker.record_epoch(first, an_epoch(1)) is StudyState.RUNNING
    assert worker.record_epoch(second, an_epoch(1)) is StudyState.RUNNING
    assert worker.record_epoch(first, an_epoch(2)) is StudyState.STOPPED
    with pytest.raises(EpochsSpent, match="the budget of 3 epochs is on record"):
        worker.record_epoch(second, an_epoch(2))
    record = fresh(worker, study)
    assert (record.state, record.reason) == (StudyState.STOPPED, "the budget of 3 epochs is trained")
    assert (record.spent_epochs, on_record(worker, study)) == (3, 3)
    assert worker.get_trial(second.trial_id).intermediate_values == {1: 0.5}, "a pruner must not see it either"
    assert record.spent_seconds == 3 * 0.25
    with pytest.raises(StudyStopped, match="the budget of 3 epochs is trained"):
        mine.ask()


def test_an_epoch_that_an_adopter_trains_again_counts_once(worker: SharedStorage) -> None:
    study = make_study(worker, budget_epochs=2)
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1))
    worker.hand_back(lease)
    adopted = worker.adopt(study.study_id)
    assert isinstance(adopted, Lease)
    assert worker.record_epoch(adopted, an_epoch(1)) is StudyState.RUNNING
    assert fresh(worker, study).spent_epochs == 1
    assert worker.record_epoch(adopted, an_epoch(2)) is StudyState.STOPPED
    assert worker.record_epoch(adopted, an_epoch(2)) is StudyState.STOPPED, "it is on record, and no new one"


def test_the_trial_of_the_last_epoch_may_still_be_settled(worker: SharedStorage) -> None:
    study = make_study(worker, budget_epochs=1)
    run_trial(worker, study)
    assert fresh(worker, study).reason == "the budget of 1 epoch is trained"


def test_processes_that_share_a_budget_of_epochs_put_exactly_so_many_on_record(common_url: str, crew: Crew) -> None:
    worker = worker_on(common_url)
    study = make_study(worker, budget_epochs=40, trials=20)
    epochs = crew(train_until_stopped, common_url, study.name, 1)
    assert sum(epochs) == 40
    assert fresh(worker, study).spent_epochs == on_record(worker, study) == 40
    steering.resume(worker, study.study_id, Wish(limits=Limits(budget_epochs=60)), "bo")
    adopted = [worker.adopt(study.study_id) for _ in range(PROCESSES)]
    assert None not in adopted, "all were handed back"


def test_of_epochs_that_are_more_than_the_budget_has_the_first_ones_are_recorded(worker: SharedStorage) -> None:
    study = make_study(worker, budget_epochs=6)
    mine = optuna_study(worker, study)
    first, second = (worker.lease_of(mine.ask()) for _ in range(2))
    left = worker.record_epochs(first, [an_epoch(1), an_epoch(2)])
    assert (left.state, left.epochs, left.seconds) == (StudyState.RUNNING, 4, math.inf)
    several = [an_epoch(number, noted={f"rung_{number}": 1}) for number in range(1, 8)]
    with pytest.raises(EpochsSpent, match="the budget of 6 epochs is on record"):
        worker.record_epochs(second, several, Checkpoint(7, "state-7", "0" * 64))
    trial = worker.get_trial(second.trial_id)
    assert trial.intermediate_values == dict.fromkeys((1, 2, 3, 4), 0.5)
    assert {*trial.system_attrs} == {"rung_1", "rung_2", "rung_3", "rung_4"}
    record = fresh(worker, study)
    assert (record.state, record.reason) == (StudyState.STOPPED, "the budget of 6 epochs is trained")
    assert (record.spent_epochs, on_record(worker, study), record.spent_seconds) == (6, 6, 6 * 0.25)
    assert worker.checkpoints(second) == []


def test_processes_that_record_several_epochs_at_a_time_put_exactly_the_budget_on_record(
    common_url: str, crew: Crew
) -> None:
    worker = worker_on(common_url)
    study = make_study(worker, budget_epochs=40, trials=20)
    assert sum(crew(train_several_at_a_time, common_url, study.name)) == 40
    assert fresh(worker, study).spent_epochs == on_record(worker, study) == 40


def test_resume_takes_a_larger_budget_of_epochs_only(worker: SharedStorage) -> None:
    study = make_study(worker, budget_epochs=1)
    run_trial(worker, study)
    with pytest.raises(UsageError) as caught:
        steering.resume(worker, study.study_id, Wish(), "bo")
    assert str(caught.value) == (
        f"the budget of 1 epoch is trained: enlarge it, as by `dialin resume {study.name} --total-epochs +1`"
    )
    with pytest.raises(UsageError, match="--total-epochs 1 is not more than the 1 epoch already on record"):
        steering.resume(worker, study.study_id, Wish(limits=Limits(budget_epochs=1)), "bo")
    steering.resume(worker, study.study_id, Wish(limits=Limits(budget_epochs=2)), "bo")
    run_trial(worker, study)
    assert fresh(worker, study).spent_epochs == 2


# -- A deadline


def test_after_the_deadline_an_epoch_in_flight_is_kept_and_nothing_is_started(worker: SharedStorage) -> None:
    study = make_study(worker, deadline=now(worker) + HOUR)
    mine = optuna_study(worker, study)
    trial = mine.ask()
    assert worker.record_epoch(worker.lease_of(trial), an_epoch(1)) is StudyState.RUNNING
    set_deadline(worker, study, now(worker) - 1)
    with pytest.raises(StudyStopped, match=r"the deadline of .* is past"):
        mine.ask()
    assert worker.record_epoch(worker.lease_of(trial), an_epoch(2)) is StudyState.STOPPED
    assert "the deadline of" in fresh(worker, study).reason
    worker.settle(mine, trial, DONE, 0.5)


def test_nothing_is_adopted_after_the_deadline(worker: SharedStorage) -> None:
    study = make_study(worker, deadline=now(worker) + HOUR)
    worker.hand_back(worker.lease_of(optuna_study(worker, study).ask()))
    set_deadline(worker, study, now(worker) - 1)
    assert worker.adopt(study.study_id) is None
    assert study.name not in {one.name for one in queue.open_now(worker)}
    steering.resume(worker, study.study_id, Wish(limits=Limits(deadline=math.inf)), "bo")
    assert worker.adopt(study.study_id) is not None


def test_who_listens_stops_a_study_whose_deadline_is_past(worker: SharedStorage) -> None:
    study = make_study(worker, deadline=now(worker) + HOUR)
    assert worker.study_state(study.study_id) is StudyState.RUNNING
    set_deadline(worker, study, now(worker) - 1)
    assert worker.study_state(study.study_id) is StudyState.STOPPED
    record = fresh(worker, study)
    assert (record.state, record.reason[:15]) == (StudyState.STOPPED, "the deadline of")


def test_a_deadline_that_is_past_must_be_set_anew_to_go_on(worker: SharedStorage) -> None:
    study = make_study(worker, deadline=now(worker) - 1)
    with pytest.raises(UsageError, match=r"is past: set another, as by `dialin resume .* --deadline 2h`"):
        steering.resume(worker, study.study_id, Wish(), "bo")
    with pytest.raises(UsageError, match=r"--deadline .* is past already"):
        steering.resume(worker, study.study_id, Wish(limits=Limits(deadline=now(worker) - HOUR)), "bo")
    steering.resume(worker, study.study_id, Wish(limits=Limits(deadline=now(worker) + HOUR)), "bo")
    run_trial(worker, study)
    assert rows(worker, LeaseRow, LeaseRow.study_id == study.study_id) == []
