"""The recipes that a study starts with, on record with it as plain JSON, so that every worker has the same.

Written in the transaction that makes the study, as an attribute of Optuna's study; whatever is read is checked, since
anybody may write there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage

ATTRIBUTE = "dialin:first_trials"


@dataclass(frozen=True)
class FirstTrial:
    """Parameters as Optuna has them, and where they are from: `won study digits-1`, `default of adam`."""

    params: Mapping[str, Any]
    origin: str = ""


def note(session: Session, study_id: int, trials: Sequence[FirstTrial]) -> None:
    """Put them on record, in the caller's transaction. TypeError, ValueError: a value is nothing that JSON has."""
    told = [{"params": dict(trial.params), "origin": trial.origin} for trial in trials]
    text = json.dumps(told, allow_nan=False)
    session.add(models.StudySystemAttributeModel(study_id=study_id, key=ATTRIBUTE, value_json=text))


@patient
def noted(storage: SharedStorage, study_id: int) -> tuple[FirstTrial, ...]:
    """Those on record, the n-th for trial n; none where there is no record, or none that is whole."""
    attr = models.StudySystemAttributeModel
    with storage.backend.read() as session:
        text = session.scalar(select(attr.value_json).where(attr.study_id == study_id, attr.key == ATTRIBUTE))
    try:
        told = json.loads(text or "[]")
    except ValueError:
        return ()
    if not isinstance(told, list) or not all(map(_is_whole, told)):
        return ()
    return tuple(FirstTrial(one["params"], one["origin"]) for one in told)


def _is_whole(told: Any) -> bool:
    if not isinstance(told, dict) or not isinstance(told.get("params"), dict):
        return False
    return isinstance(told.get("origin"), str) and all(map(is_plain, told["params"].values()))


def is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int | bool)
