"""Which files hang on a study's trials as Optuna's artifacts; called by whoever removes a study whole."""

from __future__ import annotations

from sqlalchemy import select

from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord

# Optuna's and its dashboard's key of an artifact among a trial's system attributes, the file's UUID behind it.
PREFIX = "artifacts:"


@patient
def attached(storage: SharedStorage, study: StudyRecord) -> list[str]:
    """UUIDs of the files on all trials of a study. Ask before it is deleted."""
    attr = models.TrialSystemAttributeModel
    query = (
        select(attr.key)
        .join(models.TrialModel, models.TrialModel.trial_id == attr.trial_id)
        .where(models.TrialModel.study_id == study.study_id, attr.key.startswith(PREFIX))
    )
    with storage.backend.read() as session:
        return [key.removeprefix(PREFIX) for key in session.scalars(query)]
