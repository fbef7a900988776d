"""Studies: made with their budget and first trials in one transaction, found by name, stopped, resumed, enlarged.

Called by the commands (`search.cli`) and by workers; the training side reads nothing here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from optuna.study import StudyDirection
from sqlalchemy import Row, Select, and_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import attributes, events, first_trials, queue
from storage.attributes import NOTHING
from storage.claims import new_uuid
from storage.engine import database_now
from storage.errors import UsageError
from storage.events import Did
from storage.first_trials import FirstTrial
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import StudyRow, StudyState
from storage.words import counted, did_you_mean

# Of more studies only the newest are named to who asked for one that there is not.
SHOWN = 8

# How the stored reference of an objective begins that no file holds: it was written in a notebook.
NOTEBOOK = "notebook:"


@dataclass(frozen=True)
class StudySpec:
    """What a study searches. `direction` is "maximize" or "minimize"; `trials` is its budget in tickets.

    Args:
        epochs: the length of one fold; 0 where only the objective knows when it ends (a bare Optuna function).
        folds: how many folds a trial trains; 1 without folds.
        until: the study stops when a trial reaches this value; None: never.
        budget_seconds: device time after which the study stops; None: no limit.
        budget_epochs: epochs, of all trials together, that may be on record; None: no limit.
        deadline: when the study stops, in seconds since 1970 by the database's clock; None: never.
        space: how a person narrowed the search, by the names of knobs; JSON.
        priority: its share of the queue's workers is in proportion to it.
        concurrency: so many trials at once at most; None: any number.
    """

    objective: str
    objective_sha256: str
    metric: str
    direction: str
    epochs: int
    trials: int
    seed: int
    sampler: str
    pruner: str
    folds: int = 1
    until: float | None = None
    budget_seconds: float | None = None
    budget_epochs: int | None = None
    deadline: float | None = None
    space: Mapping[str, Any] = field(default_factory=dict, hash=False)
    priority: int = 1
    concurrency: int | None = None


@dataclass(frozen=True, kw_only=True)
class StudyRecord(StudySpec):
    """A stored study. `taken` tickets of `trials`; `folder` holds its checkpoints and logs under the files root.

    `spent_seconds` of device time: seconds of all recorded epochs, each times its devices. `spent_epochs`: those on
    record. `confirms`: name of the study whose best recipes it trains again (`storage.confirmations`); else empty.
    """

    study_id: int
    name: str
    uid: str
    taken: int
    returned: int
    state: StudyState
    reason: str
    created_at: float
    spent_seconds: float = 0.0
    spent_epochs: int = 0
    confirms: str = ""

    @property
    def time_is_spent(self) -> bool:
        """Whether the budget of device time, where there is one, is used up."""
        return self.budget_seconds is not None and self.spent_seconds >= self.budget_seconds

    @property
    def epochs_are_spent(self) -> bool:
        """Whether the budget of epochs, where there is one, is on record."""
        return self.budget_epochs is not None and self.spent_epochs >= self.budget_epochs

    @property
    def length(self) -> int:
        """Epochs of a full trial, all folds together; 0 where only the objective knows."""
        return self.epochs * self.folds

    @property
    def folder(self) -> str:
        """Unique to this study, also after another of the same name was deleted."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.name}-{self.uid[:8]}")


