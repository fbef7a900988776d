"""Every trial of a study with its whole curve, and who trained it when: what advice and the report are made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.attributes import ORIGIN, PEAK_MEMORY, bytes_of
from storage.details import EpochLine, epoch_lines
from storage.engine import database_now
from storage.listing import state_of
from storage.optuna_internals import models, trial_id_of
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import EpochRow, LeaseRow, OwnerRow, TrialRow, WorkerRow


@dataclass(frozen=True)
class RecordedTrial:
    """A trial in any state, with every epoch.

    `state`: its outcome's name, else "running", "adoptable", "paused" or "waiting". `value`: the final one, of a pruned
    trial its last epoch's. `params` are what Optuna sampled from `distributions`; `recipe` is the same in real units,
    and `model` the model's own knobs; a trial without a recipe, such as a bare function's, has its params in `recipe`.
    A constraint above 0 is violated. Times are seconds since 1970.
    """

    number: int
    state: str
    outcome: Outcome | None
    reason: str = ""
    value: float | None = None
    best_epoch: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    peak_memory: int | None = None
    epochs: tuple[EpochLine, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    started_at: float | None = None
    settled_at: float | None = None

    @property
    def feasible(self) -> bool:
        """Whether it violates no constraint."""
        return all(value <= 0 for value in self.constraints.values())

    @property
    def seconds(self) -> float:
        """Wall time of its epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def device_seconds(self) -> float:
        """Each epoch's seconds times its devices."""
        return sum(epoch.seconds * epoch.devices for epoch in self.epochs)


@dataclass(frozen=True)
class Span:
    """A worker's time with a trial. `ended_at` None: it has it still. `ending` is an `OwnerEnding`, "" until then."""

    number: int
    worker: str
    began_at: float
    ended_at: float | None
    ending: str


@patient
def trials(storage: SharedStorage, study: StudyRecord) -> list[RecordedTrial]:
    """All trials by number."""
    frozen = storage.recorded(study.study_id)
    with storage.backend.read() as session:
        rows, epochs = _rows(session, study.study_id), _epochs(session, study.study_id)
    known = [(one, rows[id_], epochs.get(id_, [])) for one in frozen if (id_ := trial_id_of(one)) in rows]
    return sorted((_record(*one) for one in known), key=lambda one: one.number)


def _rows(session: Session, study_id: int) -> dict[int, Any]:
    trial = models.TrialModel
    query = (
        select(
            trial.trial_id,
            TrialRow.outcome,
            TrialRow.reason,
            TrialRow.best_epoch,
            TrialRow.started_at,
            TrialRow.settled_at,
            TrialRow.paused,
            (LeaseRow.expires_at < database_now()).label("expired"),
        )
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(LeaseRow, LeaseRow.trial_id == trial.trial_id)
        .where(trial.study_id == study_id)
    )
    return {row.trial_id: row for row in session.execute(query).all()}


def _epochs(session: Session, study_id: int) -> dict[int, list[Any]]:
    trial = models.TrialModel
    query = (
        select(*EpochRow.__table__.columns)
        .join(trial, trial.trial_id == EpochRow.trial_id)
        .where(trial.study_id == study_id)
        .order_by(EpochRow.trial_id, EpochRow.epoch)
    )
    found: dict[int, list[Any]] = defaultdict(list)
    for row in session.execute(query).all():
        found[row.trial_id].append(row)
    return found


def _record(frozen: FrozenTrial, row: Any, epochs: list[Any]) -> RecordedTrial:
    attrs = frozen.user_attrs
    settings, model = attrs.get("settings"), attrs.get("model")
    return RecordedTrial(
        number=frozen.number,
        state=state_of(frozen.state, row.outcome, row.expired, row.paused),
        outcome=Outcome(row.outcome or Outcome.of(frozen.state)) if frozen.state.is_finished() else None,
        reason=row.reason or "",
        value=frozen.values[0] if frozen.values is not None and len(frozen.values) == 1 else None,
        best_epoch=row.best_epoch,
        params=frozen.params,
        distributions=frozen.distributions,
        recipe=settings if isinstance(settings, dict) else frozen.params,
        model=model if isinstance(model, dict) else {},
        origin=str(attrs.get(ORIGIN, "")),
        peak_memory=bytes_of(attrs.get(PEAK_MEMORY)),
        epochs=epoch_lines(frozen, epochs),
        constraints=frozen.constraints,
        started_at=row.started_at,
        settled_at=row.settled_at,
    )


@patient
def spans(storage: SharedStorage, study: StudyRecord) -> list[Span]:
    """Who had which trial from when to when, in the order of beginning."""
    trial = models.TrialModel
    query = (
        select(
            trial.number,
            OwnerRow.worker_id,
            WorkerRow.host,
            WorkerRow.pid,
            WorkerRow.slot,
            OwnerRow.began_at,
            OwnerRow.ended_at,
            OwnerRow.ending,
        )
        .join(OwnerRow, OwnerRow.trial_id == trial.trial_id)
        .outerjoin(WorkerRow, WorkerRow.worker_id == OwnerRow.worker_id)
        .where(trial.study_id == study.study_id)
        .order_by(OwnerRow.began_at, trial.number)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
    return [
        Span(number, f"{host} {slot} (pid {pid})" if host else worker_id[:8], began, ended, ending or "")
        for number, worker_id, host, pid, slot, began, ended, ending in rows
    ]
