"""The history of a trial's owners: who held it, what each left behind, and how its time with it ended."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import Trial, TrialState
from storage_places import DONE, adopted_by, an_epoch, fresh, make_study, optuna_study, rows, worker_on

from storage import workers
from storage.claims import Checkpoint, GivenUp, Lease
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import LeaseRow, OwnerEnding, OwnerRow, TrialRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


def history(storage: SharedStorage, lease: Lease) -> list[Any]:
    """Generation, whether anything was recorded, and the ending of each owner, the first one first."""
    owners = rows(storage, OwnerRow, OwnerRow.trial_id == lease.trial_id)
    assert all((owner.ended_at is None) == (owner.ending is None) for owner in owners)
    return sorted((owner.generation, owner.recorded > 0, owner.ending) for owner in owners)


def test_the_history_says_how_each_owner_ended(common_url: str, study: StudyRecord) -> None:
    first, second, third, fourth = (worker_on(common_url, seconds) for seconds in (30, 30, 0.05, 30))
    trial = optuna_study(first, study).ask()
    lease = first.lease_of(trial)
    first.record_epoch(lease, an_epoch(1))
    first.hand_back(lease)
    adopted_by(second, study)
    claimant = second.backend.claimant
    assert claimant is not None
    assert workers.end(first, claimant.worker_id) == 1  # seen to die
    third.record_epoch(adopted_by(third, study), an_epoch(2), Checkpoint(2, "state.pt", "0" * 64))
    last = adopted_by(fourth, study)  # when its lease has expired
    assert history(first, lease) == [(1, True, "handed_back"), (2, False, "died"), (3, True, "died"), (4, False, None)]
    fourth.settle(optuna_study(fourth, study), Trial(optuna_study(fourth, study), last.trial_id), DONE, 0.5)
    assert history(first, lease)[-1] == (4, False, "settled")
    owner = rows(first, OwnerRow, OwnerRow.claim == last.claim)[0]
    assert (owner.worker_id, owner.generation) == (last.worker_id, 4)


def test_only_what_takes_a_trial_further_counts(worker: SharedStorage, study: StudyRecord) -> None:
    trial = optuna_study(worker, study).ask()
    lease = worker.lease_of(trial)
    worker.record_epoch(lease, an_epoch(1), Checkpoint(1, "state-1.pt", "1" * 64))
    worker.record_epoch(lease, an_epoch(2))
    worker.hand_back(lease)
    again = adopted_by(worker, study)
    worker.record_epoch(again, an_epoch(2))
    assert history(worker, lease) == [(1, True, "handed_back"), (2, False, None)]
    worker.record_epoch(again, an_epoch(3))
    assert history(worker, lease)[-1] == (2, True, None)


def test_a_worker_that_ends_as_it_should_has_not_died(worker: SharedStorage, study: StudyRecord) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.hand_back(lease)
    assert workers.end(worker, lease.worker_id) == 0
    assert history(worker, lease) == [(1, False, "handed_back")]


def die(worker: SharedStorage, study: StudyRecord, times: int = 1) -> Lease | GivenUp | None:
    """Whoever holds the trial dies, and the next takes it over, so many times; what the last one found."""
    claimant = worker.backend.claimant
    assert claimant is not None
    found = None
    for _ in range(times):
        workers.end(worker, claimant.worker_id)
        found = worker.adopt(study.study_id)
    return found


def test_a_trial_whose_last_five_owners_died_with_nothing_is_lost(worker: SharedStorage, study: StudyRecord) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1))
    assert isinstance(die(worker, study, times=5), Lease)  # the first of these had left an epoch
    other = worker.lease_of(optuna_study(worker, study).ask())
    lost = die(worker, study)
    adopted = worker.adopt(study.study_id)
    assert isinstance(adopted, Lease)
    assert adopted.trial_id == other.trial_id  # the search for a trial goes on

    trial = worker.get_trial(lease.trial_id)
    reason = "the last 5 workers that trained it died without a new epoch"
    told = {"outcome": "lost", "reason": reason, "epochs": 1, "seconds": 0.25}
    assert (trial.state, trial.user_attrs) == (TrialState.FAIL, told)
    assert trial.datetime_complete is not None
    assert lost == GivenUp(trial.number, reason)
    (row,) = rows(worker, TrialRow, TrialRow.trial_id == lease.trial_id)
    assert (row.outcome, row.reason) == ("lost", reason)
    assert rows(worker, LeaseRow, LeaseRow.trial_id == lease.trial_id) == []
    assert history(worker, lease) == [(1, True, "died"), *((generation, False, "died") for generation in range(2, 7))]
    now = fresh(worker, study)
    assert (now.taken, now.returned) == (2, 0)  # its ticket stays spent


def test_a_kill_for_want_of_memory_is_a_death_like_any_other(worker: SharedStorage, study: StudyRecord) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    died, killed = OwnerEnding.DIED, OwnerEnding.OUT_OF_MEMORY
    for how in (killed, died, killed, killed, killed):
        workers.end(worker, lease.worker_id, how)
        worker.adopt(study.study_id)
    assert worker.get_trial(lease.trial_id).user_attrs["outcome"] == "lost"
    assert [ending for *_, ending in history(worker, lease)] == ["out_of_memory", "died", *["out_of_memory"] * 3]


@pytest.mark.parametrize("gentle", ["hands it back", "records an epoch"])
def test_one_owner_that_did_not_die_in_vain_saves_a_trial(
    worker: SharedStorage, study: StudyRecord, gentle: str
) -> None:
    first = worker.lease_of(optuna_study(worker, study).ask())
    lease = die(worker, study, times=3)
    assert isinstance(lease, Lease)
    if gentle == "hands it back":
        worker.hand_back(lease)
        worker.adopt(study.study_id)
    else:
        worker.record_epoch(lease, an_epoch(1))
    last = die(worker, study, times=4)
    assert isinstance(last, Lease)
    assert last.trial_id == first.trial_id
