"""What happened when, in all studies or in one: what people did to studies, and what became of trials.

Asked by the server (`search.server`). An event is read from the row that records it: there is no log beside the tables
that could say something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, and_, case, func, literal, null, or_, select, union_all
from sqlalchemy.orm import aliased

from storage.engine import database_now
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import DEATHS, EventRow, OwnerEnding, OwnerRow, TrialRow, WorkerRow

_COLUMNS = ("key", "part", "trial", "outcome", "value", "reason", "who")


@dataclass(frozen=True)
class Event:
    """Something that happened at `at` (seconds since 1970, the database's clock).

    `kind`: what somebody did to a study (submitted, paused, resumed, stopped, changed), or what became of a trial
    (started, adopted, settled). `id` is the same whenever it is told. `trial` is None for a study, whose `reason` says
    what was done in words; `outcome` and `value` are a settled trial's. `who` did it, or trains the trial.
    """

    id: str
    kind: str
    at: float
    study: str
    trial: int | None
    outcome: str | None
    value: float | None
    reason: str
    who: str


@patient
def events(storage: SharedStorage, since: float, most: int, study_id: int | None = None) -> tuple[list[Event], float]:
    """What happened at `since` or later, the oldest first and at most `most`; and the database's clock now.

    Of all studies, or of one. All of what happened at the moment of the last one is told: a reader goes on behind it.
    """
    # The one with all columns comes first: PostgreSQL takes a column's type from the first two.
    told = union_all(_settled(), _begun(), _done_to_studies()).subquery()
    query = select(told).order_by(told.c.at, told.c.key, told.c.kind, told.c.part)
    query = query.where(told.c.study_id == study_id) if study_id is not None else query
    with storage.backend.read() as session:
        now = session.scalar(select(database_now())) or 0.0
        rows = session.execute(query.where(told.c.at >= since).limit(most)).all()
        if len(rows) == most:
            last = rows[-1].at
            rows = [row for row in rows if row.at < last]
            rows += session.execute(query.where(told.c.at == last)).all()
    return [_event(row) for row in rows], now


def _event(row: Row[Any]) -> Event:
    return Event(
        id=f"{row.kind}-{row.key}-{row.part}",
        kind=row.kind,
        at=row.at,
        study=row.study,
        trial=row.trial,
        outcome=row.outcome,
        value=row.value,
        reason=row.reason or "",
        who=row.who or "",
    )


def _told(kind: Any, at: Any, **columns: Any) -> Select[Any]:
    """One kind of event; the same columns in the same order for all."""
    study = models.StudyModel
    more = [columns.get(name, null()).label(name) for name in _COLUMNS]
    named = select(kind.label("kind"), at.label("at"), study.study_id, study.study_name.label("study"), *more)
    return named.select_from(study)


def _done_to_studies() -> Select[Any]:
    of = EventRow
    told = _told(of.kind, of.at, key=of.event_id, part=literal(-1), reason=of.detail, who=of.actor)
    return told.join(of, of.study_id == models.StudyModel.study_id)


def _begun() -> Select[Any]:
    """Trials that were started or adopted: to go on with one that was paused is neither."""
    trial, before = models.TrialModel, aliased(OwnerRow)
    kind = case((OwnerRow.generation == 1, literal("started")), else_=literal("adopted"))
    reason = case((before.ending.in_(DEATHS), literal("its worker died")), else_=literal(""))
    who = func.coalesce(WorkerRow.host + " " + WorkerRow.slot, literal(""))
    told = _told(
        kind,
        OwnerRow.began_at,
        key=trial.trial_id,
        part=OwnerRow.generation,
        trial=trial.number,
        reason=reason,
        who=who,
    )
    return (
        told.join(trial, trial.study_id == models.StudyModel.study_id)
        .join(OwnerRow, OwnerRow.trial_id == trial.trial_id)
        .outerjoin(WorkerRow, WorkerRow.worker_id == OwnerRow.worker_id)
        .outerjoin(before, and_(before.trial_id == OwnerRow.trial_id, before.generation == OwnerRow.generation - 1))
        .where(or_(before.ending.is_(None), before.ending != OwnerEnding.PAUSED))
    )


def _settled() -> Select[Any]:
    trial, value = models.TrialModel, models.TrialValueModel
    final = and_(value.trial_id == trial.trial_id, value.value_type == value.TrialValueType.FINITE)
    told = _told(
        literal("settled"),
        TrialRow.settled_at,
        key=trial.trial_id,
        part=literal(0),
        trial=trial.number,
        outcome=TrialRow.outcome,
        value=value.value,
        reason=TrialRow.reason,
    )
    return (
        told.join(trial, trial.study_id == models.StudyModel.study_id)
        .join(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(value, final)
        .where(TrialRow.settled_at.is_not(None))
    )
