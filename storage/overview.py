"""Every trial of a study in a line, whatever its state; `search.trial_table` makes a table of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import json_to_distribution
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from storage import costs
from storage.costs import Cost, chosen
from storage.engine import database_now
from storage.listing import state_of
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import EpochRow, LeaseRow, TrialRow

# User attributes with the real recipe and the model's own knobs, and the recipe in a line.
_KNOBS = ("settings", "model", "recipe")
_FINITE = models.TrialValueModel.TrialValueType.FINITE


@dataclass(frozen=True)
class TrialLine:
    """A trial in any state.

    `state`: its outcome's name, else "running", "adoptable" (its worker is gone), "paused" or "waiting" (enqueued, not
    started).
    `value`: the final one, of a pruned trial its last epoch's. `recipe` in real units, and the `model`'s own knobs;
    of a trial without a recipe, such as a bare function's, what it has suggested. Both empty before a trial starts.
    `summary` is the recipe in a line, "" where there is none. `metrics` of the best epoch, of the last one where none
    is the best. Times are seconds since 1970.
    """

    number: int
    state: str
    value: float | None
    best_epoch: int | None
    cost: Cost
    recipe: Mapping[str, Any]
    model: Mapping[str, Any]
    summary: str
    metrics: Mapping[str, float]
    started_at: float | None
    settled_at: float | None


@patient
def overview(storage: SharedStorage, study: StudyRecord, numbers: range | None = None) -> list[TrialLine]:
    """All trials by number, or those with one of these numbers, in six statements."""
    trial, value = models.TrialModel, models.TrialValueModel
    query = (
        select(
            trial.trial_id,
            trial.number,
            trial.state,
            TrialRow.outcome,
            LeaseRow.expires_at < database_now(),
            TrialRow.paused,
            value.value,
            TrialRow.best_epoch,
            TrialRow.started_at,
            TrialRow.settled_at,
        )
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(LeaseRow, LeaseRow.trial_id == trial.trial_id)
        .outerjoin(value, (value.trial_id == trial.trial_id) & (value.value_type == _FINITE))
        .where(*chosen(study.study_id, numbers))
        .order_by(trial.number)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
        of = study.study_id, numbers
        cost, knobs = costs.of_trials(session, *of), _knobs(session, *of)
        sampled, metrics = _sampled(session, *of), _metrics(session, *of)
    lines = []
    for trial_id, number, state, outcome, expired, paused, final, best_epoch, started_at, settled_at in rows:
        own = knobs[trial_id]
        line = TrialLine(
            number=number,
            state=state_of(state, outcome, expired, paused),
            value=final,
            best_epoch=best_epoch,
            cost=cost.get(trial_id, Cost()),
            recipe=own.get("settings", sampled[trial_id]),
            model=own.get("model", {}),
            summary=str(own.get("recipe", "")),
            metrics=metrics.get(trial_id, {}),
            started_at=started_at,
            settled_at=settled_at,
        )
        lines.append(line)
    return lines


def _metrics(session: Session, study_id: int, numbers: range | None) -> dict[int, dict[str, float]]:
    """Of each trial's best epoch, else of its last one."""
    every = aliased(EpochRow)
    last = select(func.max(every.epoch)).where(every.trial_id == TrialRow.trial_id).scalar_subquery()
    query = (
        select(TrialRow.trial_id, EpochRow.metrics)
        .join(EpochRow, EpochRow.trial_id == TrialRow.trial_id)
        .join(models.TrialModel, models.TrialModel.trial_id == TrialRow.trial_id)
        .where(*chosen(study_id, numbers), EpochRow.epoch == func.coalesce(TrialRow.best_epoch, last))
    )
    return {trial_id: json.loads(text) for trial_id, text in session.execute(query).all()}


def _knobs(session: Session, study_id: int, numbers: range | None) -> dict[int, dict[str, Any]]:
    trial, attr = models.TrialModel, models.TrialUserAttributeModel
    query = (
        select(attr.trial_id, attr.key, attr.value_json)
        .join(trial, trial.trial_id == attr.trial_id)
        .where(*chosen(study_id, numbers), attr.key.in_(_KNOBS))
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in session.execute(query).all():
        found[trial_id][key] = json.loads(text)
    return found


def _sampled(session: Session, study_id: int, numbers: range | None) -> dict[int, dict[str, Any]]:
    """What Optuna has on record of trials that have no recipe."""
    trial, param, attr = models.TrialModel, models.TrialParamModel, models.TrialUserAttributeModel
    with_recipe = select(attr.trial_id).where(attr.key == "settings", attr.trial_id == trial.trial_id).exists()
    query = (
        select(param.trial_id, param.param_name, param.param_value, param.distribution_json)
        .join(trial, trial.trial_id == param.trial_id)
        .where(*chosen(study_id, numbers), ~with_recipe)
        .order_by(param.param_id)
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, name, number, text in session.execute(query).all():
        found[trial_id][name] = json_to_distribution(text).to_external_repr(number)
    return found


@patient
def last_number(storage: SharedStorage, study: StudyRecord) -> int:
    """The highest number of a trial, -1 without any."""
    trial = models.TrialModel
    with storage.backend.read() as session:
        last = session.scalar(select(func.max(trial.number)).where(trial.study_id == study.study_id))
    return -1 if last is None else last
