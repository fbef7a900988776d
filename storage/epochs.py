"""One epoch in the database: Optuna's intermediate value and our row of what it cost; called by `storage.shared`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from storage.claims import Epoch, Lease
from storage.engine import database_now
from storage.optuna_internals import models
from storage.tables import EpochRow


def write(session: Session, lease: Lease, epoch: Epoch) -> bool:
    """Put it on record in the place of one of that number; whether there was none, and the trial got further."""
    place = EpochRow.trial_id == lease.trial_id, EpochRow.epoch == epoch.epoch
    new = session.scalar(select(EpochRow.epoch).where(*place)) is None
    if epoch.value is not None:
        _write_value(session, lease, epoch.epoch, epoch.value)
    values = {
        "generation": lease.generation,
        "worker_id": lease.worker_id,
        "metrics": json.dumps(dict(epoch.metrics)),
        "seconds": epoch.seconds,
        "samples": epoch.samples,
        "device": epoch.device,
        "devices": epoch.devices,
        "ended_at": database_now(),
    }
    _upsert(session, EpochRow, {"trial_id": lease.trial_id, "epoch": epoch.epoch}, values)
    return new


def _write_value(session: Session, lease: Lease, step: int, value: float) -> None:
    """What pruners see."""
    table = models.TrialIntermediateValueModel
    stored, kind = table.intermediate_value_to_stored_repr(value)
    values = {"intermediate_value": stored, "intermediate_value_type": kind}
    _upsert(session, table, {"trial_id": lease.trial_id, "step": step}, values)


def _upsert(session: Session, table: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(**key, **values)
    session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
