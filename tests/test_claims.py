"""A trial in the database: ticket, lease and trial are claimed together, one owner records, and it settles once."""

from __future__ import annotations

import math
import threading
from contextvars import Context
from typing import Any

import optuna
import psycopg
import pytest
from optuna.trial import Trial, TrialState
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from storage_crew import Crew, adopt_one, claim_and_settle
from storage_places import (
    DONE,
    adopted_by,
    an_epoch,
    fresh,
    make_study,
    optuna_study,
    rows,
    run_trial,
    wait_until,
    worker_on,
)

from storage import steering, workers
from storage.backend import Backend
from storage.claims import BudgetSpent, Checkpoint, Lease, LeaseLost, Settlement, StudyStopped
from storage.outcomes import Outcome
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.studies import StudyRecord
from storage.tables import EpochRow, LeaseRow, StudyState, TrialRow, WorkerRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


def of_trial(storage: SharedStorage, table: Any, trial_id: int) -> list[Any]:
    return rows(storage, table, table.trial_id == trial_id)


def of_study(storage: SharedStorage, table: Any, study: StudyRecord) -> list[Any]:
    return rows(storage, table, table.study_id == study.study_id)


def somebody_waits(storage: SharedStorage) -> bool:
    """For a lock of PostgreSQL's."""
    with storage.backend.read() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")))


# -- Budget


@pytest.mark.parametrize("enqueued", [0, 20])
def test_40_tickets_are_40_trials_with_8_processes_claiming(common_url: str, crew: Crew, enqueued: int) -> None:
    storage = open_storage(common_url)
    study = make_study(storage, trials=40, first=enqueued)
    ran = [trial for process in crew(claim_and_settle, common_url, study.name) for trial in process]
    assert sorted(number for number, _ in ran) == list(range(40))
    # Each enqueued trial was run once, with what it was enqueued with.
    assert {number: x for number, x in ran if number < enqueued} == {n: float(n) for n in range(enqueued)}
    trials = storage.get_all_trials(study.study_id)
    assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(40)]
    assert fresh(storage, study).taken == 40
    assert of_study(storage, LeaseRow, study) == []
    assert len(of_study(storage, TrialRow, study)) == 40


def test_a_claim_beyond_the_budget_leaves_nothing(worker: SharedStorage) -> None:
    study = make_study(worker, trials=1)
    run_trial(worker, study)
    with pytest.raises(BudgetSpent, match="all 1 trials are taken"):
        optuna_study(worker, study).ask()
    assert len(worker.get_all_trials(study.study_id)) == len(of_study(worker, TrialRow, study)) == 1
    assert of_study(worker, LeaseRow, study) == []
    assert fresh(worker, study).taken == 1


def test_a_claim_of_a_stopped_study_leaves_nothing(worker: SharedStorage, study: StudyRecord) -> None:
    steering.stop(worker, study.study_id, "enough", "bo")
    with pytest.raises(StudyStopped, match="enough"):
        optuna_study(worker, study).ask()
    assert worker.get_all_trials(study.study_id) == []
    assert of_study(worker, TrialRow, study) == of_study(worker, LeaseRow, study) == []
    assert fresh(worker, study).taken == 0


