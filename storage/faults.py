"""What can be wrong in a database: each function finds one kind, and says what puts it right (`storage.mending`).

Nothing of this comes from workers that die: their transactions are whole. It comes from what others do to the tables
(a trial told by optuna-dashboard, a row deleted by hand, a study deleted by a client that heeds no foreign keys), from
a disk that lied, and from faults of our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, delete, exists, func, or_, select, text, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from storage import patience
from storage.engine import database_now
from storage.mending import Fault, runs
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.tables import Base, EpochRow, StudyRow, TrialRow, WorkerRow


def damaged(session: Session, _key: Any) -> Iterator[Fault]:
    """A SQLite file that a disk or another program has spoilt."""
    if session.get_bind().dialect.name != "sqlite":
        return
    try:
        found = session.scalars(text("PRAGMA quick_check(1)")).first()
    except DatabaseError as error:  # what is spoilt keeps it from being looked at
        found = patience.one_line(error)
    if found != "ok":
        said = " ".join(str(found).split())
        yield Fault(damaged, None, f"the file is damaged ({said}): restore a copy, or what sqlite3's .recover saves")


def left_over(session: Session, key: str | None) -> Iterator[Fault]:
    """Rows of studies and trials that are gone. Those that others refer to come last."""
    for table in _referring():
        if key not in (None, table.name):
            continue
        gone = ~_whole(table)
        count = session.scalar(select(func.count()).select_from(table).where(gone)) or 0
        if count:
            yield Fault(
                left_over,
                table.name,
                f"{count} row{'s' * (count != 1)} of {table.name} of studies or trials that are gone",
                "deleted",
                mend=runs(delete(table).where(gone)),
            )


def _referring() -> list[Table]:
    tables = [*Base.metadata.tables.values(), *reversed(models.BaseModel.metadata.sorted_tables)]
    return [table for table in tables if table.foreign_keys]


def _whole(table: Any) -> ColumnElement[bool]:
    """All that a row of the table refers to is there, and all that this refers to."""
    conditions = []
    for column in table.c:
        for key in column.foreign_keys:
            parent = key.column.table.alias()
            there = exists().where(parent.c[key.column.key] == column, _whole(parent))
            conditions.append(or_(column.is_(None), there))
    return and_(True, *conditions)


def workers_never_ended(session: Session, key: str | None) -> Iterator[Fault]:
    """Not seen for longer than a worker waits for a database that is away."""
    silent = WorkerRow.last_seen < database_now() - patience.away_seconds()
    query = (
        select(
            WorkerRow.worker_id,
            WorkerRow.host,
            WorkerRow.pid,
            models.StudyModel.study_name,
            (database_now() - WorkerRow.last_seen).label("seconds"),
        )
        .join(models.StudyModel, models.StudyModel.study_id == WorkerRow.study_id)
        .where(WorkerRow.ended_at.is_(None), silent)
        .order_by(WorkerRow.started_at)
    )
    for row in session.execute(query if key is None else query.where(WorkerRow.worker_id == key)):
        ended = (
            update(WorkerRow)
            .where(WorkerRow.worker_id == row.worker_id, silent)
            .values(ended_at=WorkerRow.last_seen, slot_key=None)
        )
        yield Fault(
            workers_never_ended,
            row.worker_id,
            f"{row.study_name}: the worker on {row.host}, pid {row.pid}, was not seen for {row.seconds:.0f} s and never"
            " ended",
            "ended when it was last seen",
            mend=runs(ended),
        )


def wrong_counters(session: Session, key: int | None) -> Iterator[Fault]:
    """What a study has taken and spent, against the rows."""
    started = _count(TrialRow.trial_id, TrialRow.study_id == StudyRow.study_id)
    errors = _count(TrialRow.trial_id, TrialRow.study_id == StudyRow.study_id, TrialRow.outcome == Outcome.ERROR)
    of_study = and_(EpochRow.trial_id == TrialRow.trial_id, TrialRow.study_id == StudyRow.study_id)
    query = select(
        StudyRow,
        models.StudyModel.study_name.label("name"),
        started.label("started"),
        errors.label("errors"),
        _count(EpochRow.epoch, of_study).label("epochs"),
        select(func.coalesce(func.sum(EpochRow.seconds * EpochRow.devices), 0.0))
        .where(of_study)
        .correlate(StudyRow)
        .scalar_subquery()
        .label("seconds"),
    ).join(models.StudyModel, models.StudyModel.study_id == StudyRow.study_id)
    for row in session.execute(query if key is None else query.where(StudyRow.study_id == key)):
        study = row.StudyRow
        returned = min(study.returned, row.errors)
        right = {
            "returned": returned,
            "taken": row.started - returned,
            "spent_epochs": row.epochs,
            # Epochs that were trained again have cost as well, and so has what came after a trial's last one.
            "spent_seconds": study.spent_seconds if study.spent_seconds > 0.999 * row.seconds else row.seconds,
        }
        wrong = {name: value for name, value in right.items() if getattr(study, name) != value}
        if wrong:
            yield Fault(
                wrong_counters,
                study.study_id,
                f"{row.name}: {', '.join(f'{name} is {getattr(study, name)}' for name in wrong)}",
                ", ".join(f"{name} is {value}" for name, value in wrong.items()),
                study_id=study.study_id,
                mend=runs(update(StudyRow).where(StudyRow.study_id == study.study_id).values(wrong)),
            )


def _count(column: Any, *conditions: Any) -> Any:
    return select(func.count(column)).where(*conditions).correlate(StudyRow).scalar_subquery()
