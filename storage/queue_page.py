"""What people are shown of the queue: the open studies with their shares, and the workers that serve them all."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from optuna.trial import TrialState
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from storage import shares
from storage.contenders import OpenStudy, here_now, open_studies
from storage.engine import database_now
from storage.leases import HANDED_BACK
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import LeaseRow, QueueWorkerRow, StudyRow, StudyState


@dataclass(frozen=True)
class QueuedStudy:
    """A study that is open, or paused. `workers` that train it, of the queue and its own.

    `share` of all the workers that it should have, from 0 to 1; None while it is paused. `concurrency`: at most so
    many trials at once; None: any number. `todo`: how many workers it has use for. `worker_seconds`: what the queue's
    workers have spent on it for each unit of priority, in which studies are kept level.
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
    worker_seconds: float


@dataclass(frozen=True)
class QueueWorker:
    """A worker of the queue that has not ended. `study` that it serves, and the number of the `trial` in hand.

    `for_`: seconds that it has served that study, or waited. `silent`: not seen for so long that it is taken for dead.
    """

    host: str
    pid: int
    slot: str
    study: str | None
    trial: int | None
    for_: float
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
        listed = [*(_queued(one, fair[one.study_id] / there) for one in found), *_paused(session)]
    return QueuePage(tuple(sorted(listed, key=lambda one: (-one.priority, one.study_id))), workers)


def _queued(one: OpenStudy, share: Fraction) -> QueuedStudy:
    return QueuedStudy(
        study_id=one.study_id,
        name=one.name,
        objective=one.objective,
        state=StudyState.RUNNING if one.workers else "waiting",
        priority=one.priority,
        concurrency=one.concurrency,
        workers=one.workers,
        share=float(share),
        todo=one.room,
        worker_seconds=one.virtual_time,
    )


def _paused(session: Session) -> list[QueuedStudy]:
    study, name = StudyRow, models.StudyModel.study_name
    query = select(study, name).join(models.StudyModel, models.StudyModel.study_id == study.study_id)
    return [
        QueuedStudy(
            study_id=row.study_id,
            name=called,
            objective=row.objective,
            state=StudyState.PAUSED,
            priority=row.priority,
            concurrency=row.concurrency,
            workers=0,
            share=None,
            todo=max(0, row.trials - row.taken),
            worker_seconds=row.virtual_time,
        )
        for row, called in session.execute(query.where(study.state == StudyState.PAUSED)).all()
    ]


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
            ~here_now(),
            row.note,
        )
        .outerjoin(study, study.study_id == row.study_id)
        .outerjoin(LeaseRow, held)
        .outerjoin(trial, and_(trial.trial_id == LeaseRow.trial_id, trial.state == TrialState.RUNNING))
        .where(row.ended_at.is_(None), or_(here_now(), trial.trial_id.is_not(None)))
        .order_by(row.started_at, row.queue_worker_id)
    ).all()
    return tuple(
        QueueWorker(host, pid, slot, name, number, max(0.0, for_), max(0.0, ago), bool(silent), note)
        for host, pid, slot, name, number, for_, ago, silent, note in rows
    )
