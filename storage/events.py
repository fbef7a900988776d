"""What people and programs did to studies, on record: who submitted, paused, resumed, stopped or changed which.

Written in the transaction that does it (`storage.steering`); read by whoever shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from storage.engine import database_now
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import EventRow


class Did(StrEnum):
    """What was done to a study."""

    SUBMITTED = "submitted"
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPED = "stopped"
    CHANGED = "changed"


@dataclass(frozen=True)
class Event:
    """`at`: seconds since 1970 by the database's clock. `event_id` rises with time."""

    event_id: int
    at: float
    study: str
    kind: Did
    actor: str
    detail: str


def note(session: Session, study_id: int, kind: Did, actor: str, detail: str = "") -> None:
    """Put it on record, inside the caller's transaction."""
    row = {"study_id": study_id, "at": database_now(), "kind": kind, "actor": actor, "detail": detail}
    session.execute(insert(EventRow).values(**row))


@patient
def since(storage: SharedStorage, after: int = 0, study_id: int | None = None, limit: int | None = None) -> list[Event]:
    """What was done after the event of that id, the oldest first; of one study or of all.

    `limit`: the oldest so many.
    """
    row, study = EventRow, models.StudyModel
    query = (
        select(row.event_id, row.at, study.study_name, row.kind, row.actor, row.detail)
        .join(study, study.study_id == row.study_id)
        .where(row.event_id > after)
        .order_by(row.event_id)
        .limit(limit)
    )
    query = query.where(row.study_id == study_id) if study_id is not None else query
    with storage.backend.read() as session:
        return [
            Event(event_id, at, name, Did(kind), actor, detail)
            for event_id, at, name, kind, actor, detail in session.execute(query).all()
        ]
