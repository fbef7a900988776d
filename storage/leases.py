"""The statements of a trial's life: take, renew, hand back, adopt, settle; called inside a transaction.

What becomes of each owner is written beside it (`storage.owners`).

Each is one conditional statement whose row count decides, so that it is right with any number of workers on
SQLite and on PostgreSQL. A row count of 0 never needs a second look to be safe; where one follows, it only finds
the words to say why.

Rows are locked in one order, so that no two workers wait for each other: Optuna's study, its trial, our lease, what
hangs on it, our study.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, CursorResult, Select, and_, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from storage import concurrency, limits, owners
from storage.claims import BudgetSpent, Claimant, Lease, LeaseLost, Settlement, StudyStopped, new_uuid
from storage.engine import database_now
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.tables import (
    CheckpointKind,
    CheckpointRow,
    LeaseRow,
    OwnerEnding,
    StudyRow,
    StudyState,
    TrialRow,
    WorkerRow,
)

# Objectives that raise so many times in a row are broken, not unlucky.
ERRORS_IN_A_ROW = 3

HANDED_BACK = 0.0

# The reason on record of a trial that no worker settled.
TOLD_ELSEWHERE = "told by another program, as by optuna-dashboard"


def take(session: Session, claimant: Claimant, study_id: int, trial_id: int, ticket: str, claim: str) -> Lease:
    """Ticket and lease for a trial that has just become RUNNING in the same transaction.

    `ticket` and `claim` are UUIDs of the caller's, looked up when the answer to its COMMIT was lost.

    Raises:
        BudgetSpent: all tickets are taken; StudyStopped: the study takes no trials now; StudyFull: it trains as many
            as it may at once. The transaction must be rolled back.
    """
    lease = Lease(trial_id, study_id, claimant.worker_id, generation=1, claim=claim)
    # The trial's rows first: their foreign keys lock Optuna's study row, which a creator of trials holds already.
    session.execute(
        insert(TrialRow).values(
            trial_id=trial_id, study_id=study_id, ticket=ticket, reason="", started_at=database_now()
        )
    )
    begin(session, lease, claimant.lease_seconds)
    taken = session.execute(
        update(StudyRow)
        .where(
            StudyRow.study_id == study_id,
            StudyRow.state == StudyState.RUNNING,
            StudyRow.taken < StudyRow.trials,
            limits.in_time(),
        )
        .values(taken=StudyRow.taken + 1)
        .returning(StudyRow.concurrency)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if taken is None:
        _refuse_ticket(session, study_id)
    elif taken.concurrency is not None:
        concurrency.refuse_beyond(session, study_id)
    return lease


def begin(session: Session, lease: Lease, seconds: float) -> None:
    """A lease of a trial that has none, for so long."""
    session.execute(
        insert(LeaseRow).values(
            trial_id=lease.trial_id,
            study_id=lease.study_id,
            worker_id=lease.worker_id,
            generation=lease.generation,
            claim=lease.claim,
            expires_at=database_now() + seconds,
        )
    )
    owners.began(session, lease)


def _refuse_ticket(session: Session, study_id: int) -> None:
    study = session.execute(
        select(StudyRow.state, StudyRow.reason, StudyRow.trials, StudyRow.deadline, limits.in_time()).where(
            StudyRow.study_id == study_id
        )
    ).one_or_none()
    if study is None:
        return  # a study that Dialin did not make has no budget
    if study.state != StudyState.RUNNING:
        raise StudyStopped(study.reason or f"the study is {study.state}")
    if not study[-1]:
        raise StudyStopped(limits.past(study.deadline))
    raise BudgetSpent(f"all {study.trials} trials are taken")


def owned_by(lease: Lease) -> ColumnElement[bool]:
    """The condition on everything that an owner writes: still the same worker and generation."""
    return and_(
        LeaseRow.trial_id == lease.trial_id,
        LeaseRow.worker_id == lease.worker_id,
        LeaseRow.generation == lease.generation,
    )


def fence(session: Session, trial_id: int, lease: Lease | None) -> None:
    """Lets a process write to a trial that it holds, or that nobody ever claimed, until its transaction ends.

    Raises:
        LeaseLost: the trial is another's, was handed back, paused, settled or deleted.
    """
    state = lock(session, trial_id)
    query = select(LeaseRow.worker_id, LeaseRow.generation, LeaseRow.expires_at)
    row = session.execute(query.where(LeaseRow.trial_id == trial_id).with_for_update(read=True)).one_or_none()
    if lease is not None and (row is None or state != TrialState.RUNNING):
        raise LeaseLost("it was settled or deleted elsewhere")
    mine = (lease.worker_id, lease.generation) if lease is not None else None
    if row is not None and ((row[0], row[1]) != mine or row[2] == HANDED_BACK):
        raise LeaseLost("it is no longer this worker's")
    if row is None and session.scalar(select(TrialRow.paused).where(TrialRow.trial_id == trial_id)) is not None:
        raise LeaseLost("it is paused")


def renew(session: Session, lease: Lease, seconds: float) -> None:
    """Push the lease's end away by `seconds` from now. Raises LeaseLost.

    An expired lease that nobody has adopted is still its owner's; one that was handed back is nobody's.
    """
    held = and_(owned_by(lease), LeaseRow.expires_at > HANDED_BACK)
    renewed = _count(session, update(LeaseRow).where(held).values(expires_at=database_now() + seconds))
    if not renewed:
        raise LeaseLost("it is no longer this worker's")


def renew_all(session: Session, held_now: Iterable[Lease], seconds: float) -> None:
    """The same for whatever a worker knows that it holds, where it does; it may have claimed a trial this moment."""
    claims = [lease.claim for lease in held_now]
    held = and_(LeaseRow.claim.in_(claims), LeaseRow.expires_at > HANDED_BACK)
    session.execute(update(LeaseRow).where(held).values(expires_at=database_now() + seconds))


def lock(session: Session, trial_id: int) -> TrialState | None:
    """Wait for whoever settles or deletes the trial, who locks it before all that hangs on it; its state, if any."""
    trial = models.TrialModel
    query = select(trial.state).where(trial.trial_id == trial_id)
    state: TrialState | None = session.scalar(query.with_for_update(read=True, key_share=True))
    return state


def hand_back(session: Session, lease: Lease) -> None:
    """Any worker may adopt the trial from now on, but one that another program told, which has ended.

    Nothing happens where the lease is lost already.
    """
    told = let_go(session, lease)
    if told is None and _count(session, update(LeaseRow).where(owned_by(lease)).values(expires_at=HANDED_BACK)):
        owners.ended(session, lease.trial_id, lease.generation, OwnerEnding.HANDED_BACK)


def bury(session: Session, worker_id: str, how: OwnerEnding = OwnerEnding.DIED) -> int:
    """A worker has ended: whatever it still held may be adopted; the number of trials.

    One that ends as it should has settled or handed back its trial before.
    """
    row = LeaseRow
    held = select(row.trial_id, row.study_id, row.worker_id, row.generation, row.claim)
    for lease in session.execute(held.where(row.worker_id == worker_id).order_by(row.trial_id)).all():
        let_go(session, Lease(*lease))
    owned = and_(LeaseRow.worker_id == worker_id, LeaseRow.expires_at > HANDED_BACK)
    left = _count(session, update(LeaseRow).where(owned).values(expires_at=HANDED_BACK))
    owners.died(session, worker_id, how)
    return left


def adoptable(session: Session, study_id: int, skip_locked: bool = True) -> Lease | None:
    """The last lease of a trial that may be adopted; the trial is locked. One locked already is in others' hands.

    `skip_locked=False` waits for one that is locked; what it returns may have been adopted meanwhile.
    """
    query = _left(study_id).with_for_update(of=models.TrialModel, skip_locked=skip_locked)
    row = session.execute(query).one_or_none()
    return Lease(*row) if row is not None else None


def anything_left(session: Session, study_id: int) -> bool:
    """Whether `adoptable` may find one, without a lock."""
    return session.execute(_left(study_id)).one_or_none() is not None


def _left(study_id: int) -> Select[int, int, str, int, str]:
    trial, lease = models.TrialModel, LeaseRow
    return (
        select(lease.trial_id, lease.study_id, lease.worker_id, lease.generation, lease.claim)
        .join(trial, trial.trial_id == lease.trial_id)
        .join(StudyRow, StudyRow.study_id == lease.study_id)
        .where(
            lease.study_id == study_id,
            lease.expires_at < database_now(),
            trial.state == TrialState.RUNNING,
            StudyRow.state == StudyState.RUNNING,
            limits.in_time(),
        )
        .order_by(lease.trial_id)
        .limit(1)
    )


def adopt(session: Session, claimant: Claimant, left: Lease, claim: str) -> Lease | None:
    """Take over the trial of a lease that somebody left; None where its owner has given a sign of life meanwhile."""
    lease = Lease(left.trial_id, left.study_id, claimant.worker_id, left.generation + 1, claim)
    adopted = _count(
        session,
        update(LeaseRow)
        .where(owned_by(left), LeaseRow.expires_at < database_now())
        .values(
            worker_id=lease.worker_id,
            generation=lease.generation,
            claim=lease.claim,
            expires_at=database_now() + claimant.lease_seconds,
        ),
    )
    if not adopted:
        return None
    owners.ended(session, left.trial_id, left.generation, OwnerEnding.DIED)
    owners.began(session, lease)
    concurrency.refuse_beyond(session, left.study_id)
    return lease


def call_dead(session: Session, left: Lease) -> bool:
    """The owner of an expired lease cannot renew it from now on; False where it has done so meanwhile."""
    dead = _count(
        session,
        update(LeaseRow).where(owned_by(left), LeaseRow.expires_at < database_now()).values(expires_at=HANDED_BACK),
    )
    if dead:
        owners.ended(session, left.trial_id, left.generation, OwnerEnding.DIED)
    return bool(dead)


def settle(session: Session, lease: Lease, settlement: Settlement, key: str) -> None:
    """Record how the trial ended and give up its lease; an error returns its ticket. Raises LeaseLost.

    `key` is a UUID of the caller's, looked up by `is_settled` when the answer to its COMMIT was lost.
    """
    if not _count(session, delete(LeaseRow).where(owned_by(lease))):
        raise LeaseLost("it is no longer this worker's")
    owners.ended(session, lease.trial_id, lease.generation, OwnerEnding.SETTLED)
    session.execute(
        update(TrialRow)
        .where(TrialRow.trial_id == lease.trial_id)
        .values(
            settlement=key,
            outcome=settlement.outcome,
            reason=settlement.reason,
            best_epoch=settlement.best_epoch,
            settled_at=database_now(),
        )
    )
    forget_states(session, lease.trial_id)
    if settlement.weights is not None:
        add_checkpoint(session, lease, CheckpointKind.WEIGHTS, settlement.weights)
    if settlement.outcome is Outcome.ERROR:
        _return_ticket(session, lease.study_id, settlement.reason)
    else:
        session.execute(
            update(StudyRow)
            .where(StudyRow.study_id == lease.study_id, StudyRow.errors_in_a_row > 0)
            .values(errors_in_a_row=0)
        )


def let_go(session: Session, lease: Lease) -> TrialState | None:
    """Another program told the trial while its owner trained it: say so on record, and give up the lease.

    The state that it was told in return; None where nobody did, or the lease is another's. Its ticket stays spent.
    """
    state = lock(session, lease.trial_id)
    if state is None or not state.is_finished() or not _count(session, delete(LeaseRow).where(owned_by(lease))):
        return None
    owners.ended(session, lease.trial_id, lease.generation, OwnerEnding.HANDED_BACK)
    record_told(session, lease.trial_id, state)
    return state


def record_told(session: Session, trial_id: int, state: TrialState) -> None:
    """Settle a trial as another program told it; whoever calls has seen to its lease."""
    session.execute(
        update(TrialRow)
        .where(TrialRow.trial_id == trial_id, TrialRow.outcome.is_(None))
        .values(
            settlement=new_uuid(),
            outcome=Outcome.of(state),
            reason=TOLD_ELSEWHERE,
            paused=None,
            settled_at=database_now(),
        )
    )
    forget_states(session, trial_id)


def forget_states(session: Session, trial_id: int) -> None:
    """Nobody goes on with the trial: its state checkpoints are no longer on record."""
    states = and_(CheckpointRow.trial_id == trial_id, CheckpointRow.kind == CheckpointKind.STATE)
    session.execute(delete(CheckpointRow).where(states))


def is_settled(session: Session, key: str) -> bool:
    """Whether the COMMIT of this very settlement has arrived."""
    return session.scalar(select(TrialRow.trial_id).where(TrialRow.settlement == key)) is not None


def _return_ticket(session: Session, study_id: int, reason: str) -> None:
    """A bug in the objective costs no trial, but as many returned tickets as the budget has are enough."""
    session.execute(
        update(StudyRow)
        .where(StudyRow.study_id == study_id, StudyRow.returned < StudyRow.trials)
        .values(returned=StudyRow.returned + 1, taken=StudyRow.taken - 1)
    )
    session.execute(
        update(StudyRow).where(StudyRow.study_id == study_id).values(errors_in_a_row=StudyRow.errors_in_a_row + 1)
    )
    session.execute(
        update(StudyRow)
        .where(StudyRow.study_id == study_id, StudyRow.errors_in_a_row >= ERRORS_IN_A_ROW)
        .values(
            state=StudyState.STOPPED,
            reason=f"{ERRORS_IN_A_ROW} trials in a row ended in an error, the last: {reason}",
        )
    )


def add_checkpoint(session: Session, lease: Lease, kind: CheckpointKind, checkpoint: Any) -> None:
    """Record a file that is written and whole (a `claims.Checkpoint`)."""
    if kind is CheckpointKind.STATE and not _got_as_far(session, lease, checkpoint):
        owners.left_something(session, lease)
    session.execute(
        insert(CheckpointRow).values(
            trial_id=lease.trial_id,
            kind=kind,
            epoch=checkpoint.epoch,
            batch=checkpoint.batch,
            generation=lease.generation,
            path=checkpoint.path,
            size=checkpoint.size,
            sha256=checkpoint.sha256,
        )
    )


def _got_as_far(session: Session, lease: Lease, checkpoint: Any) -> bool:
    """Whether a checkpoint on record holds as much of the trial as this one."""
    row = CheckpointRow
    further = or_(row.epoch > checkpoint.epoch, and_(row.epoch == checkpoint.epoch, row.batch >= checkpoint.batch))
    of_trial = and_(row.trial_id == lease.trial_id, row.kind == CheckpointKind.STATE)
    return session.scalar(select(row.checkpoint_id).where(of_trial, further).limit(1)) is not None


def seen(session: Session, worker_id: str) -> None:
    """The worker gives a sign of life."""
    session.execute(update(WorkerRow).where(WorkerRow.worker_id == worker_id).values(last_seen=database_now()))


def _count(session: Session, statement: Any) -> int:
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount
