"""What people ask of a study, answered by SQL without loading its trials; called by commands and the live view."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna import distributions
from optuna.trial import TrialState
from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session

from storage import constraints, paused, roster, stalling
from storage.details import EpochLine, Owner, TrialDetail, trial
from storage.engine import database_now
from storage.listing import StudyLine, listing, logged
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.paused import PausedTrial
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointKind, CheckpointRow, EpochRow, LeaseRow, StudyState, TrialRow, WorkerRow

__all__ = [
    "EpochLine",
    "FailedTrial",
    "Owner",
    "PausedTrial",
    "RankedTrial",
    "RunningTrial",
    "SettledTrial",
    "StudyLine",
    "StudyStatus",
    "TrialDetail",
    "best",
    "listing",
    "logged",
    "param_distributions",
    "ranking",
    "settled",
    "status",
    "trial",
    "weights_of",
]

_FINITE = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is not settled. `now`: its last finite value. `adoptable`: its worker is gone.

    `seen_ago`: seconds since the worker's last sign.
    """

    number: int
    epoch: int
    now: float | None
    best: float | None
    slot: str
    host: str
    pid: int
    seen_ago: float
    adoptable: bool


@dataclass(frozen=True)
class RankedTrial:
    """A COMPLETE trial: `value` is its best epoch's. `attrs` hold the real recipe (rate, momentum, ...)."""

    number: int
    value: float
    best_epoch: int | None
    epochs: int
    seconds: float
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class FailedTrial:
    """A trial that ended in an error, and why in one line; `traceback` has a person's own frames of a bug."""

    number: int
    outcome: Outcome
    reason: str
    traceback: str


@dataclass(frozen=True)
class SettledTrial:
    """A trial that has ended. `value`: the best epoch's of a complete one, the last epoch's of a pruned one."""

    number: int
    outcome: Outcome
    value: float | None
    epochs: int
    seconds: float
    recipe: str
    reason: str
    settled_at: float


@dataclass(frozen=True)
class StudyStatus:
    """Where a study stands. `epochs_saved` by pruning; `seconds` of training summed over all trials.

    `kept`: how trials keep to constraints; None where there are none. `outlook`: what more trials would gain.
    """

    study: StudyRecord
    counts: Mapping[str, int]
    running: tuple[RunningTrial, ...]
    waiting: int
    epochs_trained: int
    epochs_saved: int
    seconds: float
    age: float
    failures: tuple[FailedTrial, ...]
    workers: tuple[roster.WorkerLine, ...] = ()
    handovers: roster.Handovers = field(default_factory=roster.Handovers)
    kept: constraints.Kept | None = None
    outlook: stalling.Outlook = field(default_factory=stalling.Outlook)
    paused: tuple[PausedTrial, ...] = ()

    @property
    def settled(self) -> int:
        """Trials that count towards the budget and have ended."""
        return sum(self.counts.values()) - self.study.returned

    @property
    def over(self) -> bool:
        """Whether no worker is wanted: the study is finished, stopped, or its deadline past."""
        return self.finished or self.late or self.study.state is StudyState.STOPPED

    @property
    def late(self) -> bool:
        """Whether the study is not finished, and its deadline past."""
        deadline = self.study.deadline
        return not self.finished and deadline is not None and self.study.created_at + self.age >= deadline

    @property
    def finished(self) -> bool:
        """All tickets taken, and no started trial left open."""
        return self.study.taken >= self.study.trials and not self.running and not self.paused


@patient
def status(storage: SharedStorage, study: StudyRecord) -> StudyStatus:
    """Everything `dialin status` and the live view show. `study` should be fresh."""
    with storage.backend.read() as session:
        trained, seconds, saved = _epochs(session, study)
        return StudyStatus(
            study=study,
            counts=_counts(session, study.study_id),
            running=_running(session, study),
            waiting=_waiting(session, study.study_id),
            epochs_trained=trained,
            epochs_saved=saved,
            seconds=seconds,
            age=(session.scalar(select(database_now())) or 0.0) - study.created_at,
            failures=_failures(session, study.study_id),
            workers=roster.workers(session, study.study_id),
            handovers=roster.handovers(session, study.study_id),
            kept=constraints.kept(session, study.study_id),
            outlook=stalling.look(session, study),
            paused=paused.trials(session, study.study_id, study.direction),
        )


@patient
def is_finished(storage: SharedStorage, study: StudyRecord) -> bool:
    """As `StudyStatus.finished`, without all else that a status tells. `study` should be fresh."""
    trial = models.TrialModel
    held = select(LeaseRow.trial_id).where(LeaseRow.trial_id == trial.trial_id).exists()
    waits = select(TrialRow.trial_id).where(TrialRow.trial_id == trial.trial_id, TrialRow.paused.is_not(None)).exists()
    begun = select(trial.trial_id).where(trial.study_id == study.study_id, trial.state == TrialState.RUNNING)
    with storage.backend.read() as session:
        return study.taken >= study.trials and session.scalar(begun.where(or_(held, waits)).limit(1)) is None


def _counts(session: Session, study_id: int) -> dict[str, int]:
    finished = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    rows = session.execute(
        select(TrialRow.outcome, models.TrialModel.state, func.count())
        .select_from(models.TrialModel)
        .outerjoin(TrialRow, TrialRow.trial_id == models.TrialModel.trial_id)
        .where(models.TrialModel.study_id == study_id, models.TrialModel.state.in_(finished))
        .group_by(TrialRow.outcome, models.TrialModel.state)
    ).all()
    counts = dict.fromkeys((outcome.value for outcome in Outcome), 0)
    for outcome, state, count in rows:
        counts[outcome or Outcome.of(state).value] += count
    return {outcome: count for outcome, count in counts.items() if count}


def _running(session: Session, study: StudyRecord) -> tuple[RunningTrial, ...]:
    value = models.TrialIntermediateValueModel
    best = func.max(value.intermediate_value) if study.direction == "maximize" else func.min(value.intermediate_value)
    curve = (
        select(value.trial_id, func.max(value.step).label("step"), best.label("best"))
        .join(LeaseRow, LeaseRow.trial_id == value.trial_id)
        .where(value.intermediate_value_type == _FINITE, LeaseRow.study_id == study.study_id)
        .group_by(value.trial_id)
        .subquery()
    )
    # Not every epoch has a value: within a fold none has.
    epoch = select(func.max(EpochRow.epoch)).where(EpochRow.trial_id == LeaseRow.trial_id).scalar_subquery()
    rows = session.execute(
        select(
            models.TrialModel.number,
            func.coalesce(epoch, curve.c.step, 0),
            curve.c.best,
            value.intermediate_value,
            WorkerRow.slot,
            WorkerRow.host,
            WorkerRow.pid,
            database_now() - WorkerRow.last_seen,
            LeaseRow.expires_at < database_now(),
        )
        .join(LeaseRow, LeaseRow.trial_id == models.TrialModel.trial_id)
        .outerjoin(WorkerRow, WorkerRow.worker_id == LeaseRow.worker_id)
        .outerjoin(curve, curve.c.trial_id == models.TrialModel.trial_id)
        .outerjoin(value, (value.trial_id == curve.c.trial_id) & (value.step == curve.c.step))
        .where(LeaseRow.study_id == study.study_id, models.TrialModel.state == TrialState.RUNNING)
        .order_by(models.TrialModel.number)
    ).all()
    return tuple(
        RunningTrial(number, epoch, now, best, slot or "?", host or "?", pid or 0, ago or 0.0, bool(adoptable))
        for number, epoch, best, now, slot, host, pid, ago, adoptable in rows
    )


def _waiting(session: Session, study_id: int) -> int:
    trial = models.TrialModel
    query = select(func.count()).where(trial.study_id == study_id, trial.state == TrialState.WAITING)
    return session.scalar(query) or 0


def _epochs(session: Session, study: StudyRecord) -> tuple[int, float, int]:
    """Epochs trained and their seconds over all trials; epochs that pruned trials were spared."""
    is_pruned = TrialRow.outcome == Outcome.PRUNED
    trained, seconds, trained_by_pruned = session.execute(
        select(func.count(), func.coalesce(func.sum(EpochRow.seconds), 0.0), func.count().filter(is_pruned))
        .select_from(EpochRow)
        .join(TrialRow, TrialRow.trial_id == EpochRow.trial_id)
        .where(TrialRow.study_id == study.study_id)
    ).one()
    # Not of `_counts`, which has trials that plain Optuna pruned too: their epochs are on no record.
    pruned = session.scalar(
        select(func.count()).select_from(TrialRow).where(TrialRow.study_id == study.study_id, is_pruned)
    )
    return trained, float(seconds), max(0, (pruned or 0) * study.length - trained_by_pruned)


