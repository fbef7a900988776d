"""What is on record of a trial's epochs; called by whoever goes on with the trial, to tell the whole of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select

from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import EpochRow


@dataclass(frozen=True)
class RecordedEpoch:
    """One epoch on record: every metric by name, its wall time, and when it ended (seconds since 1970)."""

    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    ended_at: float


@patient
def recorded(storage: SharedStorage, trial_id: int, last: int) -> list[RecordedEpoch]:
    """The epochs of a trial up to `last`, in order, under whichever owner."""
    query = (
        select(EpochRow.epoch, EpochRow.metrics, EpochRow.seconds, EpochRow.ended_at)
        .where(EpochRow.trial_id == trial_id, EpochRow.epoch <= last)
        .order_by(EpochRow.epoch)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
    return [RecordedEpoch(epoch, json.loads(metrics), seconds, at) for epoch, metrics, seconds, at in rows]