def create(
    storage: SharedStorage,
    spec: StudySpec,
    *,
    name: str | None = None,
    stem: str,
    first: Sequence[FirstTrial] = (),
    enqueue: bool = True,
    attrs: Mapping[str, Any] = NOTHING,
    submitted_by: str = "",
    along: Callable[[Session, int], None] = lambda _session, _study_id: None,
) -> StudyRecord:
    """A new study named `name`, or `<stem>-<n>` with the next free n, and its first trials on record.

    Unless they are `enqueue`d, which whoever samples must take as they are, it is theirs who trains to suggest them.
    `attrs`: system attributes of Optuna's study. `submitted_by`: who has put it into the queue, for the record.
    `along`: what else belongs into the transaction that makes the study.

    Raises:
        UsageError: a study called `name` exists.
    """

    def beside(session: Session, study_id: int) -> None:
        attributes.set_study(session, study_id, attrs)
        if submitted_by:
            said = f"{counted(spec.trials, 'trial')}, priority {spec.priority}"
            events.note(session, study_id, Did.SUBMITTED, submitted_by, said)
        along(session, study_id)

    while True:
        chosen = name or f"{stem}-{_next_number(storage, stem)}"
        try:
            storage.backend.write_once(partial(_insert, storage, spec, chosen, first, enqueue, beside, new_uuid()))
        except IntegrityError:
            if name is None:
                continue  # another process took the number
            raise taken(name) from None
        return find(storage, chosen)


@patient
def clock(storage: SharedStorage) -> float:
    """Seconds since 1970 by the database's clock."""
    with storage.backend.read() as session:
        return session.scalar(select(database_now())) or 0.0


def taken(name: str, command: str = "") -> UsageError:
    """The error for a new study with the name of an old one. `command`: the whole one that goes on with that."""
    way = command or f"dialin resume {name}"
    return UsageError(f"study {name!r} exists: go on with it by `{way}`, or choose another name")


@patient
def names(storage: SharedStorage) -> list[str]:
    """Names of all studies in the database, plain Optuna's too, oldest first."""
    with storage.backend.read() as session:
        return list(session.scalars(select(models.StudyModel.study_name).order_by(models.StudyModel.study_id)))


def _insert(
    storage: SharedStorage,
    spec: StudySpec,
    name: str,
    first: Sequence[FirstTrial],
    enqueue: bool,
    along: Callable[[Session, int], None],
    uid: str,
    session: Session,
    again: bool,
) -> None:
    if again and session.scalar(select(StudyRow.study_id).where(StudyRow.uid == uid)) is not None:
        return
    direction = models.StudyDirectionModel(objective=0, direction=StudyDirection[spec.direction.upper()])
    study = models.StudyModel(study_name=name, directions=[direction])
    session.add(study)
    session.flush()
    columns = asdict(spec)
    del columns["direction"]
    columns["space"] = json.dumps(columns["space"])
    session.add(StudyRow(study_id=study.study_id, uid=uid, created_at=database_now(), **columns))
    first_trials.note(session, study.study_id, first)
    session.flush()
    queue.enter(session, study.study_id)
    for trial in first if enqueue else ():
        storage.backend.enqueue(session, study.study_id, trial.params, origin=trial.origin)
    along(session, study.study_id)


@patient
def _next_number(storage: SharedStorage, stem: str) -> int:
    with storage.backend.read() as session:
        names = session.scalars(
            select(models.StudyModel.study_name).where(
                models.StudyModel.study_name.startswith(f"{stem}-", autoescape=True)
            )
        ).all()
    numbers = [int(n[len(stem) + 1 :]) for n in names if n[len(stem) + 1 :].isdecimal()]
    return max(numbers, default=0) + 1


@patient
def find(storage: SharedStorage, name: str | None = None) -> StudyRecord:
    """The study of that name, or the newest.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    query = _records()
    query = query.where(models.StudyModel.study_name == name) if name is not None else query
    with storage.backend.read() as session:
        row = session.execute(query.limit(1)).one_or_none()
    if row is not None:
        return _record(row)
    if name is None:
        raise UsageError("there is no study yet: start one with `dialin run digits`")
    known = names(storage)
    if name in known:
        raise UsageError(f"study {name!r} was made by plain Optuna and has no objective, so Dialin cannot train it")
    raise UsageError(f"there is no study {name!r}{_instead(name, known)}")


def _instead(name: str, known: Sequence[str]) -> str:
    """Which studies there are in place of one that there is not: the one that was meant, or the newest."""
    if meant := did_you_mean(name, known):
        return f": {meant}"
    if not known:
        return ": there is none yet"
    if len(known) == 1:
        return f"; there is only {known[0]}"
    return f"; there are {', '.join(known)}" if len(known) <= SHOWN else f"; the newest are {', '.join(known[-SHOWN:])}"


@patient
def records(storage: SharedStorage) -> list[StudyRecord]:
    """All studies of Dialin's, the newest first."""
    with storage.backend.read() as session:
        return [_record(row) for row in session.execute(_records())]


