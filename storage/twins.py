"""Two workers that draw the same recipe at the same moment: the second to write it notices, and draws again.

Called by `storage.shared` in the transaction that writes a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from storage.claims import DrawnMeanwhile, Lease
from storage.optuna_internals import models, trial_id_of


def refuse(session: Session, lease: Lease, rows: Sequence[dict[str, Any]], seen: Sequence[FrozenTrial]) -> None:
    """Does any trial have these parameters that had none, or was not there, when they were drawn?

    Args:
        rows: of Optuna's table of parameters, to be written.
        seen: the trials that were on record then.

    Raises:
        DrawnMeanwhile: one has.
    """
    # One recipe of a study is written at a time. It is locked before its trials, as whoever deletes it does.
    models.StudyModel.find_or_raise_by_id(lease.study_id, session, for_update=True)
    trial, param = models.TrialModel, models.TrialParamModel
    undrawn = [trial_id_of(one) for one in seen if not one.params and not one.state.is_finished()]
    last = max(map(trial_id_of, seen), default=-1)
    query = (
        select(param.trial_id, param.param_name, param.param_value, param.distribution_json)
        .join(trial, trial.trial_id == param.trial_id)
        .where(trial.study_id == lease.study_id, trial.trial_id != lease.trial_id)
        .where(or_(trial.trial_id > last, trial.trial_id.in_(undrawn)))
    )
    drawn: dict[int, dict[str, tuple[float, str]]] = {}
    for trial_id, name, value, distribution in session.execute(query):
        drawn.setdefault(trial_id, {})[name] = value, distribution
    mine = {row["param_name"]: (row["param_value"], row["distribution_json"]) for row in rows}
    if mine in drawn.values():
        raise DrawnMeanwhile("another worker has drawn the same recipe meanwhile")
