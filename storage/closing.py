"""Studies that come to an end before their budget does, because there is nothing left to search.

Called by workers before they start a trial.
"""

from __future__ import annotations

from optuna.trial import TrialState
from sqlalchemy import func, select

from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import StudyRow


@patient
def close(storage: SharedStorage, study_id: int, reason: str) -> bool:
    """Let no new trial start but those that are enqueued; what is trained goes on. Whether that was open till now."""
    trial = models.TrialModel
    waiting = select(func.count()).where(trial.study_id == study_id, trial.state == TrialState.WAITING)
    with storage.backend.write() as session:
        row = session.scalars(select(StudyRow).where(StudyRow.study_id == study_id).with_for_update()).one_or_none()
        least = row.taken + (session.scalar(waiting) or 0) if row is not None else 0
        if row is None or row.trials <= least:
            return False
        row.trials, row.reason = least, reason
        return True
