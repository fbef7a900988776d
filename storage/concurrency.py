"""A study may train so many trials at once at most: held to in the transaction that gives a worker a trial.

Whoever claims, adopts or goes on with a trial counts after it has locked the study, so that of two workers that come at
the same moment the second one sees the first.
"""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from storage.claims import StudyFull
from storage.engine import database_now
from storage.optuna_internals import models
from storage.tables import LeaseRow, StudyRow


def refuse_beyond(session: Session, study_id: int) -> None:
    """To be called when the lease is there and all else is locked: our study is the last.

    Raises:
        StudyFull: it is one too many. The transaction must be rolled back.
    """
    limit = session.scalar(select(StudyRow.concurrency).where(StudyRow.study_id == study_id))
    if limit is None:
        return
    row = select(StudyRow.concurrency).where(StudyRow.study_id == study_id)
    limit = session.scalar(row.with_for_update(key_share=True))
    if limit is not None and (session.scalar(select(trained(study_id))) or 0) > limit:
        raise StudyFull(f"the study trains {limit} at once, which is its limit")


def trained(study_id: int, *which: ColumnElement[bool]) -> Any:
    """How many trials of a study are trained now, as a part of another statement."""
    trial = models.TrialModel
    query = select(func.count()).select_from(LeaseRow).join(trial, trial.trial_id == LeaseRow.trial_id)
    living = LeaseRow.expires_at >= database_now()
    return query.where(
        LeaseRow.study_id == study_id, living, trial.state == TrialState.RUNNING, *which
    ).scalar_subquery()
