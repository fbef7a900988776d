"""One trial with all that the database knows of it; called by `storage.queries`, under whose name callers know it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage.claims import Checkpoint
from storage.engine import database_now
from storage.errors import UsageError
from storage.leases import HANDED_BACK
from storage.listing import state_of
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointKind, CheckpointRow, EpochRow, LeaseRow, TrialRow, WorkerRow


@dataclass(frozen=True)
class EpochLine:
    """One epoch on record. `value` is what pruners see, None within a fold.

    A step that was reported through plain Optuna alone has its value and nothing else.
    """

    epoch: int
    value: float | None
    metrics: Mapping[str, float]
    seconds: float = 0.0
    samples: int = 0
    device: str = ""
    devices: int = 1
    worker_id: str = ""
    generation: int = 0
    ended_at: float | None = None


@dataclass(frozen=True)
class Owner:
    """A worker that trained the trial: the `generation`-th. `epochs` it recorded that still stand.

    `holds`: it has the trial now. Host, process and slot are "?" or 0 for one that the database has forgotten.
    """

    generation: int
    worker_id: str
    host: str
    pid: int
    slot: str
    epochs: int
    holds: bool


@dataclass(frozen=True)
class TrialDetail:
    """A trial in any state.

    `state`: its outcome's name, else "running", "adoptable" (its worker is gone), "paused" or "waiting" (enqueued, not
    started).
    `value`: the final one, of a pruned trial its last epoch's; None while there is none and for several objectives.
    `enqueued`: what it was told to suggest. `attrs`: the recipe and whatever else the worker noted. `seconds` of all
    epochs together. Times are seconds since 1970, None for what has not come. `weights` of the best epoch and the
    newest `checkpoint` are files that are recorded and not yet retired. A constraint above 0 is violated.
    """

    trial_id: int
    number: int
    state: str
    outcome: Outcome | None
    reason: str
    value: float | None
    best_epoch: int | None
    params: Mapping[str, Any]
    enqueued: Mapping[str, Any]
    attrs: Mapping[str, Any]
    epochs: tuple[EpochLine, ...]
    owners: tuple[Owner, ...]
    started_at: float | None
    settled_at: float | None
    seconds: float
    weights: Checkpoint | None
    checkpoint: Checkpoint | None
    constraints: Mapping[str, float] = field(default_factory=dict)


@patient
def trial(storage: SharedStorage, study: StudyRecord | str, number: int) -> TrialDetail:
    """A trial by its number. A study of plain Optuna is given by its name.

    Raises:
        UsageError: there is no such trial.
    """
    with storage.backend.read() as session:
        trial_id = _id_of(session, study, number)
        row = session.get(TrialRow, trial_id)
        epochs = session.scalars(select(EpochRow).where(EpochRow.trial_id == trial_id).order_by(EpochRow.epoch)).all()
        lease, expired = session.execute(
            select(LeaseRow, LeaseRow.expires_at < database_now()).where(LeaseRow.trial_id == trial_id)
        ).one_or_none() or (None, None)
        owners = _owners(session, epochs, lease)
        weights = _newest(session, trial_id, CheckpointKind.WEIGHTS)
        checkpoint = _newest(session, trial_id, CheckpointKind.STATE)
    try:
        frozen = storage.backend.get_trial(trial_id)
    except KeyError:
        raise UsageError(f"trial {number} is gone: somebody deleted its study") from None
    outcome = row.outcome if row is not None else None
    return TrialDetail(
        trial_id=trial_id,
        number=number,
        state=state_of(frozen.state, outcome, expired, row.paused if row is not None else None),
        outcome=Outcome(outcome or Outcome.of(frozen.state)) if frozen.state.is_finished() else None,
        reason=row.reason if row is not None else "",
        value=frozen.values[0] if frozen.values is not None and len(frozen.values) == 1 else None,
        best_epoch=row.best_epoch if row is not None else None,
        params=frozen.params,
        enqueued=frozen.system_attrs.get("fixed_params", {}),
        attrs=frozen.user_attrs,
        epochs=epoch_lines(frozen, epochs),
        owners=owners,
        started_at=row.started_at if row is not None else _seconds(frozen.datetime_start),
        settled_at=(row.settled_at if row is not None else None) or _seconds(frozen.datetime_complete),
        seconds=sum(epoch.seconds for epoch in epochs),
        weights=weights,
        checkpoint=checkpoint,
        constraints=frozen.constraints,
    )


def _id_of(session: Session, study: StudyRecord | str, number: int) -> int:
    table, of = models.TrialModel, models.StudyModel
    this = of.study_name == study if isinstance(study, str) else of.study_id == study.study_id
    numbers = select(table.trial_id).join(of, of.study_id == table.study_id).where(this)
    trial_id = session.scalar(numbers.where(table.number == number))
    if trial_id is not None:
        return int(trial_id)
    last = session.scalar(numbers.with_only_columns(func.max(table.number)))
    name = study if isinstance(study, str) else study.name
    has = "it has none yet" if last is None else "it has only trial 0" if last == 0 else f"its trials are 0 to {last}"
    raise UsageError(f"study {name!r} has no trial {number}: {has}")


def _owners(session: Session, epochs: Sequence[EpochRow], lease: LeaseRow | None) -> tuple[Owner, ...]:
    """In the order in which they had the trial. One that recorded nothing and lost it again has left no trace."""
    recorded = Counter((epoch.generation, epoch.worker_id) for epoch in epochs)
    holder = (lease.generation, lease.worker_id) if lease is not None and lease.expires_at != HANDED_BACK else None
    owners = sorted({*recorded} | ({holder} if holder is not None else set()))
    found = session.scalars(select(WorkerRow).where(WorkerRow.worker_id.in_([worker_id for _, worker_id in owners])))
    workers = {worker.worker_id: worker for worker in found}
    return tuple(
        Owner(
            generation=generation,
            worker_id=worker_id,
            host=workers[worker_id].host if worker_id in workers else "?",
            pid=workers[worker_id].pid if worker_id in workers else 0,
            slot=workers[worker_id].slot if worker_id in workers else "?",
            epochs=recorded[generation, worker_id],
            holds=(generation, worker_id) == holder,
        )
        for generation, worker_id in owners
    )


def _newest(session: Session, trial_id: int, kind: CheckpointKind) -> Checkpoint | None:
    row = session.execute(
        select(CheckpointRow.epoch, CheckpointRow.path, CheckpointRow.sha256)
        .where(CheckpointRow.trial_id == trial_id, CheckpointRow.kind == kind)
        .order_by(CheckpointRow.checkpoint_id.desc())
        .limit(1)
    ).one_or_none()
    return Checkpoint(*row) if row is not None else None


def epoch_lines(frozen: FrozenTrial, epochs: Sequence[Any]) -> tuple[EpochLine, ...]:
    """Of rows with the columns of `EpochRow`, and of what was reported through plain Optuna alone."""
    values = frozen.intermediate_values
    lines = {step: EpochLine(step, value, {}) for step, value in values.items()}
    for row in epochs:
        lines[row.epoch] = EpochLine(
            epoch=row.epoch,
            value=values.get(row.epoch),
            metrics=json.loads(row.metrics),
            seconds=row.seconds,
            samples=row.samples,
            device=row.device,
            devices=row.devices,
            worker_id=row.worker_id,
            generation=row.generation,
            ended_at=row.ended_at,
        )
    return tuple(lines[step] for step in sorted(lines))


def _seconds(moment: datetime | None) -> float | None:
    """Optuna's times are this machine's, without a zone."""
    return moment.timestamp() if moment is not None else None
