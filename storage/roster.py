"""Who trains a study: its workers, what each of them holds, and which trials went from one to another.

Asked by `storage.queries` for a study's status, by the live view, and by whoever is about to add workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from storage.engine import database_now
from storage.leases import HANDED_BACK
from storage.living import alive
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import DEATHS, EpochRow, LeaseRow, OwnerEnding, OwnerRow, TrialRow, WorkerRow


@dataclass(frozen=True)
class WorkerLine:
    """A worker that has not ended. `trial`: number of the one it holds; None between trials.

    `seen_ago`: seconds since its last sign. `silent`: so many that it is taken for dead.
    """

    host: str
    pid: int
    slot: str
    seen_ago: float
    trial: int | None
    silent: bool


@dataclass(frozen=True)
class Handovers:
    """Owners of the study's trials that died, and trials that another worker took over, in all.

    `lost`: numbers of the trials that were given up since their owners died again and again.
    """

    deaths: int = 0
    adoptions: int = 0
    lost: tuple[int, ...] = ()


@dataclass(frozen=True)
class Adoption:
    """A trial that a worker took over at `began_at` (seconds since 1970, the database's clock).

    `epochs` that earlier owners have put on record. `died`: whether the owner before did.
    """

    number: int
    generation: int
    epochs: int
    host: str
    slot: str
    died: bool
    began_at: float


def workers(session: Session, study_id: int) -> tuple[WorkerLine, ...]:
    """Workers that have not ended, in the order of their start; of those that are silent only who holds a trial."""
    trial, ago = models.TrialModel, database_now() - WorkerRow.last_seen
    rows = session.execute(
        select(WorkerRow.host, WorkerRow.pid, WorkerRow.slot, ago, trial.number, alive())
        .outerjoin(LeaseRow, and_(LeaseRow.worker_id == WorkerRow.worker_id, LeaseRow.expires_at > HANDED_BACK))
        .outerjoin(trial, and_(trial.trial_id == LeaseRow.trial_id, trial.state == TrialState.RUNNING))
        .where(
            WorkerRow.study_id == study_id,
            WorkerRow.ended_at.is_(None),
            or_(alive(), trial.trial_id.is_not(None)),
        )
        .order_by(WorkerRow.started_at, WorkerRow.worker_id)
    ).all()
    return tuple(
        WorkerLine(host, pid, slot, max(0.0, seen_ago), number, not living)
        for host, pid, slot, seen_ago, number, living in rows
    )


def handovers(session: Session, study_id: int) -> Handovers:
    """How often trials were left by a death, how often they were taken over, and which were lost."""
    before = aliased(OwnerRow)
    row = session.execute(
        select(
            func.count().filter(OwnerRow.ending.in_(DEATHS)),
            func.count().filter(OwnerRow.generation > 1, _took_over(before)),
        )
        .join(TrialRow, TrialRow.trial_id == OwnerRow.trial_id)
        .outerjoin(before, and_(before.trial_id == OwnerRow.trial_id, before.generation == OwnerRow.generation - 1))
        .where(TrialRow.study_id == study_id)
    ).one()
    trial = models.TrialModel
    lost = session.scalars(
        select(trial.number)
        .join(TrialRow, TrialRow.trial_id == trial.trial_id)
        .where(TrialRow.study_id == study_id, TrialRow.outcome == Outcome.LOST)
        .order_by(trial.number)
    ).all()
    return Handovers(row[0], row[1], tuple(lost))


def _took_over(before: Any) -> Any:
    """The condition that the owner before did not pause the trial: to go on with it then is no adoption."""
    return or_(before.ending.is_(None), before.ending != OwnerEnding.PAUSED)


@patient
def adoptions(storage: SharedStorage, study: StudyRecord, since: float) -> list[Adoption]:
    """Trials that were taken over at `since` (seconds since 1970, the database's clock) or later, in that order."""
    trial, before = models.TrialModel, aliased(OwnerRow)
    epochs = (
        select(func.count())
        .where(EpochRow.trial_id == OwnerRow.trial_id, EpochRow.generation < OwnerRow.generation)
        .correlate(OwnerRow)
        .scalar_subquery()
    )
    query = (
        select(
            trial.number,
            OwnerRow.generation,
            epochs,
            WorkerRow.host,
            WorkerRow.slot,
            before.ending,
            OwnerRow.began_at,
        )
        .join(OwnerRow, OwnerRow.trial_id == trial.trial_id)
        .outerjoin(WorkerRow, WorkerRow.worker_id == OwnerRow.worker_id)
        .outerjoin(before, and_(before.trial_id == OwnerRow.trial_id, before.generation == OwnerRow.generation - 1))
        .where(
            trial.study_id == study.study_id,
            OwnerRow.generation > 1,
            OwnerRow.began_at >= since,
            _took_over(before),
        )
        .order_by(OwnerRow.began_at, trial.number)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
    return [
        Adoption(number, generation, recorded, host or "?", slot or "?", ending in DEATHS, began_at)
        for number, generation, recorded, host, slot, ending, began_at in rows
    ]
