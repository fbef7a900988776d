"""Epochs in the database: Optuna's intermediate values and our rows of what they cost; called by `storage.shared`."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from enum import Enum
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Float, bindparam, cast, func, select
from sqlalchemy.orm import Session

from storage.claims import Epoch, Lease
from storage.engine import database_now, insert_for
from storage.leases import HANDED_BACK
from storage.optuna_internals import models
from storage.tables import EpochRow, LeaseRow

# Columns by which an epoch is known for the very one that was to be recorded.
_TOLD = ("generation", "metrics", "seconds", "samples")


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

    Seconds that the lease has left in return. None: the lease is lost, or an epoch of that number is on record; who
    then checks the lease and calls `write` finds out which. Trial and lease are locked in this order, as by all others.
    """
    connection = session.connection()
    given = {_given(name): value for name, value in _columns(lease, epoch).items()} | _ago(epoch)
    left = connection.execute(_append(connection.dialect.name), given).scalar_one_or_none()
    if left is None:
        return None
    _write_values(session, lease, [epoch])
    return float(left)


def _given(name: str) -> str:
    """What a column's value is called in a statement that is made once: its own name is taken."""
    return f"given_{name}"


@functools.cache
def _append(dialect: str) -> Any:
    """The statement of `append`, made once: that takes longer than the database does."""
    trial, held, table = models.TrialModel.__table__, LeaseRow.__table__, EpochRow.__table__
    # PostgreSQL takes a value in a SELECT for text.
    given = {c.name: cast(bindparam(_given(c.name), type_=c.type), c.type) for c in table.c if c.name != "ended_at"}
    mine = [held.c[name] == given[name] for name in ("trial_id", "worker_id", "generation")]
    fence = (
        select(*given.values(), _ended())
        .select_from(trial.join(held, held.c.trial_id == trial.c.trial_id))
        .where(*mine, held.c.expires_at > HANDED_BACK, trial.c.state == TrialState.RUNNING)
        .with_for_update(key_share=True, of=[trial, held])
    )
    left = select(held.c.expires_at - database_now()).where(held.c.trial_id == given["trial_id"]).scalar_subquery()
    statement = insert_for(dialect, table).from_select([*given, "ended_at"], fence)
    return statement.on_conflict_do_nothing().returning(left)


def add(session: Session, lease: Lease, epochs: Sequence[Epoch]) -> list[Written]:
    """Put epochs of different numbers on record, all that are new in two statements. The lease is locked."""
    if not epochs:
        return []
    connection = session.connection()
    given = [_columns(lease, epoch) | _ago(epoch) for epoch in epochs]
    new = {*connection.execute(_add(connection.dialect.name), given).scalars()}
    _write_values(session, lease, [epoch for epoch in epochs if epoch.epoch in new])
    return [Written.NEW if epoch.epoch in new else write(session, lease, epoch) for epoch in epochs]


@functools.cache
def _add(dialect: str) -> Any:
    table = EpochRow.__table__
    statement = insert_for(dialect, table).values(ended_at=_ended())
    return statement.on_conflict_do_nothing().returning(table.c.epoch)


def write(session: Session, lease: Lease, epoch: Epoch) -> Written:
    """Put it on record, also where one of that number is. The lease is locked: nobody else writes one meanwhile."""
    row, columns = EpochRow, _columns(lease, epoch)
    told = select(*(getattr(row, name) for name in _TOLD))
    on_record = told.where(row.trial_id == lease.trial_id, row.epoch == epoch.epoch)
    before = session.execute(on_record).one_or_none()
    if before is not None and tuple(before) == tuple(columns[name] for name in _TOLD):
        return Written.ALREADY
    _write_values(session, lease, [epoch])
    replaced = columns | {"ended_at": _ended()}
    key = ["trial_id", "epoch"]
    statement = insert_for(session.get_bind().dialect.name, row).values(replaced)
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=replaced), _ago(epoch))
    return Written.NEW if before is None else Written.AGAIN


def _columns(lease: Lease, epoch: Epoch) -> dict[str, Any]:
    """All but `ended_at`."""
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
    }


def _ended() -> Any:
    """When an epoch ended, by the database's clock: so many seconds ago."""
    return database_now() - bindparam("ago", type_=Float(53))


def _ago(epoch: Epoch) -> dict[str, float]:
    """How long it has waited to be recorded."""
    return {"ago": 0.0 if epoch.ended is None else time.monotonic() - epoch.ended}


def cost(session: Session, trial_id: int) -> tuple[int, float]:
    """Epochs on record of a trial, under all its owners, and their seconds."""
    query = select(func.count(), func.coalesce(func.sum(EpochRow.seconds), 0.0))
    epochs, seconds = session.execute(query.where(EpochRow.trial_id == trial_id)).one()
    return epochs, float(seconds)


def _write_values(session: Session, lease: Lease, epochs: Sequence[Epoch]) -> None:
    """What pruners see."""
    table, rows = models.TrialIntermediateValueModel, list[dict[str, Any]]()
    for epoch in epochs:
        if epoch.value is not None:
            stored, kind = table.intermediate_value_to_stored_repr(epoch.value)
            values = {"intermediate_value": stored, "intermediate_value_type": kind}
            rows.append({"trial_id": lease.trial_id, "step": epoch.epoch} | values)
    if rows:
        connection = session.connection()
        connection.execute(_upsert_value(connection.dialect.name), rows)


@functools.cache
def _upsert_value(dialect: str) -> Any:
    statement = insert_for(dialect, models.TrialIntermediateValueModel.__table__)
    replaced = {name: statement.excluded[name] for name in ("intermediate_value", "intermediate_value_type")}
    return statement.on_conflict_do_update(index_elements=["trial_id", "step"], set_=replaced)