def test_an_enqueued_trial_beyond_the_budget_stays_waiting(worker: SharedStorage) -> None:
    study = make_study(worker, trials=1, first=2)
    run_trial(worker, study)
    with pytest.raises(BudgetSpent):
        optuna_study(worker, study).ask()
    first, second = worker.get_all_trials(study.study_id)
    assert (first.state, second.state, second.datetime_start) == (TrialState.COMPLETE, TrialState.WAITING, None)
    assert len(of_study(worker, TrialRow, study)) == 1


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("statement", ["INSERT INTO dialin_leases", "UPDATE dialin_studies"])
def test_trial_ticket_and_lease_appear_together_or_not_at_all(
    worker: SharedStorage, first: int, statement: str
) -> None:
    study = make_study(worker, first=first)

    def power_cut(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith(statement):
            raise RuntimeError("power cut")

    event.listen(worker.backend.engine, "after_cursor_execute", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        optuna_study(worker, study).ask()
    event.remove(worker.backend.engine, "after_cursor_execute", power_cut)
    other = open_storage(worker.backend.url)
    assert [trial.state for trial in other.get_all_trials(study.study_id)] == [TrialState.WAITING] * first
    assert of_study(other, TrialRow, study) == of_study(other, LeaseRow, study) == []
    assert fresh(other, study).taken == 0
    assert run_trial(worker, study).number == 0


def test_an_uncommitted_claim_is_invisible_to_others(worker: SharedStorage, study: StudyRecord) -> None:
    other = open_storage(worker.backend.url)
    seen: list[tuple[int, int, int]] = []

    def look() -> None:
        trials = other.get_all_trials(study.study_id)
        seen.append((len(trials), len(of_study(other, TrialRow, study)), len(of_study(other, LeaseRow, study))))

    def look_before_commit(_connection: Any) -> None:
        Context().run(look)  # not as part of the writer, for whom this thread is busy

    event.listen(worker.backend.engine, "commit", look_before_commit)
    optuna_study(worker, study).ask()
    event.remove(worker.backend.engine, "commit", look_before_commit)
    look()
    assert set(seen) == {(0, 0, 0), (1, 1, 1)}


# -- Leases


def test_only_the_owners_generation_may_record_renew_or_settle(worker: SharedStorage, study: StudyRecord) -> None:
    mine = optuna_study(worker, study)
    trial = mine.ask()
    lease = worker.lease_of(trial)
    worker.record_epoch(lease, an_epoch(1))
    worker.hand_back(lease)
    other = worker_on(worker.backend.url)
    theirs = adopted_by(other, study)
    assert (theirs.trial_id, theirs.generation) == (lease.trial_id, 2)
    before = (of_trial(worker, LeaseRow, lease.trial_id), worker.get_trial(lease.trial_id))

    worker.backend.leases[lease.trial_id] = lease  # an owner that does not know yet
    with pytest.raises(LeaseLost):
        worker.record_epoch(lease, an_epoch(2, 0.9), Checkpoint(2, "state.pt", "0" * 64))
    with pytest.raises(LeaseLost):
        worker.renew(lease)
    with pytest.raises(LeaseLost):
        worker.settle(mine, trial, Settlement(Outcome.COMPLETE, attrs={"mine": 1}), 0.9)
    with pytest.raises(LeaseLost), worker.sampling(trial):
        trial.suggest_float("x", 0, 1)
    worker.hand_back(lease)

    assert before == (of_trial(worker, LeaseRow, lease.trial_id), worker.get_trial(lease.trial_id))
    assert [row.epoch for row in of_trial(worker, EpochRow, lease.trial_id)] == [1]
    assert other.checkpoints(theirs) == []
    other.settle(optuna_study(other, study), Trial(optuna_study(other, study), theirs.trial_id), DONE, 0.5)
    assert worker.get_trial(lease.trial_id).value == 0.5


def test_who_handed_a_trial_back_cannot_settle_it(worker: SharedStorage, study: StudyRecord) -> None:
    mine = optuna_study(worker, study)
    trial = mine.ask()
    worker.hand_back(worker.lease_of(trial))
    with pytest.raises(LeaseLost):
        worker.settle(mine, trial, DONE, 0.9)
    assert worker.get_trial(trial._trial_id).state == TrialState.RUNNING
    assert adopted_by(worker, study).generation == 2


def test_an_expired_lease_is_adopted_by_exactly_one_process(common_url: str, crew: Crew) -> None:
    dying = worker_on(common_url, lease_seconds=0.05)
    study = make_study(dying)
    lease = dying.lease_of(optuna_study(dying, study).ask())
    # On the database's clock: the processes open it first, which takes longer than the lease lasts.
    adopted = crew(adopt_one, common_url, study.study_id)
    assert [trial for trial in adopted if trial is not None] == [lease.trial_id]
    assert of_trial(dying, LeaseRow, lease.trial_id)[0].generation == 2


def test_a_live_lease_cannot_be_adopted(worker: SharedStorage, study: StudyRecord) -> None:
    optuna_study(worker, study).ask()
    assert worker_on(worker.backend.url).adopt(study.study_id) is None


def test_a_renewed_lease_lasts(common_url: str) -> None:
    owner, other = worker_on(common_url, lease_seconds=0.05), worker_on(common_url)
    study = make_study(owner)
    lease = owner.lease_of(optuna_study(owner, study).ask())
    long = worker_on(common_url, lease_seconds=60)
    long.renew(lease)
    assert other.adopt(study.study_id) is None
    owner.renew(lease)
    assert adopted_by(other, study).generation == 2


def test_between_trials_a_worker_renews_only_what_it_knows_to_hold(worker: SharedStorage, study: StudyRecord) -> None:
    known, unheard = [worker.lease_of(optuna_study(worker, study).ask()) for _ in range(2)]
    before = [of_trial(worker, LeaseRow, lease.trial_id)[0].expires_at for lease in (known, unheard)]
    del worker.backend.leases[unheard.trial_id]  # as where the answer to the claim's COMMIT was lost
    worker.renew(None)
    after = [of_trial(worker, LeaseRow, lease.trial_id)[0].expires_at for lease in (known, unheard)]
    assert after[0] > before[0]
    assert after[1] == before[1]


def test_a_renewal_locks_the_lease_before_the_worker(postgres_url: str) -> None:
    """As whoever sees the worker die, or deletes the study: otherwise they wait for each other."""
    worker, other, looker = (worker_on(postgres_url) for _ in range(3))
    study = make_study(worker)
    lease = worker.lease_of(optuna_study(worker, study).ask())
    workers.register(worker, lease.worker_id, study.study_id, [workers.Place("cpu", None)])
    renewal = threading.Thread(target=lambda: worker.renew(lease))
    with other.backend.write() as session:
        session.execute(select(LeaseRow.trial_id).where(LeaseRow.trial_id == lease.trial_id).with_for_update())
        renewal.start()
        wait_until(lambda: somebody_waits(looker))
        free = select(WorkerRow.worker_id).where(WorkerRow.worker_id == lease.worker_id).with_for_update(nowait=True)
        assert session.scalar(free) == lease.worker_id
    renewal.join()


def test_an_adoption_whose_commit_arrives_late_is_its_workers(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies, the server has everything but the COMMIT, and the worker tries again before it arrives."""
    worker, other, looker = (worker_on(postgres_url) for _ in range(3))
    study = make_study(worker, trials=1)
    worker.hand_back(worker.lease_of(optuna_study(worker, study).ask()))
    adopt, late, adopted = Backend._adopt, Session(other.backend.engine), []

    def cut_off(backend: Backend, study_id: int, claim: str, session: Session, again: bool) -> Any:
        if again:
            return adopt(backend, study_id, claim, session, again)
        adopt(backend, study_id, claim, late, again)
        closed = psycopg.OperationalError("server closed the connection unexpectedly")
        raise OperationalError("COMMIT", {}, closed, connection_invalidated=True)

    monkeypatch.setattr(Backend, "_adopt", cut_off)
    adoption = threading.Thread(target=lambda: adopted.append(other.adopt(study.study_id)))
    adoption.start()
    wait_until(lambda: somebody_waits(looker) or not adoption.is_alive())
    late.commit()
    adoption.join()
    [lease] = adopted
    assert isinstance(lease, Lease)
    assert (lease.generation, other.backend.leases[lease.trial_id]) == (2, lease)
    other.renew(lease)


def test_an_adopted_trial_keeps_its_number_parameters_and_epochs(worker: SharedStorage, study: StudyRecord) -> None:
    trial = optuna_study(worker, study).ask()
    with worker.sampling(trial):
        sampled = (trial.suggest_float("x", 0, 1), trial.suggest_categorical("c", ["a", "b", "c"]))
    lease = worker.lease_of(trial)
    worker.record_epoch(lease, an_epoch(1), Checkpoint(1, "state-1.pt", "1" * 64))
    worker.record_epoch(lease, an_epoch(2), Checkpoint(2, "state-2.pt", "2" * 64))
    worker.hand_back(lease)

    other = worker_on(worker.backend.url)
    theirs = adopted_by(other, study)
    again = Trial(optuna_study(other, study, optuna.samplers.RandomSampler(seed=99)), theirs.trial_id)
    with other.sampling(again):
        assert (again.suggest_float("x", 0, 1), again.suggest_categorical("c", ["a", "b", "c"])) == sampled
    assert again.number == trial.number
    assert [checkpoint.path for checkpoint in other.checkpoints(theirs)] == ["state-2.pt", "state-1.pt"]
    assert other.cost(theirs) == (2, 0.5)
    assert fresh(other, study).taken == 1  # an adoption takes no ticket


def test_a_stopped_study_has_nothing_to_adopt_until_it_is_resumed(worker: SharedStorage, study: StudyRecord) -> None:
    worker.hand_back(worker.lease_of(optuna_study(worker, study).ask()))
    steering.stop(worker, study.study_id, "", "bo")
    assert worker.adopt(study.study_id) is None
    steering.resume(worker, study.study_id, Wish(), "bo")
    assert worker.adopt(study.study_id) is not None


# -- Epochs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_epochs_value_that_is_no_finite_number_is_on_record(
    worker: SharedStorage, study: StudyRecord, value: float
) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1, value))
    (epoch,) = worker.get_trial(lease.trial_id).intermediate_values.values()
    assert epoch == value or (math.isnan(epoch) and math.isnan(value))
    worker.record_epoch(lease, an_epoch(1, 0.25))
    assert worker.get_trial(lease.trial_id).intermediate_values == {1: 0.25}


def test_an_epoch_recorded_twice_is_one_epoch(worker: SharedStorage, study: StudyRecord) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1, 0.1))
    worker.record_epoch(lease, an_epoch(1, 0.2, device="cuda:1"))
    assert worker.get_trial(lease.trial_id).intermediate_values == {1: 0.2}
    (row,) = of_trial(worker, EpochRow, lease.trial_id)
    assert (row.device, row.metrics, row.generation) == ("cuda:1", '{"accuracy": 0.2, "loss": 1.0}', 1)


def test_several_epochs_are_recorded_at_once_also_where_some_of_their_numbers_are_on_record(
    worker: SharedStorage, study: StudyRecord
) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(3, 0.1))
    worker.record_epoch(lease, an_epoch(4, 0.4))
    worker.record_epochs(lease, [an_epoch(number, number / 10) for number in (1, 2, 3, 4)] + [an_epoch(5, None)])
    assert worker.get_trial(lease.trial_id).intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert sorted(row.epoch for row in of_trial(worker, EpochRow, lease.trial_id)) == [1, 2, 3, 4, 5]
    spent = fresh(worker, study)
    assert (spent.spent_epochs, spent.spent_seconds) == (5, 6 * 0.25), "the third was trained twice, the fourth once"


def test_an_epoch_its_checkpoint_and_the_lease_are_one_transaction(worker: SharedStorage, study: StudyRecord) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    (before,) = of_trial(worker, LeaseRow, lease.trial_id)
    with pytest.raises(AttributeError):
        worker.record_epoch(lease, an_epoch(1), "no checkpoint")  # type: ignore[arg-type]  # raises at the last insert
    assert of_trial(worker, LeaseRow, lease.trial_id) == [before]
    assert of_trial(worker, EpochRow, lease.trial_id) == []
    assert worker.get_trial(lease.trial_id).intermediate_values == {}


def test_recording_an_epoch_tells_that_the_study_was_stopped(worker: SharedStorage, study: StudyRecord) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    assert worker.record_epoch(lease, an_epoch(1)) is StudyState.RUNNING
    steering.stop(worker, study.study_id, "", "bo")
    assert worker.record_epoch(lease, an_epoch(2)) is StudyState.STOPPED
