"""The paused trials of a study, and how they settle PRUNED: at its end, or where a disk has no more room.

Statements inside a transaction, also of one that holds our study (`storage.limits`), for which everybody else waits
last: so a trial that is locked is left alone. It is in the hands of whoever goes on with it, or deletes it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Table, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from storage import attributes
from storage.claims import new_uuid
from storage.engine import database_now
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.tables import CheckpointKind, CheckpointRow, EpochRow, TrialRow

# So many are named by their ids in one statement; SQLite takes 32,766 parameters.
_CHUNK = 1000


@dataclass(frozen=True)
class PausedTrial:
    """A trial that nobody trains until the strategy goes on with it, after so many epochs."""

    number: int
    epoch: int
    now: float | None
    best: float | None


@dataclass
class _Curve:
    """What a paused trial has on record."""

    epochs: int = 0
    seconds: float = 0.0
    values: dict[int, float] = field(default_factory=dict)

    def best_epoch(self, direction: StudyDirection | None) -> int | None:
        """The first with the best finite value."""
        finite = {epoch: value for epoch, value in sorted(self.values.items()) if math.isfinite(value)}
        if not finite:
            return None
        sign = -1 if direction == StudyDirection.MAXIMIZE else 1
        return min(finite, key=lambda epoch: sign * finite[epoch])

    @property
    def last(self) -> float | None:
        """What Optuna's `tell` takes for the value of a pruned trial."""
        value = self.values[max(self.values)] if self.values else math.nan
        return None if math.isnan(value) else value


def trials(session: Session, study_id: int, direction: str) -> tuple[PausedTrial, ...]:
    """Those of a study, by number."""
    trial, value = models.TrialModel, models.TrialIntermediateValueModel
    mine = value.trial_id == trial.trial_id, value.intermediate_value_type == value.TrialIntermediateValueType.FINITE
    best = select((func.max if direction == "maximize" else func.min)(value.intermediate_value)).where(*mine)
    last = select(value.intermediate_value).where(*mine).order_by(value.step.desc()).limit(1)
    epoch = select(func.max(EpochRow.epoch)).where(EpochRow.trial_id == trial.trial_id)
    rows = session.execute(
        select(trial.number, *(part.correlate(trial).scalar_subquery() for part in (epoch, last, best)))
        .join(TrialRow, TrialRow.trial_id == trial.trial_id)
        .where(TrialRow.study_id == study_id, TrialRow.paused.is_not(None), trial.state == TrialState.RUNNING)
        .order_by(trial.number)
    ).all()
    return tuple(PausedTrial(number, epoch or 0, now, best) for number, epoch, now, best in rows)


def settle(session: Session, study_id: int, why: str, only: Collection[int] | None = None) -> list[int]:
    """Settle all paused trials of a study, or of those `only` that have these ids; their ids in return.

    Each exactly once, whoever else does the same or goes on with one of them meanwhile.
    """
    trial = models.TrialModel
    query = (
        select(trial.trial_id)
        .join(TrialRow, TrialRow.trial_id == trial.trial_id)
        .where(TrialRow.study_id == study_id, TrialRow.paused.is_not(None), trial.state == TrialState.RUNNING)
        .order_by(trial.trial_id)
        .with_for_update(of=trial, skip_locked=True)
    )
    found = [one for one in session.scalars(query).all() if only is None or one in only]
    settled: list[int] = []
    for chunk in _chunks(found):
        # Somebody may have gone on with one between that look and its lock.
        still = (
            update(TrialRow)
            .where(TrialRow.trial_id.in_(chunk), TrialRow.paused.is_not(None))
            .values(paused=None, outcome=Outcome.PRUNED, settled_at=database_now())
            .returning(TrialRow.trial_id)
            .execution_options(synchronize_session=False)
        )
        ids = sorted(session.scalars(still).all())
        if ids:
            _write(session, study_id, ids, why)
        settled += ids
    return settled


def _write(session: Session, study_id: int, ids: list[int], why: str) -> None:
    """Everything else that a settlement leaves, of so many trials at once."""
    directed = models.StudyDirectionModel
    direction = session.scalar(select(directed.direction).where(directed.study_id == study_id))
    curves = _curves(session, ids)
    rows, attrs, values = [], [], []
    for trial_id in ids:
        curve = curves[trial_id]
        best, reason = curve.best_epoch(direction), f"paused after epoch {max(curve.values, default=0)}; {why}"
        rows.append({"of_trial": trial_id, "key": new_uuid(), "best": best, "said": reason})
        told = {"outcome": Outcome.PRUNED.value, "reason": reason, "epochs": curve.epochs}
        told |= {"seconds": round(curve.seconds, 3)} | ({"best_epoch": best} if best is not None else {})
        attrs.append((trial_id, told))
        if curve.last is not None:
            stored, kind = models.TrialValueModel.value_to_stored_repr(curve.last)
            values.append({"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind})
    connection = session.connection()
    row, trial, state = (cast(Table, table.__table__) for table in (TrialRow, models.TrialModel, CheckpointRow))
    settlement: dict[str, Any] = {
        "settlement": bindparam("key"),
        "best_epoch": bindparam("best"),
        "reason": bindparam("said"),
    }
    connection.execute(update(row).where(row.c.trial_id == bindparam("of_trial")).values(settlement), rows)
    if values:
        connection.execute(insert(models.TrialValueModel), values)
    attributes.write(session, attrs)
    say_no_more(session, ids)
    ended = {"state": Outcome.PRUNED.state, "datetime_complete": datetime.now(UTC).replace(tzinfo=None)}
    connection.execute(update(trial).where(trial.c.trial_id.in_(ids)).values(ended))
    mine = state.c.trial_id.in_(ids) & (state.c.kind == CheckpointKind.STATE)
    connection.execute(delete(state).where(mine))


def say_no_more(session: Session, ids: Sequence[int]) -> None:
    """Of trials that are paused no longer: nobody is told so."""
    attr = models.TrialUserAttributeModel.__table__
    mine = attr.c.trial_id.in_(ids) & (attr.c.key == attributes.PAUSED)
    session.connection().execute(delete(attr).where(mine))


def _curves(session: Session, ids: list[int]) -> dict[int, _Curve]:
    found: dict[int, _Curve] = defaultdict(_Curve)
    value, epoch = models.TrialIntermediateValueModel, EpochRow
    values = select(value.trial_id, value.step, value.intermediate_value, value.intermediate_value_type)
    for trial_id, step, stored, kind in session.execute(values.where(value.trial_id.in_(ids))):
        found[trial_id].values[step] = value.stored_repr_to_intermediate_value(stored, kind)
    costs = select(epoch.trial_id, func.count(), func.sum(epoch.seconds)).where(epoch.trial_id.in_(ids))
    for trial_id, count, seconds in session.execute(costs.group_by(epoch.trial_id)):
        found[trial_id].epochs, found[trial_id].seconds = count, float(seconds)
    return found


def _chunks(ids: list[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(ids), _CHUNK):
        yield ids[first : first + _CHUNK]
