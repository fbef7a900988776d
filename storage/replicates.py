"""Trials that trained the same recipe with other seeds, wherever in the database they are; asked by `search.export`.

A confirmation is a study of such trials; a person may have asked for some by `dialin try`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import select
from sqlalchemy.orm import aliased

from storage.optuna_internals import models
from storage.patience import patient
from storage.provenance import trial_seed
from storage.queries import TrialDetail
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import EpochRow, StudyRow, TrialRow

# User attributes that are equal where two trials trained the same.
_SAME = ("settings", "model")


@dataclass(frozen=True)
class Replicate:
    """A complete trial of the same recipe: its value, and every metric in its best epoch."""

    study: str
    number: int
    value: float
    metrics: Mapping[str, float]


@patient
def replicates(storage: SharedStorage, study: StudyRecord, mine: TrialDetail) -> list[Replicate]:
    """Others that trained what this trial did: its objective's source, recipe, model's knobs, length and folds.

    One of each seed: two studies of one seed have the same runs, which say nothing of a spread. None where the trial
    has no recipe of Dialin's.
    """
    attr, trial, value = models.TrialUserAttributeModel, models.TrialModel, models.TrialValueModel
    with storage.backend.read() as session:
        same_as = session.execute(
            select(attr.key, attr.value_json).where(attr.trial_id == mine.trial_id, attr.key.in_(_SAME))
        ).all()
        if len(same_as) < len(_SAME):
            return []
        query = (
            select(models.StudyModel.study_name, StudyRow.seed, trial.number, value.value, EpochRow.metrics)
            .join(trial, trial.study_id == models.StudyModel.study_id)
            .join(StudyRow, StudyRow.study_id == trial.study_id)
            .join(value, value.trial_id == trial.trial_id)
            .join(TrialRow, TrialRow.trial_id == trial.trial_id)
            .outerjoin(EpochRow, (EpochRow.trial_id == trial.trial_id) & (EpochRow.epoch == TrialRow.best_epoch))
            .where(
                trial.state == TrialState.COMPLETE,
                value.value_type == models.TrialValueModel.TrialValueType.FINITE,
                StudyRow.objective_sha256 == study.objective_sha256,
                StudyRow.metric == study.metric,
                StudyRow.epochs == study.epochs,
                StudyRow.folds == study.folds,
            )
            .order_by(models.StudyModel.study_id, trial.number)
        )
        for key, text in same_as:
            same = aliased(attr)
            query = query.join(same, same.trial_id == trial.trial_id).where(same.key == key, same.value_json == text)
        rows = session.execute(query).all()
    found: dict[int, Replicate] = {}
    for name, seed, other, final, metrics in rows:
        found.setdefault(trial_seed(seed, other), Replicate(name, other, final, json.loads(metrics or "{}")))
    found.pop(trial_seed(study.seed, mine.number), None)
    return [*found.values()]
