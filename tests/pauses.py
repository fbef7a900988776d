"""Short ways to a paused trial, for the storage tests."""

from __future__ import annotations

from optuna.trial import Trial
from storage_places import (
    an_epoch,
    optuna_study,
)

from storage import pausing
from storage.claims import Checkpoint, Lease
from storage.shared import SharedStorage
from storage.studies import StudyRecord


def train(storage: SharedStorage, lease: Lease, last: int, value: float = 0.5, size: int | None = None) -> None:
    """Up to an epoch, each with a checkpoint."""
    for epoch in range(storage.cost(lease)[0] + 1, last + 1):
        path = f"trial-{lease.trial_id}/state-{epoch}.g{lease.generation}.pt"
        storage.record_epoch(lease, an_epoch(epoch, value), Checkpoint(epoch, path, "0" * 64, size=size))


def paused(storage: SharedStorage, study: StudyRecord, epochs: int = 2, value: float = 0.5, size: int = 10) -> Trial:
    """A trial that is paused after so many epochs."""
    trial: Trial = optuna_study(storage, study).ask()
    lease = storage.lease_of(trial)
    with storage.sampling(trial):
        trial.suggest_float("x", 0, 1)
    train(storage, lease, epochs, value, size)
    assert pausing.pause(storage, lease)
    return trial


def taken(storage: SharedStorage, study: StudyRecord, number: int, by: int = 1) -> Lease:
    lease = pausing.go_on(storage, study.study_id, number, by)
    assert lease is not None
    return lease


def standing(storage: SharedStorage, study: StudyRecord) -> pausing.Standing:
    found = pausing.standing(storage, study.study_id)
    assert found is not None
    return found
