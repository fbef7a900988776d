"""A worker's transactions with paused trials: let one go, go on with one, and end a study of which only they are left.

A paused trial is RUNNING for Optuna and has no lease, so that nobody adopts it; it keeps its number, its epochs and its
checkpoint. What becomes of those that nobody goes on with is in `storage.paused`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from storage import attributes, concurrency, leases, limits, living, owners, paused
from storage.claims import Lease, LeaseLost, new_uuid
from storage.engine import database_now
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import (
    CheckpointKind,
    CheckpointRow,
    EpochRow,
    LeaseRow,
    OwnerEnding,
    OwnerRow,
    StudyRow,
    StudyState,
    TrialRow,
)


@dataclass(frozen=True)
class Standing:
    """Where a study stands for a worker that looks for something to train.

    `tickets`, `epochs`: how many its budgets have left. `seconds` of device time, and until its deadline; infinity for
    no limit. `waiting`: whether a trial is enqueued. `leased`: whether one is trained, or left to adopt. `paused` ones.
    `full`: it trains as many as it may at once. `on_hold`: somebody has paused the study itself, which may go on.
    `progress`: what the study has taken and spent, which tells whether anything was trained since.
    """

    running: bool
    tickets: int
    epochs: float
    seconds: float
    until_deadline: float
    waiting: bool
    leased: bool
    paused: int
    workers: int
    full: bool
    on_hold: bool
    progress: tuple[Any, ...]

    @property
    def may_start(self) -> bool:
        """Whether a new trial could take a ticket."""
        return self.running and self.tickets > 0 and not self.full


@patient
def standing(storage: SharedStorage, study_id: int) -> Standing | None:
    """In one statement; None where the study is gone."""
    study = StudyRow
    query = select(
        study.state,
        study.trials - study.taken,
        study.budget_epochs - study.spent_epochs,
        study.budget_seconds - study.spent_seconds,
        study.deadline - database_now(),
        _waiting(study_id),
        _leased(study_id),
        _paused(study_id),
        living.of_study(study_id),
        func.coalesce(concurrency.trained(study_id) >= study.concurrency, False),
        *_progress(),
    ).where(study.study_id == study_id)
    with storage.backend.read() as session:
        row = session.execute(query).one_or_none()
    if row is None:
        return None
    (state, tickets, *limits_left), (waiting, leased, paused_now, workers), (full, *progress) = (
        row[:5],
        row[5:9],
        row[9:],
    )
    epochs, seconds, until_deadline = (math.inf if left is None else left for left in limits_left)
    running = state == StudyState.RUNNING and until_deadline > 0
    return Standing(
        running=running,
        tickets=tickets,
        epochs=epochs,
        seconds=seconds,
        until_deadline=until_deadline,
        waiting=waiting,
        leased=leased,
        paused=paused_now,
        workers=workers,
        full=bool(full),
        on_hold=state == StudyState.PAUSED,
        progress=tuple(progress),
    )


def _progress() -> tuple[Any, ...]:
    return StudyRow.taken, StudyRow.returned, StudyRow.spent_epochs, StudyRow.spent_seconds


def _waiting(study_id: int) -> Any:
    trial = models.TrialModel
    return exists().where(trial.study_id == study_id, trial.state == TrialState.WAITING)


def _leased(study_id: int) -> Any:
    trial = models.TrialModel
    mine = LeaseRow.trial_id == trial.trial_id
    return exists().where(LeaseRow.study_id == study_id, mine, trial.state == TrialState.RUNNING)


def _paused(study_id: int) -> Any:
    trial = models.TrialModel
    query = select(func.count()).select_from(TrialRow).join(trial, trial.trial_id == TrialRow.trial_id)
    mine = TrialRow.study_id == study_id
    return query.where(mine, TrialRow.paused.is_not(None), trial.state == TrialState.RUNNING).scalar_subquery()


def pause(storage: SharedStorage, lease: Lease) -> bool:
    """Let a trial go that any worker may go on with from its last epoch; whether it is paused now.

    False where its checkpoint is gone: somebody needed the room. Then it is settled PRUNED, for to go on with it would
    be to train it again.

    Raises:
        LeaseLost: the trial is another's, or somebody settled or deleted it.
    """
    let_go = storage.backend.write_once(lambda session, again: _pause(session, lease, again))
    storage.backend.leases.pop(lease.trial_id, None)
    return let_go


def _pause(session: Session, lease: Lease, again: bool) -> bool:
    if leases.lock(session, lease.trial_id) != TrialState.RUNNING:
        if again and _ended_by_me(session, lease):
            return False
        raise LeaseLost("it was settled or deleted elsewhere")
    gone: Any = session.execute(
        delete(LeaseRow).where(leases.owned_by(lease), LeaseRow.expires_at > leases.HANDED_BACK)
    )
    if not gone.rowcount:
        if again and _ended_by_me(session, lease):
            return True
        raise LeaseLost("it is no longer this worker's")
    owners.ended(session, lease.trial_id, lease.generation, OwnerEnding.PAUSED)
    mine = TrialRow.trial_id == lease.trial_id
    session.execute(update(TrialRow).where(mine).values(paused=lease.generation))
    last = session.scalar(select(func.max(EpochRow.epoch)).where(EpochRow.trial_id == lease.trial_id)) or 0
    if not _kept(session, lease.trial_id, last):
        paused.settle(session, lease.study_id, "its checkpoint made room for others", only=[lease.trial_id])
        return False
    attributes.write(session, [(lease.trial_id, {attributes.PAUSED: f"after epoch {last}"})])
    return True


def _ended_by_me(session: Session, lease: Lease) -> bool:
    """Whether an earlier attempt of this pause has arrived, whatever became of the trial since."""
    mine = (OwnerRow.claim == lease.claim) & (OwnerRow.ending == OwnerEnding.PAUSED)
    return session.scalar(select(OwnerRow.trial_id).where(mine)) is not None


def _kept(session: Session, trial_id: int, epoch: int) -> bool:
    """Whether all that was trained is in a checkpoint on record."""
    state = exists().where(
        CheckpointRow.trial_id == trial_id, CheckpointRow.kind == CheckpointKind.STATE, CheckpointRow.epoch >= epoch
    )
    return bool(session.scalar(select(state)))


def go_on(storage: SharedStorage, study_id: int, number: int, by: int) -> Lease | None:
    """Take a paused trial under its own number.

    None where it is no longer as the owner of generation `by` let it go, even if another let it go since: it is further
    then, and who chose it did not know. None too where the study takes no trials.
    """
    claim = new_uuid()

    def attempt(session: Session, again: bool) -> Lease | None:
        return _go_on(storage, session, study_id, (number, by), claim, again)

    lease = storage.backend.write_once(attempt)
    if lease is not None:
        storage.backend.hold(lease)
    return lease


def _go_on(
    storage: SharedStorage, session: Session, study_id: int, chosen: tuple[int, int], claim: str, again: bool
) -> Lease | None:
    trial, claimant, (number, by) = models.TrialModel, storage.backend.claimant, chosen
    assert claimant is not None, "only a storage opened with a claimant trains"
    trial_id = session.scalar(
        select(trial.trial_id)
        .join(TrialRow, TrialRow.trial_id == trial.trial_id)
        .join(StudyRow, StudyRow.study_id == TrialRow.study_id)
        .where(
            trial.study_id == study_id,
            trial.number == number,
            trial.state == TrialState.RUNNING,
            TrialRow.paused == by,
            StudyRow.state == StudyState.RUNNING,
            limits.in_time(),
        )
        .with_for_update(of=trial, skip_locked=not again)  # an attempt that was cut off is waited for
    )
    lease = owners.of_claim(session, claim) if again else None
    if lease is not None or trial_id is None:
        return lease
    still = (TrialRow.trial_id == trial_id) & (TrialRow.paused == by)
    taken: Any = session.execute(update(TrialRow).where(still).values(paused=None))
    if not taken.rowcount:
        return None
    lease = Lease(trial_id, study_id, claimant.worker_id, by + 1, claim)
    leases.begin(session, lease, claimant.lease_seconds)
    paused.say_no_more(session, [trial_id])
    concurrency.refuse_beyond(session, study_id)
    return lease


def finish(storage: SharedStorage, study_id: int, why: str, then: Standing) -> bool:
    """End a study in which nothing is worth training: whatever is paused settles PRUNED. Whether it is over now.

    Not while a trial is trained or left to adopt, nor where something was trained since the study stood so, by which it
    was judged: there may be something to do. Where trials could still start it is stopped, with `why` for its reason.
    """

    def attempt(session: Session, _again: bool) -> bool:
        query = select(StudyRow.state, StudyRow.taken < StudyRow.trials, _leased(study_id), *_progress())
        row = session.execute(query.where(StudyRow.study_id == study_id)).one_or_none()
        if row is None or row[0] != StudyState.RUNNING:
            return True
        _, tickets, leased, *progress = row
        if leased or tuple(progress) != then.progress or (tickets and not then.may_start):
            return False
        if tickets:
            limits.stop(session, study_id, why)  # which settles them
        else:
            paused.settle(session, study_id, why)
        return not session.scalar(select(_paused(study_id)))

    return storage.backend.write_once(attempt)


@patient
def settled_in_a_pause(storage: SharedStorage, study_id: int) -> list[int]:
    """Numbers of trials that were settled while they were paused: their files are on no record any more."""
    trial, owner = models.TrialModel, OwnerRow
    later = select(func.max(owner.generation)).where(owner.trial_id == TrialRow.trial_id)
    query = (
        select(trial.number)
        .join(TrialRow, TrialRow.trial_id == trial.trial_id)
        .join(owner, owner.trial_id == TrialRow.trial_id)
        .where(
            TrialRow.study_id == study_id,
            TrialRow.outcome == Outcome.PRUNED,
            owner.ending == OwnerEnding.PAUSED,
            owner.generation == later.correlate(TrialRow).scalar_subquery(),
        )
        .order_by(trial.number)
    )
    with storage.backend.read() as session:
        return list(session.scalars(query).all())