@patient
def settled(storage: SharedStorage, study: StudyRecord, since: float) -> list[SettledTrial]:
    """Trials settled at `since` (seconds since 1970, the database's clock) or later, in that order."""
    value, attr = models.TrialValueModel, models.TrialUserAttributeModel
    epochs = select(func.count()).where(EpochRow.trial_id == TrialRow.trial_id).scalar_subquery()
    seconds = select(func.sum(EpochRow.seconds)).where(EpochRow.trial_id == TrialRow.trial_id).scalar_subquery()
    query = (
        select(
            models.TrialModel.number,
            TrialRow.outcome,
            value.value,
            epochs,
            func.coalesce(seconds, 0.0),
            attr.value_json,
            TrialRow.reason,
            TrialRow.settled_at,
        )
        .join(TrialRow, TrialRow.trial_id == models.TrialModel.trial_id)
        .outerjoin(value, value.trial_id == TrialRow.trial_id)
        .outerjoin(attr, (attr.trial_id == TrialRow.trial_id) & (attr.key == "recipe"))
        .where(TrialRow.study_id == study.study_id, TrialRow.settled_at >= since)
        .order_by(TrialRow.settled_at)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
    return [
        SettledTrial(number, Outcome(outcome), final, count, float(spent), json.loads(recipe or '""'), reason, at)
        for number, outcome, final, count, spent, recipe, reason, at in rows
    ]


def _failures(session: Session, study_id: int, most: int = 3) -> tuple[FailedTrial, ...]:
    """The last trials that failed, newest first."""
    failed = (Outcome.ERROR, Outcome.OUT_OF_MEMORY, Outcome.LOST)
    attr = models.TrialUserAttributeModel
    rows = session.execute(
        select(models.TrialModel.number, TrialRow.outcome, TrialRow.reason, attr.value_json)
        .join(TrialRow, TrialRow.trial_id == models.TrialModel.trial_id)
        .outerjoin(attr, and_(attr.trial_id == TrialRow.trial_id, attr.key == "traceback"))
        .where(TrialRow.study_id == study_id, TrialRow.outcome.in_(failed))
        .order_by(models.TrialModel.number.desc())
        .limit(most)
    ).all()
    return tuple(
        FailedTrial(number, Outcome(outcome), reason, json.loads(traceback) if traceback else "")
        for number, outcome, reason, traceback in rows
    )


def ranking(study: StudyRecord) -> Select[Any]:
    """COMPLETE trials that keep to their constraints (id, number, value, best epoch), best first, then by number."""
    value = models.TrialValueModel
    order = value.value.desc() if study.direction == "maximize" else value.value.asc()
    return (
        select(models.TrialModel.trial_id, models.TrialModel.number, value.value, TrialRow.best_epoch)
        .join(value, value.trial_id == models.TrialModel.trial_id)
        .outerjoin(TrialRow, TrialRow.trial_id == models.TrialModel.trial_id)
        .where(
            models.TrialModel.study_id == study.study_id,
            models.TrialModel.state == TrialState.COMPLETE,
            value.value_type == models.TrialValueModel.TrialValueType.FINITE,
            constraints.feasible(models.TrialModel.trial_id),
        )
        .order_by(order, models.TrialModel.number)
    )


@patient
def best(
    storage: SharedStorage, study: StudyRecord, top: int | None = 1, only: Collection[int] | None = None
) -> list[RankedTrial]:
    """The `top` COMPLETE trials by value, best first. A pruned trial's value is no final one and is not ranked.

    Nor is a trial that violates a constraint. `only`: of the trials of these numbers.
    """
    query = ranking(study) if only is None else ranking(study).where(models.TrialModel.number.in_(only))
    with storage.backend.read() as session:
        return [_ranked(session, *row) for row in session.execute(query.limit(top)).all()]


@patient
def leaders(storage: SharedStorage, study: StudyRecord, top: int) -> list[tuple[int, float]]:
    """Number and value of the trials that `best` gives, in one look: asked whenever a trial is settled."""
    columns = ranking(study).with_only_columns(models.TrialModel.number, models.TrialValueModel.value)
    with storage.backend.read() as session:
        return [(number, value) for number, value in session.execute(columns.limit(top)).all()]


@patient
def param_distributions(storage: SharedStorage, study: StudyRecord) -> dict[str, distributions.BaseDistribution]:
    """The distribution under which each parameter of the study was sampled last: its space may have changed."""
    param = models.TrialParamModel
    query = (
        select(param.param_name, param.distribution_json)
        .join(models.TrialModel, models.TrialModel.trial_id == param.trial_id)
        .where(models.TrialModel.study_id == study.study_id)
        .order_by(param.param_id)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
    # Of several the last: it is written last.
    return {name: distributions.json_to_distribution(text) for name, text in rows}


def _ranked(session: Session, trial_id: int, number: int, value: float, best_epoch: int | None) -> RankedTrial:
    attr = models.TrialUserAttributeModel
    attrs = session.execute(select(attr.key, attr.value_json).where(attr.trial_id == trial_id)).all()
    epochs, seconds = session.execute(
        select(func.count(), func.coalesce(func.sum(EpochRow.seconds), 0.0)).where(EpochRow.trial_id == trial_id)
    ).one()
    return RankedTrial(
        number=number,
        value=value,
        best_epoch=best_epoch,
        epochs=epochs,
        seconds=float(seconds),
        attrs={key: json.loads(text) for key, text in attrs},
    )


@patient
def weights_of(storage: SharedStorage, study: StudyRecord, number: int) -> tuple[str, str] | None:
    """Path (relative to the study's folder) and SHA-256 of the file with a trial's best epoch; None if not kept."""
    query = (
        select(CheckpointRow.path, CheckpointRow.sha256)
        .join(models.TrialModel, models.TrialModel.trial_id == CheckpointRow.trial_id)
        .where(
            models.TrialModel.study_id == study.study_id,
            models.TrialModel.number == number,
            CheckpointRow.kind == CheckpointKind.WEIGHTS,
        )
        .order_by(CheckpointRow.checkpoint_id.desc())
        .limit(1)
    )
    with storage.backend.read() as session:
        row = session.execute(query).one_or_none()
    return (row[0], row[1]) if row is not None else None
