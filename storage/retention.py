"""Which weights are worth the disk: those of a study's best few trials; called by workers as they settle."""

from __future__ import annotations

from sqlalchemy import delete, select

from storage.optuna_internals import models
from storage.patience import patient
from storage.queries import best, ranking
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointKind, CheckpointRow

WEIGHTS_KEPT = 5


def worth_keeping(storage: SharedStorage, study: StudyRecord, value: float) -> bool:
    """Whether a trial with this value may be among the best few so far: of equals the lower number is better."""
    leaders = best(storage, study, WEIGHTS_KEPT)
    if len(leaders) < WEIGHTS_KEPT:
        return True
    last = leaders[-1].value
    return value >= last if study.direction == "maximize" else value <= last


@patient
def retire_weights(storage: SharedStorage, study: StudyRecord) -> list[str]:
    """Forget the weights of trials that are among the best no more; their files, for the caller to remove.

    One statement, so that one look at the database decides: a leader that settles meanwhile is either not seen
    with its weights or seen to lead.
    """
    leaders = ranking(study).with_only_columns(models.TrialModel.trial_id).limit(WEIGHTS_KEPT)
    of_study = select(models.TrialModel.trial_id).where(models.TrialModel.study_id == study.study_id)
    statement = (
        delete(CheckpointRow)
        .where(
            CheckpointRow.kind == CheckpointKind.WEIGHTS,
            CheckpointRow.trial_id.in_(of_study),
            CheckpointRow.trial_id.not_in(leaders),
        )
        .returning(CheckpointRow.path)
        .execution_options(synchronize_session=False)
    )
    with storage.backend.write() as session:
        return list(session.scalars(statement).all())