@patient
def with_id(storage: SharedStorage, study_id: int) -> StudyRecord | None:
    """The study of that id; None where it is gone."""
    with storage.backend.read() as session:
        row = session.execute(_records().where(StudyRow.study_id == study_id)).one_or_none()
    return _record(row) if row is not None else None


@patient
def system_attrs(storage: SharedStorage, key: str, study_ids: Collection[int]) -> dict[int, Any]:
    """The system attribute of that name of each of these studies that has one."""
    attr = models.StudySystemAttributeModel
    query = select(attr.study_id, attr.value_json).where(attr.key == key, attr.study_id.in_(study_ids))
    with storage.backend.read() as session:
        return {study_id: json.loads(value) for study_id, value in session.execute(query).all()}


def enqueue(storage: SharedStorage, record: StudyRecord, params: Mapping[str, Any]) -> int:
    """A trial that will suggest `params` and sample the rest, before others; its number.

    It takes its ticket when it starts: beyond the budget of trials it waits until that is enlarged.

    Raises:
        UsageError: the study is gone.
    """
    key = new_uuid()

    def attempt(session: Session, again: bool) -> int:
        models.StudyModel.find_or_raise_by_id(record.study_id, session, for_update=True)  # one number a trial
        landed = storage.backend.enqueued(session, record.study_id, key) if again else None
        if landed is not None:
            return landed
        return storage.backend.enqueue(session, record.study_id, params, key, origin="asked for")

    try:
        return storage.backend.write_once(attempt)
    except KeyError:
        raise UsageError(f"study {record.name!r} is gone: somebody deleted it") from None


def delete(storage: SharedStorage, record: StudyRecord) -> None:
    """The study with all its rows, Optuna's and ours, also while workers train: they find their leases gone.

    Its files are the caller's to remove.

    Raises:
        UsageError: it is gone already.
    """
    try:
        storage.delete_study(record.study_id)
    except KeyError:
        raise UsageError(f"study {record.name!r} is gone: somebody deleted it") from None


_Records = Select[StudyRow, str, StudyDirection, str | None]


def _records() -> _Records:
    attr = models.StudySystemAttributeModel
    return (
        select(StudyRow, models.StudyModel.study_name, models.StudyDirectionModel.direction, attr.value_json)
        .join(models.StudyModel, models.StudyModel.study_id == StudyRow.study_id)
        .join(models.StudyDirectionModel, models.StudyDirectionModel.study_id == StudyRow.study_id)
        .outerjoin(attr, and_(attr.study_id == StudyRow.study_id, attr.key == attributes.CONFIRMS))
        .order_by(StudyRow.study_id.desc())
    )


def _record(row: Row[StudyRow, str, StudyDirection, str | None]) -> StudyRecord:
    study, name, direction, link = row
    return StudyRecord(
        objective=study.objective,
        objective_sha256=study.objective_sha256,
        metric=study.metric,
        direction=direction.name.lower(),
        epochs=study.epochs,
        trials=study.trials,
        seed=study.seed,
        sampler=study.sampler,
        pruner=study.pruner,
        study_id=study.study_id,
        name=name,
        uid=study.uid,
        taken=study.taken,
        returned=study.returned,
        state=StudyState(study.state),
        reason=study.reason,
        created_at=study.created_at,
        folds=study.folds,
        until=study.until,
        budget_seconds=study.budget_seconds,
        space=json.loads(study.space),
        priority=study.priority,
        concurrency=study.concurrency,
        spent_seconds=study.spent_seconds,
        budget_epochs=study.budget_epochs,
        spent_epochs=study.spent_epochs,
        deadline=study.deadline,
        confirms=attributes.confirmed_study(link),
    )
