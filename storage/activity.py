"""What happens in all studies at once: who trains what, what failed, how fast trials settle, what is still to be done.

Asked by the server (`search.server`) for its fleet page and its metrics: a fixed number of statements,
however many studies, workers and trials there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from storage.claims import LEASE_SECONDS
from storage.engine import database_now
from storage.leases import HANDED_BACK
from storage.living import alive
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import (
    EpochRow,
    LeaseRow,
    QueueWorkerRow,
    StudyRow,
    StudyState,
    TrialRow,
    WorkerRow,
)

# Points of a curve that are handed out: as many as a small picture can show.
POINTS = 60
# Hours that the pace of trials looks back, and how many failures are told in words.
HOURS = 24
FAILURES = 10
HOUR = 3600.0
FAILED = (Outcome.ERROR, Outcome.OUT_OF_MEMORY, Outcome.LOST, Outcome.DIVERGED)

_FINITE = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE


@dataclass(frozen=True)
class Training:
    """The trial that a worker holds: where it stands, and its curve as (epoch, value). `epochs` of a full one, or 0."""

    trial: int
    epoch: int
    epochs: int
    metric: str
    direction: str
    now: float | None
    best: float | None
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class FleetWorker:
    """A worker that has not ended: where it runs, for which study, what it trains now; None between trials.

    `study` is empty while it waits for one; `note`: what it would tell a person meanwhile. `seen_ago`: seconds since
    its last sign; `silent`: so many that it is taken for dead.
    """

    host: str
    pid: int
    slot: str
    study: str
    started_at: float
    seen_ago: float
    silent: bool
    training: Training | None
    note: str = ""


@dataclass(frozen=True)
class Failure:
    """A trial that failed or diverged, and why in a line."""

    study: str
    trial: int
    outcome: str
    reason: str
    settled_at: float


@dataclass(frozen=True)
class Fleet:
    """All of it at one moment, `at` (seconds since 1970, the database's clock).

    `failed`: how many trials ended so in the last 24 hours, by outcome, and `failures` the last of them.
    `settled_by_hour`: how many ended in each of the last 24 hours, the oldest first.
    """

    at: float
    workers: tuple[FleetWorker, ...]
    failed: Mapping[str, int]
    failures: tuple[Failure, ...]
    settled_by_hour: tuple[int, ...]


@dataclass(frozen=True)
class Totals:
    """What has been done and is to be done, over all studies.

    `outcomes`: settled trials by outcome. `device_seconds` of training. `queue`: trials of open studies that nobody has
    started. `lease_age`: seconds since the stalest lease of a trial was renewed, None without one.
    """

    outcomes: Mapping[str, int]
    epochs: int
    device_seconds: float
    studies: int
    open_studies: int
    queue: int
    running: int
    workers: int
    busy_workers: int
    silent_workers: int
    lease_age: float | None


@patient
def workers(storage: SharedStorage) -> tuple[FleetWorker, ...]:
    """Every worker that has not ended; those of the queue that train in no study yet come last."""
    with storage.backend.read() as session:
        return _workers(session)


@patient
def fleet(storage: SharedStorage) -> Fleet:
    """What every worker does now, and what became of trials lately."""
    with storage.backend.read() as session:
        now = session.scalar(select(database_now())) or 0.0
        return Fleet(
            at=now,
            workers=_workers(session),
            failed=_failed(session, now),
            failures=_failures(session, now),
            settled_by_hour=_by_hour(session, now),
        )


def _workers(session: Session) -> tuple[FleetWorker, ...]:
    trial, directed = models.TrialModel, models.StudyDirectionModel
    rows = session.execute(
        select(
            WorkerRow,
            database_now() - WorkerRow.last_seen,
            alive(),
            models.StudyModel.study_name,
            StudyRow.metric,
            StudyRow.epochs * StudyRow.folds,
            directed.direction,
            trial.trial_id,
            trial.number,
        )
        .outerjoin(models.StudyModel, models.StudyModel.study_id == WorkerRow.study_id)
        .outerjoin(StudyRow, StudyRow.study_id == WorkerRow.study_id)
        .outerjoin(directed, directed.study_id == WorkerRow.study_id)
        .outerjoin(LeaseRow, and_(LeaseRow.worker_id == WorkerRow.worker_id, LeaseRow.expires_at > HANDED_BACK))
        .outerjoin(trial, and_(trial.trial_id == LeaseRow.trial_id, trial.state == TrialState.RUNNING))
        .where(WorkerRow.ended_at.is_(None), or_(alive(), trial.trial_id.is_not(None)))
        .order_by(WorkerRow.host, WorkerRow.slot, WorkerRow.started_at, WorkerRow.worker_id)
    ).all()
    curves, epochs = _curves(session), _epochs(session)
    return (*(_worker(row, curves, epochs) for row in rows), *_waiting(session))


def _worker(row: Any, curves: Mapping[int, Sequence[tuple[int, float]]], epochs: Mapping[int, int]) -> FleetWorker:
    worker, seen_ago, living, study, metric, length, direction, trial_id, number = row
    training = None
    if trial_id is not None:
        curve = curves.get(trial_id, ())
        values = [value for _, value in curve]
        word = direction.name.lower() if direction is not None else ""
        training = Training(
            trial=number,
            epoch=epochs.get(trial_id, curve[-1][0] if curve else 0),
            epochs=length or 0,
            metric=metric or "",
            direction=word,
            now=values[-1] if values else None,
            best=(max if word == "maximize" else min)(values, default=None),
            curve=_thinned(curve),
        )
    return FleetWorker(
        host=worker.host,
        pid=worker.pid,
        slot=worker.slot,
        study=study or "",
        started_at=worker.started_at,
        seen_ago=max(0.0, seen_ago),
        silent=not living,
        training=training,
    )


def _waiting(session: Session) -> tuple[FleetWorker, ...]:
    """Workers that serve whatever is open, and train in no study yet."""
    row, study, ago = QueueWorkerRow, models.StudyModel, database_now() - QueueWorkerRow.last_seen
    rows = session.execute(
        select(row.host, row.pid, row.slot, study.study_name, row.started_at, ago, row.note)
        .outerjoin(study, study.study_id == row.study_id)
        .where(_is_waiting())
        .order_by(row.host, row.slot, row.queue_worker_id)
    )
    return tuple(
        FleetWorker(host, pid, slot, name or "", started_at, max(0.0, seen_ago), False, None, note)
        for host, pid, slot, name, started_at, seen_ago, note in rows
    )


def _is_waiting() -> ColumnElement[bool]:
    """The condition on a worker of the queue that is in no study, or imports and loads what it needs for one."""
    row, worker = QueueWorkerRow, WorkerRow
    begun = select(worker.worker_id).where(worker.worker_id == row.worker_id, worker.ended_at.is_(None)).exists()
    return alive(row) & ~begun


def _thinned(curve: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most POINTS of them, the last one always."""
    step = -(-len(curve) // POINTS) or 1
    return tuple(curve[::-1][::step][::-1])


def _curves(session: Session) -> dict[int, list[tuple[int, float]]]:
    """Of the trials that somebody holds, by their ids."""
    value = models.TrialIntermediateValueModel
    query = (
        select(value.trial_id, value.step, value.intermediate_value)
        .join(LeaseRow, LeaseRow.trial_id == value.trial_id)
        .where(LeaseRow.expires_at > HANDED_BACK, value.intermediate_value_type == _FINITE)
        .order_by(value.trial_id, value.step)
    )
    curves: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for trial_id, step, number in session.execute(query):
        curves[trial_id].append((step, number))
    return curves


def _epochs(session: Session) -> dict[int, int]:
    """The last epoch of the trials that somebody holds: not every epoch has a value."""
    query = (
        select(EpochRow.trial_id, func.max(EpochRow.epoch))
        .join(LeaseRow, LeaseRow.trial_id == EpochRow.trial_id)
        .where(LeaseRow.expires_at > HANDED_BACK)
        .group_by(EpochRow.trial_id)
    )
    return dict(session.execute(query).all())


def _failed(session: Session, now: float) -> dict[str, int]:
    query = (
        select(TrialRow.outcome, func.count())
        .where(TrialRow.outcome.in_(FAILED), TrialRow.settled_at > now - HOURS * HOUR)
        .group_by(TrialRow.outcome)
    )
    found: dict[str | None, int] = dict(session.execute(query).all())
    return {outcome.value: found[outcome] for outcome in FAILED if outcome in found}


def _failures(session: Session, now: float) -> tuple[Failure, ...]:
    rows = session.execute(
        select(models.StudyModel.study_name, models.TrialModel.number, TrialRow.outcome, TrialRow.reason)
        .add_columns(TrialRow.settled_at)
        .join(models.TrialModel, models.TrialModel.trial_id == TrialRow.trial_id)
        .join(models.StudyModel, models.StudyModel.study_id == TrialRow.study_id)
        .where(TrialRow.outcome.in_(FAILED), TrialRow.settled_at > now - HOURS * HOUR)
        .order_by(TrialRow.settled_at.desc(), TrialRow.trial_id.desc())
        .limit(FAILURES)
    )
    return tuple(Failure(*row) for row in rows)


def _by_hour(session: Session, now: float) -> tuple[int, ...]:
    """One statement: rounding down is spelled otherwise by each database."""
    at = TrialRow.settled_at
    hours = [func.count().filter(at > now - hour * HOUR, at <= now - (hour - 1) * HOUR) for hour in range(HOURS, 0, -1)]
    return tuple(session.execute(select(*hours).where(at > now - HOURS * HOUR)).one())


@patient
def totals(storage: SharedStorage) -> Totals:
    """Sums over all studies."""
    with storage.backend.read() as session:
        query = select(TrialRow.outcome, func.count()).where(TrialRow.outcome.is_not(None)).group_by(TrialRow.outcome)
        outcomes: dict[str | None, int] = dict(session.execute(query).all())
        is_open = and_(StudyRow.state == StudyState.RUNNING, StudyRow.taken < StudyRow.trials)
        studies = session.execute(
            select(
                func.count(),
                func.count().filter(is_open),
                func.coalesce(func.sum(StudyRow.trials - StudyRow.taken).filter(is_open), 0),
                func.coalesce(func.sum(StudyRow.spent_epochs), 0),
                func.coalesce(func.sum(StudyRow.spent_seconds), 0.0),
            )
        ).one()
        held = LeaseRow.expires_at > HANDED_BACK
        age = database_now() - (func.min(LeaseRow.expires_at).filter(held) - LEASE_SECONDS)
        running, lease_age = session.execute(select(func.count().filter(held), age).select_from(LeaseRow)).one()
        holds = select(LeaseRow.trial_id).where(LeaseRow.worker_id == WorkerRow.worker_id, held).exists()
        not_ended = WorkerRow.ended_at.is_(None)
        workers = session.execute(
            select(
                func.count().filter(alive()),
                func.count().filter(alive(), holds),
                func.count().filter(not_ended, ~alive(), holds),
            ).select_from(WorkerRow)
        ).one()
        waiting = session.scalar(select(func.count()).select_from(QueueWorkerRow).where(_is_waiting())) or 0
    return Totals(
        outcomes={outcome.value: outcomes.get(outcome, 0) for outcome in Outcome},
        studies=studies[0],
        open_studies=studies[1],
        queue=studies[2],
        epochs=studies[3],
        device_seconds=float(studies[4]),
        running=running,
        lease_age=max(0.0, lease_age) if lease_age is not None else None,
        workers=workers[0] + waiting,
        busy_workers=workers[1],
        silent_workers=workers[2],
    )
