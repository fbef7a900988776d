"""What finished studies of this database have found out about recipes, in few and small reads; called by a new search.

Of a study only its best trials and an even choice of the others are read, so that a large one costs no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import ColumnElement, and_, exists, false, func, or_, select
from sqlalchemy.orm import Session

from storage import attributes
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import StudyRow, StudyState, TrialRow

# The newest so many: what was searched longer ago is less like what is searched now.
STUDIES = 32
# Of each study so many of its best trials, and so many of the others, evenly by rank.
BEST, OTHERS = 8, 40
# A study with fewer complete trials has no winner to speak of.
LEAST_COMPLETE = 5


@dataclass(frozen=True)
class PastTrial:
    """A trial with its recipe in real units, and its model's own knobs.

    `value` of a complete one is its best epoch's, of a pruned one its last epoch's; NaN: it diverged. `rank` among all
    complete trials of its study, from 0; None for a pruned one.
    """

    number: int
    value: float
    rank: int | None
    settings: Mapping[str, Any]
    model: Mapping[str, Any]


@dataclass(frozen=True)
class PastStudy:
    """A study that is finished or stopped, with some of its trials, the best ones first."""

    name: str
    objective: str
    metric: str
    direction: str
    trials: tuple[PastTrial, ...]


@patient
def past_studies(storage: SharedStorage, most: int = STUDIES) -> list[PastStudy]:
    """The newest finished or stopped studies with enough complete trials, the newest first.

    Bare functions, which have no recipe, are left out.
    """
    with storage.backend.read() as session:
        rows = session.execute(_finished().limit(most)).all()
        return [
            PastStudy(name, objective, metric, direction.name.lower(), _trials(session, study_id, direction))
            for study_id, name, objective, metric, direction in rows
        ]


def _finished() -> Any:
    trial, study = models.TrialModel, models.StudyModel
    complete = (
        select(func.count())
        .where(trial.study_id == StudyRow.study_id, trial.state == TrialState.COMPLETE)
        .scalar_subquery()
    )
    attr = models.StudySystemAttributeModel
    # What a confirmation trains again is one recipe several times, and that of another study.
    confirms = exists().where(attr.study_id == StudyRow.study_id, attr.key == attributes.CONFIRMS)
    return (
        select(
            StudyRow.study_id,
            study.study_name,
            StudyRow.objective,
            StudyRow.metric,
            models.StudyDirectionModel.direction,
        )
        .join(study, study.study_id == StudyRow.study_id)
        .join(models.StudyDirectionModel, models.StudyDirectionModel.study_id == StudyRow.study_id)
        .where(
            StudyRow.epochs > 0,
            ~confirms,
            (StudyRow.taken >= StudyRow.trials) | (StudyRow.state == StudyState.STOPPED),
            complete >= LEAST_COMPLETE,
        )
        .order_by(StudyRow.study_id.desc())
    )


def _trials(session: Session, study_id: int, direction: StudyDirection) -> tuple[PastTrial, ...]:
    trial, value = models.TrialModel, models.TrialValueModel
    finite = value.value_type == models.TrialValueModel.TrialValueType.FINITE
    # What a model refused, or was pruned elsewhere, has no value and says nothing of its recipe.
    told = or_(and_(trial.state.in_((TrialState.COMPLETE, TrialState.PRUNED)), finite), _diverged())
    better = value.value.desc() if direction is StudyDirection.MAXIMIZE else value.value.asc()
    rows = session.execute(
        select(trial.trial_id, trial.number, trial.state == TrialState.COMPLETE, value.value, _diverged())
        .outerjoin(value, value.trial_id == trial.trial_id)
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .where(trial.study_id == study_id, told)
        .order_by((trial.state != TrialState.COMPLETE), _diverged(), better, trial.number)
    ).all()
    ranked = list(enumerate(rows))
    chosen = [*ranked[:BEST], *evenly(ranked[BEST:], OTHERS)]
    knobs = _knobs(session, [row[0] for _, row in chosen])
    return tuple(
        PastTrial(number, math.nan if diverged else final, rank if complete else None, own["settings"], _model(own))
        for rank, (trial_id, number, complete, final, diverged) in chosen
        if isinstance((own := knobs.get(trial_id, {})).get("settings"), dict)
    )


def _diverged() -> ColumnElement[bool]:
    return func.coalesce(TrialRow.outcome == Outcome.DIVERGED, false())


def _model(own: Mapping[str, Any]) -> Mapping[str, Any]:
    model = own.get("model")
    return model if isinstance(model, dict) else {}


def evenly(ranked: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly by their order."""
    if len(ranked) <= most:
        return list(ranked)
    return [ranked[index * len(ranked) // most] for index in range(most)]


def _knobs(session: Session, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    attr = models.TrialUserAttributeModel
    wanted = select(attr.trial_id, attr.key, attr.value_json).where(
        attr.trial_id.in_(ids), attr.key.in_(("settings", "model"))
    )
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, text in session.execute(wanted).all():
        found.setdefault(trial_id, {})[key] = json.loads(text)
    return found
