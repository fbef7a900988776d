"""What can be wrong in a database: each function finds one kind, and says what puts it right (`storage.checking`).

Nothing of this comes from workers that die: their transactions are whole. It comes from what others do to the tables
(a trial told by optuna-dashboard, a row deleted by hand, a study deleted by a client that heeds no foreign keys), from
a disk that lied, and from faults of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Table, and_, delete, exists, func, insert, or_, select, text, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from storage import patience
from storage.claims import new_uuid
from storage.engine import database_now
from storage.leases import HANDED_BACK, record_told
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.tables import (
    Base,
    CheckpointRow,
    EpochRow,
    LeaseRow,
    OwnerEnding,
    OwnerRow,
    StudyRow,
    TrialRow,
)
from storage.words import counted


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        kind: the function that found it, and `key` what it finds this one again by.
        what: one line for people; `mending`: what is so after it was mended, empty where nothing mends it.
        study_id, trial_id: which of the two is locked while it is mended.
        mend: the statements.
    """

    kind: Finder
    key: Any
    what: str
    mending: str = ""
    study_id: int | None = None
    trial_id: int | None = None
    mend: Callable[[Session], None] | None = field(default=None, compare=False)


# Finds all faults of its kind, or the one with this key.
Finder = Callable[[Session, Any], Iterable[Fault]]


def _runs(*statements: Any) -> Callable[[Session], None]:
    """What executes them, one after the other."""

    def run(session: Session) -> None:
        for statement in statements:
            session.execute(statement.execution_options(synchronize_session=False))

    return run


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
                f"{counted(count, 'row')} of {table.name} of studies or trials that are gone",
                "deleted",
                mend=_runs(delete(table).where(gone)),
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


def torn_trials(session: Session, key: int | None) -> Iterator[Fault]:
    """Trials whose state, ticket, settlement and lease do not say the same."""
    trial, lease = models.TrialModel, LeaseRow
    query = (
        select(
            trial.trial_id,
            trial.study_id,
            trial.number,
            trial.state,
            models.StudyModel.study_name,
            TrialRow.ticket,
            TrialRow.outcome,
            TrialRow.paused,
            lease.claim,
        )
        .join(models.StudyModel, models.StudyModel.study_id == trial.study_id)
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(lease, lease.trial_id == trial.trial_id)
        .where(or_(TrialRow.ticket.is_not(None), lease.claim.is_not(None)))
        .where(
            or_(
                TrialRow.ticket.is_(None),
                and_(TrialRow.outcome.is_(None), trial.state != TrialState.RUNNING),
                and_(TrialRow.outcome.is_(None), lease.claim.is_(None), TrialRow.paused.is_(None)),
                and_(TrialRow.paused.is_not(None), or_(lease.claim.is_not(None), TrialRow.outcome.is_not(None))),
                and_(TrialRow.outcome.is_not(None), trial.state == TrialState.RUNNING),
                and_(TrialRow.outcome.is_not(None), lease.claim.is_not(None)),
            )
        )
        .order_by(trial.trial_id)
    )
    for row in session.execute(query if key is None else query.where(trial.trial_id == key)):
        what, mending, mend = _torn(row)
        name = f"{row.study_name}: trial {row.number}"
        yield Fault(torn_trials, row.trial_id, f"{name} {what}", mending, trial_id=row.trial_id, mend=mend)


_Way = tuple[str, str, Callable[[Session], None]]


def _torn(row: Any) -> _Way:
    """What is wrong with a trial, what is so afterwards, and the statements."""
    if row.ticket is None:
        ticket = insert(TrialRow).values(
            trial_id=row.trial_id, study_id=row.study_id, ticket=new_uuid(), reason="", started_at=database_now()
        )
        return "is leased and has no ticket", "it has one", _runs(ticket)
    if row.paused is not None and row.state == TrialState.RUNNING and row.claim is not None:
        return "is paused and still leased", "whoever has its lease goes on with it", _runs(_no_pause(row))
    if row.paused is not None and row.state.is_finished() and row.outcome is not None:
        return "is settled and still paused", "it is paused no longer", _runs(_no_pause(row))
    return _unsettled(row) if row.outcome is None else _settled(row)


def _no_pause(row: Any) -> Any:
    return update(TrialRow).where(TrialRow.trial_id == row.trial_id).values(paused=None)


