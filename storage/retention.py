"""Which files are worth the disk: the weights of a study's best few trials, and the states of what may yet be.

Called by workers, as they settle and as they write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, delete, func, select
from sqlalchemy.orm import Session

from storage import paused
from storage.optuna_internals import models
from storage.patience import patient
from storage.queries import ranking
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointKind, CheckpointRow, TrialRow

WEIGHTS_KEPT = 5


@patient
def worth_keeping(storage: SharedStorage, study: StudyRecord, value: float) -> bool:
    """Whether a trial with this value may be among the best few so far: of equals the lower number is better.

    Of a confirmation every trial is: all models of the recipe that wins are wanted, and that is known in the end.
    """
    if study.confirms:
        return True
    other = models.TrialValueModel.value
    better = other > value if study.direction == "maximize" else other < value
    # Without an order the database stops at so many, and need not look at what hangs on the others.
    query = ranking(study).order_by(None).with_only_columns(models.TrialModel.number).where(better)
    with storage.backend.read() as session:
        return len(session.execute(query.limit(WEIGHTS_KEPT)).all()) < WEIGHTS_KEPT


@patient
def retire_weights(storage: SharedStorage, study: StudyRecord) -> list[str]:
    """Forget the weights of trials that are among the best no more; their files, for the caller to remove.

    One statement, so that one look at the database decides: a leader that settles meanwhile is either not seen
    with its weights or seen to lead. A confirmation forgets those of the recipes that lost (`storage.confirmations`).
    """
    if study.confirms:
        return []
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
    """Forget states until the study has on record at most `limit` bytes; their files, for the caller to remove.

    What a trial can spare goes first, the least promising trial's before others' and the older before the newer;
    then, where `last_too` says so, the last state of trials in training, which they need only if their worker dies;
    and then those of paused ones, which are settled PRUNED: to go on with one would be to train it again. Weights stay.
    Nothing is forgotten that a worker has just replaced: its row is gone already.
    """
    row, of_study = CheckpointRow, models.TrialModel.study_id == study.study_id
    files = (
        select(row.checkpoint_id, row.trial_id, row.kind, row.size, TrialRow.paused)
        .join(models.TrialModel, models.TrialModel.trial_id == row.trial_id)
        .outerjoin(TrialRow, TrialRow.trial_id == row.trial_id)
    )
    with storage.backend.read() as session:
        rows = session.execute(files.where(of_study).order_by(row.checkpoint_id)).all()
        over = sum(one.size or 0 for one in rows) - limit
        if over <= 0:
            return []
        promise = _promise(session, study)
    chosen = []
    for one in _first_to_go(rows, promise, last_too):
        if over <= 0:
            break
        chosen.append(one)
        over -= one.size or 0
    return _forget(storage, study, chosen)


def _first_to_go(rows: Sequence[Any], promise: Mapping[int, float], last_too: bool) -> list[Any]:
    """States in the order in which they are forgotten."""
    states = [one for one in rows if one.kind == CheckpointKind.STATE]
    last = {one.trial_id: one.checkpoint_id for one in states}

    def place(one: Any) -> tuple[bool, bool, float]:
        needed = one.checkpoint_id == last[one.trial_id]
        return needed, needed and one.paused is not None, promise.get(one.trial_id, -math.inf)

    return sorted((one for one in states if last_too or not place(one)[0]), key=place)


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


def _forget(storage: SharedStorage, study: StudyRecord, chosen: list[Any]) -> list[str]:
    """Those states, and all of trials that cannot go on without them: such a one is settled."""
    row, trial = CheckpointRow, models.TrialModel
    ids, states = {one.trial_id for one in chosen}, {one.checkpoint_id for one in chosen}
    mine = and_(row.trial_id.in_(ids), row.kind == CheckpointKind.STATE)
    gone = delete(row).where(row.checkpoint_id.in_(states)).returning(row.path)
    locked = select(trial.trial_id).where(trial.trial_id.in_(ids)).order_by(trial.trial_id).with_for_update()
    with storage.backend.write() as session:
        session.execute(locked)  # whoever lets one pause has done so before this, or finds its checkpoint gone
        rows = session.execute(select(row.trial_id, row.checkpoint_id, row.path).where(mine)).all()
        ended = ids - {one.trial_id for one in rows if one.checkpoint_id not in states}
        settled = paused.settle(session, study.study_id, "the limit of the disk left no room for it", only=ended)
        paths = [one.path for one in rows if one.trial_id in settled]
        return [*paths, *session.scalars(gone.execution_options(synchronize_session=False))]
