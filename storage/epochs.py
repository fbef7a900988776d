"""One epoch in the database: Optuna's intermediate value and our row of what it cost; called by `storage.shared`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage.claims import Epoch, Lease
from storage.engine import database_now, insert_for
from storage.optuna_internals import models
from storage.tables import EpochRow


class Written(Enum):
    """What became of an epoch that was to be recorded.

    NEW: its trial got further. AGAIN: it took the place of one of that number. ALREADY: this very one was on record,
    as where the answer to its COMMIT was lost; nothing is written.
    """

    NEW = 1
    AGAIN = 2
    ALREADY = 3


def write(session: Session, lease: Lease, epoch: Epoch) -> Written:
    """Put it on record. The lease is locked: nobody else writes an epoch of its trial meanwhile."""
    row = EpochRow
    before = session.execute(
        select(row.generation, row.metrics, row.seconds, row.samples).where(
            row.trial_id == lease.trial_id, row.epoch == epoch.epoch
        )
    ).one_or_none()
    metrics = json.dumps(dict(epoch.metrics))
    if before is not None and tuple(before) == (lease.generation, metrics, epoch.seconds, epoch.samples):
        return Written.ALREADY
    if epoch.value is not None:
        _write_value(session, lease, epoch.epoch, epoch.value)
    values = {
        "generation": lease.generation,
        "worker_id": lease.worker_id,
        "metrics": metrics,
        "seconds": epoch.seconds,
        "samples": epoch.samples,
        "device": epoch.device,
        "devices": epoch.devices,
        "ended_at": database_now(),
    }
    _upsert(session, EpochRow, {"trial_id": lease.trial_id, "epoch": epoch.epoch}, values)
    return Written.NEW if before is None else Written.AGAIN


def cost(session: Session, trial_id: int) -> tuple[int, float]:
    """Epochs on record of a trial, under all its owners, and their seconds."""
    query = select(func.count(), func.coalesce(func.sum(EpochRow.seconds), 0.0))
    epochs, seconds = session.execute(query.where(EpochRow.trial_id == trial_id)).one()
    return epochs, float(seconds)


def _write_value(session: Session, lease: Lease, step: int, value: float) -> None:
    """What pruners see."""
    table = models.TrialIntermediateValueModel
    stored, kind = table.intermediate_value_to_stored_repr(value)
    values = {"intermediate_value": stored, "intermediate_value_type": kind}
    _upsert(session, table, {"trial_id": lease.trial_id, "step": step}, values)


def _upsert(session: Session, table: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    statement = insert_for(session, table).values(**key, **values)
    session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
