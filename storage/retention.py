"""Which files are worth the disk: the weights of a study's best few trials, and the states of what may yet be.

Called by workers, as they settle and as they write.
"""

from __future__ import annotations

import math

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from storage.optuna_internals import models
from storage.patience import patient
from storage.queries import leaders, ranking
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointKind, CheckpointRow

WEIGHTS_KEPT = 5


def worth_keeping(storage: SharedStorage, study: StudyRecord, value: float) -> bool:
    """Whether a trial with this value may be among the best few so far: of equals the lower number is better."""
    leading = leaders(storage, study, WEIGHTS_KEPT)
    if len(leading) < WEIGHTS_KEPT:
        return True
    _number, last = leading[-1]
    return value >= last if study.direction == "maximize" else value <= last


@patient
def retire_weights(storage: SharedStorage, study: StudyRecord) -> list[str]:
    """Forget the weights of trials that are among the best no more; their files, for the caller to remove.

    One statement, so that one look at the database decides: a leader that settles meanwhile is either not seen
    with its weights or seen to lead.
    """
    leading = ranking(study).with_only_columns(models.TrialModel.trial_id).limit(WEIGHTS_KEPT)
    of_study = select(models.TrialModel.trial_id).where(models.TrialModel.study_id == study.study_id)
    statement = (
        delete(CheckpointRow)
        .where(
            CheckpointRow.kind == CheckpointKind.WEIGHTS,
            CheckpointRow.trial_id.in_(of_study),
            CheckpointRow.trial_id.not_in(leading),
        )
        .returning(CheckpointRow.path)
        .execution_options(synchronize_session=False)
    )
    with storage.backend.write() as session:
        return list(session.scalars(statement).all())


@patient
def make_room(storage: SharedStorage, study: StudyRecord, limit: int, last_too: bool) -> list[str]:
    """Forget states until what the study has on record is at most `limit` bytes; their files, for the caller to remove.

    What a trial can spare goes first, the least promising trial's before others' and the older before the newer;
    then, where `last_too` says so, the last state of trials that are not settled. Weights stay. Nothing is forgotten
    that a worker has just replaced: its row is gone already.
    """
    row, of_study = CheckpointRow, models.TrialModel.study_id == study.study_id
    files = select(row.checkpoint_id, row.trial_id, row.kind, row.size).join(
        models.TrialModel, models.TrialModel.trial_id == row.trial_id
    )
    with storage.backend.read() as session:
        rows = session.execute(files.where(of_study).order_by(row.checkpoint_id)).all()
        over = sum(one.size or 0 for one in rows) - limit
        if over <= 0:
            return []
        promise = _promise(session, study)
    states = [one for one in rows if one.kind == CheckpointKind.STATE]
    last = {one.trial_id: one.checkpoint_id for one in states}
    spare = [one for one in states if one.checkpoint_id != last[one.trial_id]]
    kept = [one for one in states if one.checkpoint_id == last[one.trial_id]] if last_too else []
    chosen = []
    for group in (spare, kept):
        for one in sorted(group, key=lambda one: promise.get(one.trial_id, -math.inf)):
            if over > 0:
                chosen.append(one.checkpoint_id)
                over -= one.size or 0
    return _forget(storage, chosen)


def _promise(session: Session, study: StudyRecord) -> dict[int, float]:
    """The best value so far of each trial that has one, the larger the better."""
    value = models.TrialIntermediateValueModel
    maximize = study.direction == "maximize"
    found = session.execute(
        select(value.trial_id, (func.max if maximize else func.min)(value.intermediate_value))
        .join(models.TrialModel, models.TrialModel.trial_id == value.trial_id)
        .where(models.TrialModel.study_id == study.study_id, value.intermediate_value.is_not(None))
        .group_by(value.trial_id)
    ).all()
    return {trial_id: best if maximize else -best for trial_id, best in found}


def _forget(storage: SharedStorage, chosen: list[int]) -> list[str]:
    statement = (
        delete(CheckpointRow)
        .where(CheckpointRow.checkpoint_id.in_(chosen))
        .returning(CheckpointRow.path)
        .execution_options(synchronize_session=False)
    )
    with storage.backend.write() as session:
        return list(session.scalars(statement).all())
