"""What trials must keep to, as an objective says with `trial.set_constraint(name, value)`: above 0 is a violation.

Optuna's samplers read constraints from a trial's system attributes; here they are asked for by SQL, and made alike for
samplers that want every trial to have the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from storage.optuna_internals import CONSTRAINT, models


@dataclass(frozen=True)
class Kept:
    """How a study's COMPLETE and PRUNED trials keep to its constraints.

    Attributes:
        ended, feasible: trials, and those that keep to all.
        violated: by how many trials each constraint is violated.
        nearest: number and violations of the trial whose violations sum up to least, where none is feasible.
    """

    ended: int
    feasible: int
    violated: Mapping[str, int] = field(default_factory=dict)
    nearest: tuple[int, Mapping[str, float]] | None = None


def feasible(trial_id: Any) -> ColumnElement[bool]:
    """The condition that a trial violates no constraint; `trial_id` is a column."""
    attr = models.TrialSystemAttributeModel
    # Optuna writes a float, which JSON has no sign for above 0: no cast, which databases do not do alike.
    above = attr.value_json.not_like("-%") & attr.value_json.not_in(["0.0", "0"])
    return ~exists().where(attr.trial_id == trial_id, attr.key.startswith(CONSTRAINT, autoescape=True), above)


def kept(session: Session, study_id: int) -> Kept | None:
    """How a study's trials keep to their constraints; None: they have none."""
    attr, trial = models.TrialSystemAttributeModel, models.TrialModel
    ended = (trial.study_id == study_id) & trial.state.in_((TrialState.COMPLETE, TrialState.PRUNED))
    rows = session.execute(
        select(trial.number, attr.key, attr.value_json)
        .outerjoin(attr, (attr.trial_id == trial.trial_id) & attr.key.startswith(CONSTRAINT, autoescape=True))
        .where(ended)
    ).all()
    found: dict[int, dict[str, float]] = {number: {} for number, _key, _text in rows}
    for number, key, text in rows:
        if key is not None:
            found[number][key.removeprefix(CONSTRAINT)] = json.loads(text)
    if not any(found.values()):
        return None
    over = {number: violations(values) for number, values in found.items()}
    names = sorted({name for values in over.values() for name in values})
    count = {name: sum(name in values for values in over.values()) for name in names}
    fit = sum(not values for values in over.values())
    nearest = min(over, key=lambda number: (sum(over[number].values()), number)) if not fit else None
    return Kept(len(found), fit, count, None if nearest is None else (nearest, over[nearest]))


def violations(constraints: Mapping[str, float]) -> dict[str, float]:
    """Those that are violated, and by how much."""
    return {name: value for name, value in constraints.items() if value > 0}


def alike(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials, each with the constraints that any has: GPSampler takes no others.

    A complete trial that says nothing was trained before there were constraints. Whether it would keep to them nobody
    knows, and taken for one that does it would draw samplers to where none may: it is left out. Of several constraints
    one that a trial does not set is just kept.
    """
    having = [names_of(trial) for trial in trials]
    keys = sorted({key for found in having for key in found})
    if not keys:
        return trials
    known = [(trial, found) for trial, found in zip(trials, having, strict=True) if found or not _is_complete(trial)]
    return [_with(trial, found, keys) for trial, found in known]


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def names_of(trial: FrozenTrial) -> tuple[str, ...]:
    """The system attributes that hold a trial's constraints."""
    return tuple(key for key in trial.system_attrs if key.startswith(CONSTRAINT))


def _with(trial: FrozenTrial, having: Sequence[str], keys: list[str]) -> FrozenTrial:
    if [*having] == keys or not trial.state.is_finished():
        return trial
    shown = copy.copy(trial)
    others = {key: value for key, value in trial.system_attrs.items() if key not in having}
    shown.system_attrs = others | {key: trial.system_attrs.get(key, 0.0) for key in keys}
    return shown
