"""What came of a confirmation: each of its trials, and what the test split said of the recipe that won.

Called by whoever shows results, and by the process that opens the test split.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy import delete, exists, func, select, union
from sqlalchemy.orm import Session

from storage.confirmations import RECIPE, recipe_number, study_attribute, write_study_attribute
from storage.constraints import feasible
from storage.engine import database_now
from storage.listing import state_of
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointKind, CheckpointRow, EpochRow, LeaseRow, TrialRow

# The system attribute of Optuna's study with what the test split said.
TESTED = "dialin:tested"


@dataclass(frozen=True)
class Seed:
    """One trial of a confirmation, with the recipe of trial `recipe` of the confirmed study.

    `state`: its outcome's name, else "running", "adoptable", "paused" or "waiting". `value` of a complete one.
    `seconds` of device time. `weights`: whether they are on record. `feasible`: it violates no constraint.
    """

    recipe: int
    trial: int
    trial_id: int
    state: str
    value: float | None
    seconds: float
    weights: bool
    feasible: bool = True


@dataclass(frozen=True)
class Opened:
    """What the test split said of a recipe at `at` (seconds since 1970): the metrics of the model of each trial.

    `models` is None where there is no test split, and `why` says so. `samples` in it.
    """

    recipe: int
    models: Mapping[int, Mapping[str, float]] | None = field(hash=False)
    samples: int = 0
    why: str = ""
    at: float = 0.0


@patient
def seeds(storage: SharedStorage, confirmation: StudyRecord) -> list[Seed]:
    """Every trial of a confirmation, by number."""
    trial, attr, value = models.TrialModel, models.TrialUserAttributeModel, models.TrialValueModel
    file, spent = CheckpointRow, func.sum(EpochRow.seconds * EpochRow.devices)
    cost = select(spent).where(EpochRow.trial_id == trial.trial_id).correlate(trial).scalar_subquery()
    query = (
        select(
            attr.value_json,
            trial.number,
            trial.trial_id,
            trial.state,
            TrialRow.outcome,
            LeaseRow.expires_at < database_now(),
            TrialRow.paused,
            value.value,
            func.coalesce(cost, 0.0),
            exists().where(file.trial_id == trial.trial_id, file.kind == CheckpointKind.WEIGHTS),
            feasible(trial.trial_id),
        )
        .join(attr, (attr.trial_id == trial.trial_id) & (attr.key == RECIPE))
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(LeaseRow, LeaseRow.trial_id == trial.trial_id)
        .outerjoin(value, (value.trial_id == trial.trial_id) & (value.value_type == value.TrialValueType.FINITE))
        .where(trial.study_id == confirmation.study_id)
        .order_by(trial.number)
    )
    found = []
    with storage.backend.read() as session:
        rows = session.execute(query).all()
    for text, number, trial_id, state, outcome, expired, paused, final, seconds, kept, fits in rows:
        if (recipe := recipe_number(text)) is not None:
            said = state_of(state, outcome, expired, paused)
            best = final if said == Outcome.COMPLETE.value else None
            found.append(Seed(recipe, number, trial_id, said, best, float(seconds), bool(kept), bool(fits)))
    return found


@patient
def values_seen(storage: SharedStorage, confirmation: StudyRecord) -> list[float]:
    """Every value that the searched metric had after an epoch or in the end, each once."""
    trial, step, value = models.TrialModel, models.TrialIntermediateValueModel, models.TrialValueModel
    mine = trial.study_id == confirmation.study_id
    reported = select(step.intermediate_value).join(trial, trial.trial_id == step.trial_id)
    finite = step.intermediate_value_type == step.TrialIntermediateValueType.FINITE
    final = select(value.value).join(trial, trial.trial_id == value.trial_id)
    final = final.where(mine, value.value_type == value.TrialValueType.FINITE)
    with storage.backend.read() as session:
        return [float(one) for one in session.scalars(union(reported.where(mine, finite), final)).all()]


@patient
def opened(storage: SharedStorage, confirmation: StudyRecord) -> list[Opened]:
    """What the test split said, in the order in which it was opened."""
    with storage.backend.read() as session:
        return _read(study_attribute(session, confirmation.study_id, TESTED))


def _read(text: str | None) -> list[Opened]:
    """Nothing where somebody else has written there."""
    try:
        found = [replace(Opened(**one), models=_models(one["models"])) for one in json.loads(text or "[]")]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
    return found if all(map(_is_whole, found)) else []


def _is_whole(one: Opened) -> bool:
    numbers = isinstance(one.recipe, int) and isinstance(one.samples, int) and isinstance(one.at, int | float)
    return numbers and isinstance(one.why, str)


def _models(told: Any) -> dict[int, dict[str, float]] | None:
    """JSON has no NaN: such a metric is null."""
    if told is None:
        return None
    return {
        int(trial): {name: math.nan if value is None else float(value) for name, value in metrics.items()}
        for trial, metrics in told.items()
    }


def _as_json(one: Opened) -> dict[str, Any]:
    told = asdict(one)
    if one.models is not None:
        told["models"] = {
            str(trial): {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for trial, metrics in one.models.items()
        }
    return told


def conclude(
    storage: SharedStorage, confirmation: StudyRecord, said: Opened, rivals: Collection[int] = ()
) -> list[str]:
    """Put on record what the test split said, unless that is known of the recipe, and forget the others' weights.

    But those of `rivals`, which more seeds may yet prefer. The files of the rest in return, for the caller to remove.
    """
    study_id = confirmation.study_id

    def attempt(session: Session, _again: bool) -> list[str]:
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        known = _read(study_attribute(session, study_id, TESTED))
        if all(one.recipe != said.recipe for one in known):
            now = session.scalar(select(database_now())) or 0.0
            write_study_attribute(session, study_id, TESTED, [*map(_as_json, [*known, replace(said, at=now)])])
        return _forget_weights(session, study_id, {said.recipe, *rivals})

    return storage.backend.write_once(attempt)


def _forget_weights(session: Session, study_id: int, kept: Collection[int]) -> list[str]:
    """Of all recipes but those."""
    trial, attr, file = models.TrialModel, models.TrialUserAttributeModel, CheckpointRow
    others = (
        select(trial.trial_id)
        .join(attr, attr.trial_id == trial.trial_id)
        .where(trial.study_id == study_id, attr.key == RECIPE, attr.value_json.not_in([*map(json.dumps, kept)]))
    )
    statement = (
        delete(file)
        .where(file.kind == CheckpointKind.WEIGHTS, file.trial_id.in_(others))
        .returning(file.path)
        .execution_options(synchronize_session=False)
    )
    return list(session.scalars(statement).all())