def _unsettled(row: Any) -> _Way:
    lease = delete(LeaseRow).where(LeaseRow.trial_id == row.trial_id)
    if row.state == TrialState.RUNNING:
        what = "is RUNNING and nobody has its lease, so that nobody can take it over"
        return what, "any worker takes it over", lambda session: _leave(session, row)
    if row.state == TrialState.WAITING:
        ticket = delete(TrialRow).where(TrialRow.trial_id == row.trial_id)
        return "is WAITING and has a ticket already", "it has none", _runs(ticket, lease)

    def settle(session: Session) -> None:
        _runs(lease)(session)
        record_told(session, row.trial_id, row.state)

    what = f"is {row.state.name} and was never settled: somebody else told it"
    return what, f"settled as {Outcome.of(row.state).text}", settle


def _settled(row: Any) -> _Way:
    lease = delete(LeaseRow).where(LeaseRow.trial_id == row.trial_id)
    if row.state != TrialState.RUNNING:
        return "is settled and still leased", "nobody has its lease", _runs(lease)
    outcome = Outcome(row.outcome)
    what = f"is settled as {outcome.text} and still RUNNING"
    if outcome is not Outcome.COMPLETE:
        ended = update(models.TrialModel).where(models.TrialModel.trial_id == row.trial_id)
        ended = ended.values(state=outcome.state, datetime_complete=datetime.now())
        return what, f"it is {outcome.state.name}", _runs(ended, lease)
    unsettled = update(TrialRow).where(TrialRow.trial_id == row.trial_id)
    unsettled = unsettled.values(outcome=None, settlement=None, settled_at=None, paused=None, reason="")

    def leave(session: Session) -> None:  # a complete trial has a value, and this one's is not known
        _runs(unsettled, lease)(session)
        _leave(session, row)

    return what, "any worker takes it over", leave


def _leave(session: Session, row: Any) -> None:
    """A lease that was handed back, of the last generation that left a trace: who adopts it has a higher one."""
    traces = [
        session.scalar(select(func.max(table.generation)).where(table.trial_id == row.trial_id)) or 1
        for table in (OwnerRow, EpochRow, CheckpointRow)
    ]
    session.execute(
        insert(LeaseRow).values(
            trial_id=row.trial_id,
            study_id=row.study_id,
            worker_id=new_uuid(),  # nobody's
            generation=max(traces),
            claim=new_uuid(),
            expires_at=HANDED_BACK,
        )
    )


def owners_never_ended(session: Session, key: tuple[int, int] | None) -> Iterator[Fault]:
    """Owners on record as if they still held a trial that is settled, handed back or another's."""
    trial, lease, later = models.TrialModel, LeaseRow, OwnerRow.__table__.alias()
    holds = exists().where(
        lease.trial_id == OwnerRow.trial_id,
        lease.generation == OwnerRow.generation,
        lease.worker_id == OwnerRow.worker_id,
        lease.expires_at != HANDED_BACK,
    )
    followed = exists().where(later.c.trial_id == OwnerRow.trial_id, later.c.generation > OwnerRow.generation)
    query = (
        select(
            OwnerRow.trial_id,
            OwnerRow.generation,
            trial.number,
            trial.state,
            models.StudyModel.study_name,
            followed.label("followed"),
        )
        .join(trial, trial.trial_id == OwnerRow.trial_id)
        .join(models.StudyModel, models.StudyModel.study_id == trial.study_id)
        .where(OwnerRow.ending.is_(None), ~holds)
        .order_by(OwnerRow.trial_id, OwnerRow.generation)
    )
    for row in session.execute(query if key is None else query.where(OwnerRow.trial_id == key[0])):
        if row.followed:
            ending = OwnerEnding.DIED
        else:
            ending = OwnerEnding.HANDED_BACK if row.state == TrialState.RUNNING else OwnerEnding.SETTLED
        mine = and_(OwnerRow.trial_id == row.trial_id, OwnerRow.generation == row.generation)
        ended = update(OwnerRow).where(mine, OwnerRow.ending.is_(None))
        yield Fault(
            owners_never_ended,
            (row.trial_id, row.generation),
            f"{row.study_name}: owner {row.generation} of trial {row.number} has no lease and never ended",
            f"its ending is {ending.value}",
            trial_id=row.trial_id,
            mend=_runs(ended.values(ending=ending, ended_at=database_now())),
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
                mend=_runs(update(StudyRow).where(StudyRow.study_id == study.study_id).values(wrong)),
            )


def _count(column: Any, *conditions: Any) -> Any:
    return select(func.count(column)).where(*conditions).correlate(StudyRow).scalar_subquery()
