"""What people are shown of the queue: the open studies with their shares, and the workers that serve them all."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from storage import shares
from storage.contenders import OpenStudy, open_studies, paused_studies
from storage.engine import database_now
from storage.leases import HANDED_BACK
from storage.living import alive
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import LeaseRow, QueueWorkerRow, StudyState


@dataclass(frozen=True)
class QueuedStudy:
    """A study that is open, or paused. `workers` that train it, of the queue and its own.

    `share` of all the workers that it should have, from 0 to 1; None while it is paused. `concurrency`: at most so
    many trials at once; None: any number. `todo`: trials to start, to go on with or in training. `virtual_time`: the
    seconds that the queue's workers have spent on it over its priority, in which studies are kept level.
    """

    study_id: int
    name: str
    objective: str
    state: str
    priority: int
    concurrency: int | None
    workers: int
    share: float | None
    todo: int
    virtual_time: float


@dataclass(frozen=True)
class QueueWorker:
    """A worker of the queue that has not ended. `study` that it serves, and the number of the `trial` in hand.

    `seconds` that it has served that study, or waited. `silent`: not seen for so long that it is taken for dead.
    """

    host: str
    pid: int
    slot: str
    study: str | None
    trial: int | None
    seconds: float
    seen_ago: float
    silent: bool
    note: str


@dataclass(frozen=True)
class QueuePage:
    """One moment of the queue."""

    studies: tuple[QueuedStudy, ...]
    workers: tuple[QueueWorker, ...]


@patient
def look(storage: SharedStorage) -> QueuePage:
    """Studies in the order of their priority, workers in that of their start."""
    with storage.backend.read() as session:
        found, workers = open_studies(session), _workers(session)
        idle = sum(one.study is None and not one.silent for one in workers)
        there = max(1, idle + sum(one.workers for one in found))
        fair = shares.shares(found, there)
        listed = [
            _queued(one, StudyState.RUNNING if one.workers else "waiting", float(fair[one.study_id] / there))
            for one in found
        ]
        listed += [_queued(one, StudyState.PAUSED, None) for one in paused_studies(session)]
    return QueuePage(tuple(sorted(listed, key=lambda one: (-one.priority, one.study_id))), workers)


def _queued(one: OpenStudy, state: str, share: float | None) -> QueuedStudy:
    return QueuedStudy(
        study_id=one.study_id,
        name=one.name,
        objective=one.objective,
        state=state,
        priority=one.priority,
        concurrency=one.concurrency,
        workers=one.workers,
        share=share,
        todo=one.todo,
        virtual_time=one.virtual_time,
    )


def _workers(session: Session) -> tuple[QueueWorker, ...]:
    row, study, trial, now = QueueWorkerRow, models.StudyModel, models.TrialModel, database_now()
    held = and_(LeaseRow.worker_id == row.worker_id, LeaseRow.expires_at > HANDED_BACK)
    rows = session.execute(
        select(
            row.host,
            row.pid,
            row.slot,
            study.study_name,
            trial.number,
            now - row.since,
            now - row.last_seen,
            ~alive(row),
            row.note,
        )
        .outerjoin(study, study.study_id == row.study_id)
        .outerjoin(LeaseRow, held)
        .outerjoin(trial, and_(trial.trial_id == LeaseRow.trial_id, trial.state == TrialState.RUNNING))
        .where(row.ended_at.is_(None), or_(alive(row), trial.trial_id.is_not(None)))
        .order_by(row.started_at, row.queue_worker_id)
    ).all()
    return tuple(
        QueueWorker(host, pid, slot, name, number, max(0.0, seconds), max(0.0, ago), bool(silent), note)
        for host, pid, slot, name, number, seconds, ago, silent, note in rows
    )
