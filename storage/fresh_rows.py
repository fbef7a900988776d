"""Which trials have new rows since a process looked last: parameters, values, attributes. For `storage.trial_cache`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, func, literal, select, union_all
from sqlalchemy.orm import Session

from storage.optuna_internals import models

# By table the highest id that has been looked at.
Marks = tuple[int, ...]
# Where so many rows have come, all trials may be read as well.
MOST = 1000


def _ids() -> list[tuple[Any, Any]]:
    """The id of a row and that of its trial, of each table that grows while a trial runs."""
    return [
        (models.TrialParamModel.param_id, models.TrialParamModel.trial_id),
        (
            models.TrialIntermediateValueModel.trial_intermediate_value_id,
            models.TrialIntermediateValueModel.trial_id,
        ),
        (models.TrialUserAttributeModel.trial_user_attribute_id, models.TrialUserAttributeModel.trial_id),
        (models.TrialSystemAttributeModel.trial_system_attribute_id, models.TrialSystemAttributeModel.trial_id),
    ]


def marks(session: Session) -> Marks:
    """What is there now. To be asked for before trials are read."""
    highest = (select(literal(place, Integer), func.max(row)) for place, (row, _trial) in enumerate(_ids()))
    found = {place: row or 0 for place, row in session.execute(union_all(*highest))}
    return tuple(found[place] for place in range(len(found)))


def since(session: Session, before: Marks) -> tuple[set[int], Marks] | None:
    """The trials, by id, of rows that have come since, in whatever study; and what is there now. None: too many.

    The limit has a planner without statistics go by the index.
    """
    newer = (
        select(literal(place, Integer), row, trial).where(row > mark).order_by(row).limit(MOST).subquery()
        for (place, (row, trial)), mark in zip(enumerate(_ids()), before, strict=True)
    )
    found = session.execute(union_all(*map(select, newer))).all()
    now = [*before]
    for place, row, _trial in found:
        now[place] = max(now[place], row)
    return ({trial for _place, _row, trial in found}, tuple(now)) if len(found) < MOST else None
