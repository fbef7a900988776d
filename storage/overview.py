"""Every trial of a study in a line, whatever its state; `search.api` makes a data frame of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import json_to_distribution
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage.engine import database_now
from storage.listing import state_of
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import EpochRow, LeaseRow, TrialRow

# User attributes with the real recipe and the model's own knobs.
_KNOBS = ("settings", "model")
_FINITE = models.TrialValueModel.TrialValueType.FINITE


@dataclass(frozen=True)
class TrialLine:
    """A trial in any state.

    `state`: its outcome's name, else "running", "adoptable" (its worker is gone), "paused" or "waiting" (enqueued, not
    started).
    `value`: the final one, of a pruned trial its last epoch's. `recipe` in real units, and the `model`'s own knobs;
    of a trial without a recipe, such as a bare function's, what it has suggested. Both empty before a trial starts.
    """

    number: int
    state: str
    value: float | None
    best_epoch: int | None
    epochs: int
    seconds: float
    recipe: Mapping[str, Any]
    model: Mapping[str, Any]


@patient
def overview(storage: SharedStorage, study: StudyRecord) -> list[TrialLine]:
    """All trials by number, in four statements."""
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
        )
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(LeaseRow, LeaseRow.trial_id == trial.trial_id)
        .outerjoin(value, (value.trial_id == trial.trial_id) & (value.value_type == _FINITE))
        .where(trial.study_id == study.study_id)
        .order_by(trial.number)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
        cost, knobs = _cost(session, study.study_id), _knobs(session, study.study_id)
        sampled = _sampled(session, study.study_id)
    lines = []
    for trial_id, number, state, outcome, expired, paused, final, best_epoch in rows:
        epochs, seconds = cost.get(trial_id, (0, 0.0))
        own = knobs[trial_id]
        recipe, model = own.get("settings", sampled[trial_id]), own.get("model", {})
        said = state_of(state, outcome, expired, paused)
        lines.append(TrialLine(number, said, final, best_epoch, epochs, seconds, recipe, model))
    return lines


def _cost(session: Session, study_id: int) -> dict[int, tuple[int, float]]:
    """Epochs and seconds by trial."""
    trial = models.TrialModel
    query = (
        select(EpochRow.trial_id, func.count(), func.sum(EpochRow.seconds))
        .join(trial, trial.trial_id == EpochRow.trial_id)
        .where(trial.study_id == study_id)
        .group_by(EpochRow.trial_id)
    )
    return {trial_id: (count, float(seconds)) for trial_id, count, seconds in session.execute(query).all()}


def _knobs(session: Session, study_id: int) -> dict[int, dict[str, Any]]:
    trial, attr = models.TrialModel, models.TrialUserAttributeModel
    query = (
        select(attr.trial_id, attr.key, attr.value_json)
        .join(trial, trial.trial_id == attr.trial_id)
        .where(trial.study_id == study_id, attr.key.in_(_KNOBS))
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in session.execute(query).all():
        found[trial_id][key] = json.loads(text)
    return found


def _sampled(session: Session, study_id: int) -> dict[int, dict[str, Any]]:
    """What Optuna has on record of trials that have no recipe."""
    trial, param, attr = models.TrialModel, models.TrialParamModel, models.TrialUserAttributeModel
    with_recipe = select(attr.trial_id).where(attr.key == "settings", attr.trial_id == trial.trial_id).exists()
    query = (
        select(param.trial_id, param.param_name, param.param_value, param.distribution_json)
        .join(trial, trial.trial_id == param.trial_id)
        .where(trial.study_id == study_id, ~with_recipe)
        .order_by(param.param_id)
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, name, number, text in session.execute(query).all():
        found[trial_id][name] = json_to_distribution(text).to_external_repr(number)
    return found
