"""The studies that have work for a worker, as the queue sees them: how many workers each has, and has use for.

One statement inside a transaction of `storage.queue`, or of whoever shows the queue to people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Subquery, func, or_, select
from sqlalchemy.orm import Session

from storage import limits
from storage.engine import database_now
from storage.living import alive
from storage.optuna_internals import models
from storage.shares import Contender
from storage.tables import LeaseRow, QueueWorkerRow, StudyRow, StudyState, TrialRow, WorkerRow


@dataclass(frozen=True)
class OpenStudy(Contender):
    """A study that is open, with what a worker must know to tell whether it may serve it.

    `concurrency`: trials that it may train at once; None: any number. `todo`: trials to start, to go on with or in
    training, however many it may train at once. `sha256` of the source that it was made with.
    `served`: by a worker of the queue, whose time it is charged with.
    """

    name: str
    objective: str
    sha256: str
    concurrency: int | None
    todo: int
    served: bool


def open_studies(session: Session) -> list[OpenStudy]:
    """All studies that are running and have a trial to start, to go on with or in training, the oldest first."""
    return _studies(session, StudyState.RUNNING, with_work=True)


def paused_studies(session: Session) -> list[OpenStudy]:
    """All studies that somebody has paused, as they will be open again, the oldest first."""
    return _studies(session, StudyState.PAUSED, with_work=False)


def _studies(session: Session, state: StudyState, with_work: bool) -> list[OpenStudy]:
    study, here, others = StudyRow, _of_the_queue(), _of_one_study()
    leased, paused = _trials_of(LeaseRow), _trials_of(TrialRow, TrialRow.paused.is_not(None))
    todo = [_or_zero(leased.c.count), _or_zero(paused.c.count)]
    has_work = [limits.in_time(), or_(study.taken < study.trials, todo[0] > 0, todo[1] > 0)]
    rows = session.execute(
        select(
            study,
            models.StudyModel.study_name,
            _or_zero(here.c.count) + _or_zero(others.c.count),
            here.c.seconds,
            *todo,
        )
        .join(models.StudyModel, models.StudyModel.study_id == study.study_id)
        .outerjoin(here, here.c.study_id == study.study_id)
        .outerjoin(others, others.c.study_id == study.study_id)
        .outerjoin(leased, leased.c.study_id == study.study_id)
        .outerjoin(paused, paused.c.study_id == study.study_id)
        .where(study.state == state, *(has_work if with_work else ()))
        .order_by(study.study_id)
    ).all()
    return [_open_study(*row) for row in rows]


def _open_study(study: StudyRow, name: str, workers: int, seconds: float | None, leased: int, paused: int) -> OpenStudy:
    room = max(0, study.trials - study.taken) + leased + paused
    most = room if study.concurrency is None else min(room, study.concurrency)
    return OpenStudy(
        study_id=study.study_id,
        priority=study.priority,
        workers=workers,
        room=most,
        paused=max(0, most - (room - paused)),
        virtual_time=study.virtual_time + (seconds or 0.0) / study.priority,
        name=name,
        objective=study.objective,
        sha256=study.objective_sha256,
        concurrency=study.concurrency,
        todo=room,
        served=seconds is not None,
    )


def _or_zero(count: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(count, 0)


def _of_the_queue() -> Subquery:
    """Workers of the queue at each study, and their seconds there that the study has not been charged with."""
    row = QueueWorkerRow
    seconds = func.sum(database_now() - row.charged_at).label("seconds")
    query = select(row.study_id, func.count().label("count"), seconds).where(row.study_id.is_not(None), alive(row))
    return query.group_by(row.study_id).subquery("of_the_queue")


def _of_one_study() -> Subquery:
    """Workers that were started for one study."""
    row, queue = WorkerRow, QueueWorkerRow
    of_queue = select(queue.worker_id).where(queue.worker_id.is_not(None))
    query = select(row.study_id, func.count().label("count")).where(alive(), row.worker_id.not_in(of_queue))
    return query.group_by(row.study_id).subquery("of_one_study")


def _trials_of(table: Any, *conditions: ColumnElement[bool]) -> Subquery:
    """How many trials of each study have such a row and are RUNNING: one that another program has told is not."""
    trial = models.TrialModel
    query = select(table.study_id, func.count().label("count")).join(trial, trial.trial_id == table.trial_id)
    return query.where(trial.state == TrialState.RUNNING, *conditions).group_by(table.study_id).subquery()
