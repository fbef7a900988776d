"""What can be wrong with a trial, its lease and its owners; further kinds beside those of `storage.faults`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session

from storage.claims import new_uuid
from storage.engine import database_now
from storage.leases import HANDED_BACK, record_told
from storage.mending import Fault, runs
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.tables import (
    CheckpointRow,
    EpochRow,
    LeaseRow,
    OwnerEnding,
    OwnerRow,
    TrialRow,
)


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
                and_(TrialRow.outcome.is_(None), lease.claim.is_(None)),
                and_(TrialRow.outcome.is_not(None), trial.state == TrialState.RUNNING),
                and_(TrialRow.outcome.is_not(None), lease.claim.is_not(None)),
            )
        )
        .order_by(trial.trial_id)
    )
    for row in session.execute(query if key is None else query.where(trial.trial_id == key)):
        what, mending, mend = _torn(row)
        name = f"{row.study_name}: trial {row.number}"
        yield Fault(torn_trials, row.trial_id, f"{name} {what}", mending, row.study_id, row.trial_id, mend)


_Way = tuple[str, str, Callable[[Session], None]]


def _torn(row: Any) -> _Way:
    """What is wrong with a trial, what is so afterwards, and the statements."""
    if row.ticket is None:
        ticket = insert(TrialRow).values(
            trial_id=row.trial_id, study_id=row.study_id, ticket=new_uuid(), reason="", started_at=database_now()
        )
        return "is leased and has no ticket", "it has one", runs(ticket)
    return _unsettled(row) if row.outcome is None else _settled(row)


def _unsettled(row: Any) -> _Way:
    lease = delete(LeaseRow).where(LeaseRow.trial_id == row.trial_id)
    if row.state == TrialState.RUNNING:
        what = "is RUNNING and nobody has its lease, so that nobody can take it over"
        return what, "any worker takes it over", lambda session: _leave(session, row)
    if row.state == TrialState.WAITING:
        ticket = delete(TrialRow).where(TrialRow.trial_id == row.trial_id)
        return "is WAITING and has a ticket already", "it has none", runs(ticket, lease)

    def settle(session: Session) -> None:
        runs(lease)(session)
        record_told(session, row.trial_id, row.state)

    what = f"is {row.state.name} and was never settled: somebody else told it"
    return what, f"settled as {Outcome.of(row.state).text}", settle


def _settled(row: Any) -> _Way:
    lease = delete(LeaseRow).where(LeaseRow.trial_id == row.trial_id)
    if row.state != TrialState.RUNNING:
        return "is settled and still leased", "nobody has its lease", runs(lease)
    outcome = Outcome(row.outcome)
    what = f"is settled as {outcome.text} and still RUNNING"
    if outcome is not Outcome.COMPLETE:
        ended = update(models.TrialModel).where(models.TrialModel.trial_id == row.trial_id)
        ended = ended.values(state=outcome.state, datetime_complete=datetime.now())
        return what, f"it is {outcome.state.name}", runs(ended, lease)
    unsettled = update(TrialRow).where(TrialRow.trial_id == row.trial_id)
    unsettled = unsettled.values(outcome=None, settlement=None, settled_at=None, reason="")

    def leave(session: Session) -> None:  # a complete trial has a value, and this one's is not known
        runs(unsettled, lease)(session)
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
            mend=runs(ended.values(ending=ending, ended_at=database_now())),
        )
