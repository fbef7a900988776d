"""Studies: made with their budget and first trials in one transaction, found by name, stopped, resumed, enlarged.

Called by the commands (`search.cli`) and by workers; the training side reads nothing here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Row, Select, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import first_trials, limits
from storage.claims import new_uuid
from storage.engine import database_now
from storage.errors import UsageError
from storage.first_trials import FirstTrial
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import StudyRow, StudyState, TrialRow
from storage.words import counted

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


@dataclass(frozen=True, kw_only=True)
class StudyRecord(StudySpec):
    """A stored study. `taken` tickets of `trials`; `folder` holds its checkpoints and logs under the files root.

    `spent_seconds` of device time: seconds of all recorded epochs, each times its devices. `spent_epochs`: those on
    record.
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
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', self.name)}-{self.uid[:8]}"


def create(
    storage: SharedStorage,
    spec: StudySpec,
    *,
    name: str | None = None,
    stem: str,
    first: Sequence[FirstTrial] = (),
    enqueue: bool = True,
) -> StudyRecord:
    """A new study named `name`, or `<stem>-<n>` with the next free n, and its first trials on record.

    Unless they are `enqueue`d, which whoever samples must take as they are, it is theirs who trains to suggest them.

    Raises:
        UsageError: a study called `name` exists.
    """
    while True:
        chosen = name or f"{stem}-{_next_number(storage, stem)}"
        try:
            storage.backend.write_once(partial(_insert, storage, spec, chosen, first, enqueue, new_uuid()))
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


def taken(name: str) -> UsageError:
    """The error for a new study with the name of an old one."""
    return UsageError(f"study {name!r} exists: go on with it by `dialin resume {name}`, or choose another name")


@patient
def names(storage: SharedStorage) -> list[str]:
    """Names of all studies in the database, plain Optuna's too, oldest first."""
    with storage.backend.read() as session:
        return list(session.scalars(select(models.StudyModel.study_name).order_by(models.StudyModel.study_id)))


def check_same(record: StudyRecord, reference: str, metric: str, direction: str) -> None:
    """Is this the objective that the study searches, and does it still want the same?

    Files are compared by name, since machines keep them in different places. A notebook's may have become a file.

    Raises:
        UsageError: another objective, metric or direction than the study was made with.
    """
    anywhere = any(one.startswith(NOTEBOOK) for one in (record.objective, reference))
    if not anywhere and Path(record.objective).name != Path(reference).name:
        raise UsageError(
            f"study {record.name!r} searches {record.objective}, not {reference} "
            "(any folder will do, but the file keeps its name)"
        )
    if (metric, direction) != (record.metric, record.direction):
        raise UsageError(
            f"study {record.name!r} was made to {record.direction} {record.metric}, but {reference} now says "
            f"{direction} {metric}: start a new study for that"
        )


def check_folds(record: StudyRecord, folds: int) -> None:
    """Are there as many folds as the study was made with?

    Raises:
        UsageError: no; a trial's epochs would be numbered otherwise than those before.
    """
    if folds != record.folds:
        raise UsageError(
            f"data() returns {counted(folds, 'fold')}, but study {record.name!r} was made with {record.folds}: "
            "start a new study for that"
        )


def _insert(
    storage: SharedStorage,
    spec: StudySpec,
    name: str,
    first: Sequence[FirstTrial],
    enqueue: bool,
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
    for trial in first if enqueue else ():
        storage.backend.enqueue(session, study.study_id, trial.params, origin=trial.origin)


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
    near = difflib.get_close_matches(name, known, n=1)
    there_is = f"there is: {', '.join(known[-8:])}" if known else "there is none yet"
    raise UsageError(f"there is no study {name!r}: " + (f"did you mean {near[0]!r}?" if near else there_is))


@patient
def records(storage: SharedStorage) -> list[StudyRecord]:
    """All studies of Dialin's, the newest first."""
    with storage.backend.read() as session:
        return [_record(row) for row in session.execute(_records())]


@patient
def newest_open(storage: SharedStorage, without: Collection[int] = ()) -> StudyRecord | None:
    """The newest study that has work for a worker: running, with tickets left or trials not settled yet.

    `without`: ids of studies to leave aside.
    """
    with storage.backend.read() as session:
        trial = models.TrialModel
        unsettled = select(TrialRow.study_id).join(trial, trial.trial_id == TrialRow.trial_id)
        unsettled = unsettled.where(trial.state == TrialState.RUNNING)  # one that was told elsewhere is not
        query = _records().where(
            StudyRow.state == StudyState.RUNNING,
            (StudyRow.taken < StudyRow.trials) | StudyRow.study_id.in_(unsettled),
            limits.in_time(),
            StudyRow.study_id.not_in(without),
        )
        row = session.execute(query.limit(1)).one_or_none()
    return _record(row) if row is not None else None


@patient
def stop(storage: SharedStorage, study_id: int, reason: str) -> None:
    """Workers hand back what they train and end; `resume` goes on."""
    with storage.backend.write() as session:
        session.execute(
            update(StudyRow).where(StudyRow.study_id == study_id).values(state=StudyState.STOPPED, reason=reason)
        )


def resume(
    storage: SharedStorage,
    study_id: int,
    *,
    trials: int | None = None,
    more: int = 0,
    budget_seconds: float | None = None,
    until: float | None = None,
    budget_epochs: int | None = None,
    deadline: float | None = None,
) -> None:
    """Let workers go on, with a new budget of `trials`, or with `more` on top of the old one.

    The other four take the place of the old limits (`limits.Limits`); an old `until` that was reached is cleared.

    Raises:
        UsageError: a new budget is below what is already taken or spent, an old one of device time or epochs is spent
            or the deadline past and there is no new one, a new `until` is reached already, or the study is gone.
    """
    new_limits = limits.Limits(until, budget_seconds, budget_epochs, deadline)
    with storage.backend.write() as session:
        query = select(StudyRow, models.StudyModel.study_name).join(
            models.StudyModel, models.StudyModel.study_id == StudyRow.study_id
        )
        found = session.execute(query.where(StudyRow.study_id == study_id).with_for_update(of=StudyRow)).one_or_none()
        if found is None:
            raise UsageError("the study is gone: somebody deleted it")
        row, name = found
        new = row.trials + more if trials is None else trials
        if new < row.taken:
            raise UsageError(f"--trials {new} is less than the {row.taken} trials already started")
        limits.renew(session, row, name, new_limits)
        row.state, row.reason, row.errors_in_a_row, row.trials = StudyState.RUNNING, "", 0, new


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


_Records = Select[StudyRow, str, StudyDirection]


def _records() -> _Records:
    return (
        select(StudyRow, models.StudyModel.study_name, models.StudyDirectionModel.direction)
        .join(models.StudyModel, models.StudyModel.study_id == StudyRow.study_id)
        .join(models.StudyDirectionModel, models.StudyDirectionModel.study_id == StudyRow.study_id)
        .order_by(StudyRow.study_id.desc())
    )


def _record(row: Row[StudyRow, str, StudyDirection]) -> StudyRecord:
    study, name, direction = row
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
        spent_seconds=study.spent_seconds,
        budget_epochs=study.budget_epochs,
        spent_epochs=study.spent_epochs,
        deadline=study.deadline,
    )
