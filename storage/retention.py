"""Which weights are worth the disk: those of a study's best few trials; called by workers as they settle."""

from __future__ import annotations

from sqlalchemy import delete, select

from storage.optuna_internals import models
from storage.queries import best
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


def retire_weights(storage: SharedStorage, study: StudyRecord) -> list[str]:
    """Forget the weights of trials that are among the best no more; their files, for the caller to remove."""
    leaders = [trial.number for trial in best(storage, study, WEIGHTS_KEPT)]
    with storage.backend.write() as session:
        rows = session.execute(
            select(CheckpointRow.checkpoint_id, CheckpointRow.path)
            .join(models.TrialModel, models.TrialModel.trial_id == CheckpointRow.trial_id)
            .where(
                models.TrialModel.study_id == study.study_id,
                models.TrialModel.number.not_in(leaders),
                CheckpointRow.kind == CheckpointKind.WEIGHTS,
            )
        ).all()
        if rows:
            session.execute(delete(CheckpointRow).where(CheckpointRow.checkpoint_id.in_([row[0] for row in rows])))
    return [row[1] for row in rows]
