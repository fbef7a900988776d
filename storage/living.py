"""Which workers are alive: those that have given a sign of life within a lease's length."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.orm import Session

from storage.claims import LEASE_SECONDS
from storage.engine import database_now
from storage.tables import QueueWorkerRow, WorkerRow


def alive(row: type[WorkerRow] | type[QueueWorkerRow] = WorkerRow) -> ColumnElement[bool]:
    """The condition on a worker's row: as the worker of one study, or of the queue."""
    return row.ended_at.is_(None) & (row.last_seen > database_now() - LEASE_SECONDS)


def count(connection: Connection | Session, *conditions: ColumnElement[bool]) -> int:
    """How many are alive, of those that the conditions choose."""
    return connection.scalar(select(func.count()).select_from(WorkerRow).where(alive(), *conditions)) or 0


def of_study(study_id: int) -> Any:
    """How many of a study's are alive, as a part of another statement."""
    return select(func.count()).select_from(WorkerRow).where(alive(), WorkerRow.study_id == study_id).scalar_subquery()
