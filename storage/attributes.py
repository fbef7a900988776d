"""Attributes of trials and studies, a user's or Optuna's own, written inside the caller's transaction."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import Table, delete
from sqlalchemy.orm import Session

from storage.engine import insert_for
from storage.optuna_internals import models

# No attributes, as a default that nobody can change.
NOTHING: Mapping[str, Any] = MappingProxyType({})
# What people, and optuna-dashboard, are told of a paused trial, which is RUNNING for Optuna.
PAUSED = "paused"
# What a trial was started for, in a word or two.
ORIGIN = "origin"
# The most bytes in use while it was trained: of a GPU by its tensors, or by the process.
PEAK_MEMORY = "peak_memory"
# The system attribute of Optuna's study that says which other one it confirms, and how: see `storage.confirmations`.
CONFIRMS = "dialin:confirms"


def confirmed_study(link: str | None) -> str:
    """The name of the study that one with this attribute confirms; empty where there is none, or no whole one."""
    try:
        told = json.loads(link or "null")
    except ValueError:
        return ""
    name = told.get("study") if isinstance(told, dict) else None
    return name if isinstance(name, str) else ""


def write(
    session: Session, attrs: Iterable[tuple[int, Mapping[str, Any]]], table: Any = models.TrialUserAttributeModel
) -> None:
    """Set attributes of trials, by their ids, whether they were set before or not."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, of_trial in attrs
        for key, value in of_trial.items()
    ]
    if not rows:
        return
    connection = session.connection()
    connection.execute(_upsert(connection.dialect.name, table.__table__), rows)


def set_study(session: Session, study_id: int, attrs: Mapping[str, Any]) -> None:
    """Set system attributes of a study that nobody else sets meanwhile, whether they were set before or not."""
    if not attrs:
        return
    row = models.StudySystemAttributeModel
    session.execute(delete(row).where(row.study_id == study_id, row.key.in_(attrs)))
    session.add_all(row(study_id=study_id, key=key, value_json=json.dumps(value)) for key, value in attrs.items())


@functools.cache
def _upsert(dialect: str, table: Table) -> Any:
    statement = insert_for(dialect, table)
    replaced = {"value_json": statement.excluded.value_json}
    return statement.on_conflict_do_update(index_elements=["trial_id", "key"], set_=replaced)


def bytes_of(value: Any) -> int | None:
    """A trial's peak memory as it is on record; None where there is none, or somebody else's attribute of that name."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
