"""One epoch in the database: Optuna's intermediate value and our row of what it cost; called by `storage.shared`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import cast, func, literal, select
from sqlalchemy.orm import Session

from storage.claims import Epoch, Lease
from storage.engine import database_now, insert_for
from storage.leases import HANDED_BACK, owned_by
from storage.optuna_internals import models
from storage.tables import EpochRow, LeaseRow


class Written(Enum):
    """What became of an epoch that was to be recorded.

    NEW: its trial got further. AGAIN: it took the place of one of that number. ALREADY: this very one was on record,
    as where the answer to its COMMIT was lost; nothing is written.
    """

    NEW = 1
    AGAIN = 2
    ALREADY = 3


def append(session: Session, lease: Lease, epoch: Epoch) -> float | None:
    """Put an epoch on record that is new, under a lease that is still its owner's, in one statement.

    Seconds that the lease has left in return; None, and nothing is written, where it is not so: see `write` and
    `storage.leases` for why. Trial and lease are locked in this order, as by all others.
    """
    trial, held = models.TrialModel, LeaseRow
    columns = _columns(lease, epoch)
    fence = (
        select(*(column if name == "ended_at" else _typed(name, column) for name, column in columns.items()))
        .select_from(trial)
        .join(held, held.trial_id == trial.trial_id)
        .where(owned_by(lease), held.expires_at > HANDED_BACK, trial.state == TrialState.RUNNING)
        .with_for_update(key_share=True, of=[trial, held])
    )
    left = select(held.expires_at - database_now()).where(held.trial_id == lease.trial_id).scalar_subquery()
    statement = insert_for(session, EpochRow).from_select(list(columns), fence).on_conflict_do_nothing()
    row = session.connection().execute(statement.returning(left)).one_or_none()
    if row is None:
        return None
    _write_value(session, lease, epoch)
    return float(row[0])


def write(session: Session, lease: Lease, epoch: Epoch) -> Written:
    """Put it on record, also where one of that number is. The lease is locked: nobody else writes one meanwhile."""
    row = EpochRow
    before = session.execute(
        select(row.generation, row.metrics, row.seconds, row.samples).where(
            row.trial_id == lease.trial_id, row.epoch == epoch.epoch
        )
    ).one_or_none()
    columns = _columns(lease, epoch)
    same = ("generation", "metrics", "seconds", "samples")
    if before is not None and tuple(before) == tuple(columns[name] for name in same):
        return Written.ALREADY
    _write_value(session, lease, epoch)
    key = {name: columns.pop(name) for name in ("trial_id", "epoch")}
    _upsert(session, EpochRow, key, columns)
    return Written.NEW if before is None else Written.AGAIN


def _columns(lease: Lease, epoch: Epoch) -> dict[str, Any]:
    return {
        "trial_id": lease.trial_id,
        "epoch": epoch.epoch,
        "generation": lease.generation,
        "worker_id": lease.worker_id,
        "metrics": json.dumps(dict(epoch.metrics)),
        "seconds": epoch.seconds,
        "samples": epoch.samples,
        "device": epoch.device,
        "devices": epoch.devices,
        "ended_at": database_now(),
    }


def _typed(name: str, value: Any) -> Any:
    """A value in a SELECT: PostgreSQL would take it for text."""
    kind = EpochRow.__table__.c[name].type
    return cast(literal(value, kind), kind)


def cost(session: Session, trial_id: int) -> tuple[int, float]:
    """Epochs on record of a trial, under all its owners, and their seconds."""
    query = select(func.count(), func.coalesce(func.sum(EpochRow.seconds), 0.0))
    epochs, seconds = session.execute(query.where(EpochRow.trial_id == trial_id)).one()
    return epochs, float(seconds)


def _write_value(session: Session, lease: Lease, epoch: Epoch) -> None:
    """What pruners see."""
    if epoch.value is None:
        return
    table = models.TrialIntermediateValueModel
    stored, kind = table.intermediate_value_to_stored_repr(epoch.value)
    values = {"intermediate_value": stored, "intermediate_value_type": kind}
    _upsert(session, table, {"trial_id": lease.trial_id, "step": epoch.epoch}, values)


def _upsert(session: Session, table: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    statement = insert_for(session, table).values(**key, **values)
    session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))
