"""A worker's life in small, what a study looks like after it, and hands that interrupt it between any two writes.

A point stands before each statement that writes and before each COMMIT: what is done between two of them cannot be
told apart in the database.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from optuna.trial import Trial
from sqlalchemy import Connection, event, select
from storage_places import an_epoch, fresh, optuna_study, rows, worker_on

from search import children
from storage import pausing, studies, workers
from storage.claims import BudgetSpent, Checkpoint, Claimant, GivenUp, Settlement, new_uuid
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord
from storage.tables import CheckpointRow, EpochRow, LeaseRow, OwnerRow, StudyRow, TrialRow

EPOCHS = 2
# The trials that end in an error, and return their ticket.
BUGS = (0, 2)
# With pauses: those that go on.
GO_ON = (1, 2)
# So many workers die of a study, one after the other: with one that was dead before, too few for any trial to be lost.
DEATHS = 3


class Died(BaseException):
    """The worker's process is gone; nothing of ours catches this."""


# What a worker does until its study is over.
Life = Callable[[SharedStorage, StudyRecord], None]


def live(storage: SharedStorage, record: StudyRecord) -> None:
    """Adopt or claim, train and settle until the study has no more trials.."""
    study = optuna_study(storage, record)
    while True:
        found = storage.adopt(record.study_id)
        if isinstance(found, GivenUp):
            continue
        try:
            trial = Trial(study, found.trial_id) if found is not None else study.ask()
        except BudgetSpent:
            return
        _train(storage, study, trial)


def _train(storage: SharedStorage, study: Any, trial: Trial) -> None:
    lease = storage.lease_of(trial)
    with storage.sampling(trial):
        trial.suggest_float("x", 0, 10)
        trial.set_user_attr("lr", 0.1)
    if not storage.cost(lease)[0]:  # else an owner before it has recorded all, at once
        state = Checkpoint(EPOCHS, f"state-{EPOCHS}.g{lease.generation}.pt", "1" * 64)
        several = [an_epoch(number, number / 10) for number in range(1, EPOCHS + 1)]
        storage.record_epochs(lease, several, state)
        storage.record_checkpoint(lease, replace(state, batch=7, path=f"{state.path}-7"))
    trial.set_user_attr("note", "a person's own")
    if trial.number in BUGS:
        storage.settle(study, trial, Settlement(Outcome.ERROR, "a bug"))
    else:
        weights = Checkpoint(EPOCHS, "weights.pt", "2" * 64)
        done = Settlement(Outcome.COMPLETE, best_epoch=EPOCHS, weights=weights, attrs={"epochs": EPOCHS}, seconds=0.5)
        storage.settle(study, trial, done, 0.2)


def live_with_pauses(storage: SharedStorage, record: StudyRecord) -> None:
    """Trials pause after their first epoch; when all have, some go on to the second, and the rest settle."""
    study = optuna_study(storage, record)
    while True:
        found = storage.adopt(record.study_id)
        standing = pausing.standing(storage, record.study_id)
        assert standing is not None
        assert not isinstance(found, GivenUp)
        if found is None and standing.may_start:
            found = storage.lease_of(study.ask())
        elif found is None:
            paused = {one.trial.number: one.paused for one in storage.observe(record.study_id) if one.paused}
            number = next((number for number in GO_ON if number in paused), None)
            if number is not None:
                found = pausing.go_on(storage, record.study_id, number, paused[number] or 0)
            elif pausing.finish(storage, record.study_id, "nothing is left", standing):
                return
        if found is not None:
            _train_with_pauses(storage, study, Trial(study, found.trial_id), standing.tickets)


def _train_with_pauses(storage: SharedStorage, study: Any, trial: Trial, tickets: int) -> None:
    lease = storage.lease_of(trial)
    with storage.sampling(trial):
        trial.suggest_float("x", 0, 10)
    recorded = storage.cost(lease)[0]
    goes_on = recorded and trial.number in GO_ON and not tickets
    for number in range(recorded + 1, 2 + goes_on if recorded else 2):
        state = Checkpoint(number, f"state-{number}.g{lease.generation}.pt", "1" * 64)
        storage.record_epoch(lease, an_epoch(number, number / 10), state)
    if goes_on:
        storage.settle(study, trial, Settlement(Outcome.COMPLETE, best_epoch=2), 0.2)
    else:
        assert pausing.pause(storage, lease)


def portrait(storage: SharedStorage, record: StudyRecord) -> dict[str, Any]:
    """All that a study's end is judged by, in plain values; ids, times and UUIDs are left out."""
    now = fresh(storage, record)
    trials = sorted(SharedStorage(storage.backend).get_all_trials(record.study_id), key=lambda trial: trial.number)
    (study,) = rows(storage, StudyRow, StudyRow.study_id == record.study_id)
    return {
        "study": (now.taken, now.returned, now.state, now.reason, study.errors_in_a_row),
        "spent": (now.spent_seconds, study.spent_epochs),
        "trials": [
            (trial.state, trial.values, trial.intermediate_values, trial.user_attrs, sorted(trial.params))
            for trial in trials
        ],
        "settled": _of_study(storage, record, TrialRow, lambda row: (row.outcome, row.reason, row.best_epoch)),
        "epochs": _of_study(storage, record, EpochRow, lambda row: (row.epoch, row.metrics)),
        "checkpoints": _of_study(storage, record, CheckpointRow, lambda row: (row.kind, row.epoch, row.path)),
        "leases": rows(storage, LeaseRow, LeaseRow.study_id == record.study_id),
    }


def endings(storage: SharedStorage, record: StudyRecord) -> dict[str | None, int]:
    """How many owners ended in which way."""
    found = _of_study(storage, record, OwnerRow, lambda row: row.ending)
    return Counter(ending for _, ending in found)


def _of_study(storage: SharedStorage, record: StudyRecord, table: Any, value: Callable[[Any], Any]) -> list[Any]:
    trial = models.TrialModel
    query = select(trial.trial_id, trial.number).where(trial.study_id == record.study_id)
    with storage.backend.read() as session:
        number_of = {row.trial_id: row.number for row in session.execute(query)}
    found = rows(storage, table, table.trial_id.in_(number_of))
    return sorted(((number_of[row.trial_id], value(row)) for row in found), key=repr)


@dataclass(frozen=True)
class Point:
    """Where a transaction may be cut off: before a statement that writes, or before its COMMIT.

    `written`: the writes of the transaction before it. `number`: how many points of the worker's life came before.
    """

    number: int
    written: tuple[str, ...]
    committing: bool
    connection: Connection

    @property
    def place(self) -> int:
        """How many writes of the transaction came before."""
        return len(self.written)

    @property
    def writes(self) -> bool:
        """False for the COMMIT of a transaction that only read, which is no point to be cut off at."""
        return self.place > 0 or not self.committing


@contextmanager
def points_of(storage: SharedStorage, at: Callable[[Point], None]) -> Iterator[list[Point]]:
    """Calls `at` at every point that the storage comes past in this block, and at other COMMITs; lists the points."""
    passed: list[Point] = []
    written: list[str] = []

    def begin(_connection: Connection) -> None:
        written.clear()

    def execute(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            passed.append(Point(len(passed), (*written,), committing=False, connection=connection))
            written.append(statement)
            at(passed[-1])

    def commit(connection: Connection) -> None:
        point = Point(len(passed), (*written,), committing=True, connection=connection)
        if point.writes:
            passed.append(point)
        at(point)

    hands: dict[str, Callable[..., None]] = {"begin": begin, "before_cursor_execute": execute, "commit": commit}
    for name, hand in hands.items():
        event.listen(storage.backend.engine, name, hand)
    try:
        yield passed
    finally:
        for name, hand in hands.items():
            event.remove(storage.backend.engine, name, hand)


def die_at_new_points(
    url: str, record: StudyRecord, life: Life, seen: set[tuple[tuple[str, ...], bool]], everywhere: bool
) -> list[tuple[tuple[str, ...], bool]]:
    """Workers of which each dies where none has before, and the next goes on; the last lives. Where they died.

    `seen` is where others have, by what the transaction had written; these are added to it. Unless `everywhere`, only
    where nothing was written yet, or all.
    """
    died: list[tuple[tuple[str, ...], bool]] = []

    def die(point: Point) -> None:
        here = point.written, point.committing
        counts = point.writes and (everywhere or point.committing or point.place == 0)
        if counts and here not in seen and len(died) < DEATHS:
            seen.add(here)
            died.append(here)
            raise Died

    while True:
        worker = worker_on(url)
        try:
            with points_of(worker, die):
                life(worker, record)
            return died
        except Died:
            bury(worker)
        finally:
            worker.backend.engine.dispose()


def bury(storage: SharedStorage) -> None:
    """Say that the worker is dead whose storage this is."""
    claimant = storage.backend.claimant
    assert claimant is not None
    workers.end(storage, claimant.worker_id)


def cut(connection: Connection) -> None:
    """The connection is gone; whatever its transaction had written is rolled back."""
    if connection.dialect.name == "sqlite":
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error
    ours: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    with psycopg.connect(ours.info.dsn, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [ours.info.backend_pid])


def commit_and_cut(connection: Connection) -> None:
    """The COMMIT arrives, and its answer does not."""
    ours: Any = connection.connection.driver_connection
    ours.commit()
    if connection.dialect.name == "sqlite":
        cut(connection)
    ours.close()


def killed_at(url: str, study: str, points: Sequence[int], life: Life = live) -> list[str]:
    """A worker for each point, which SIGKILL ends there, each a process of its own; their ids.

    Each says first that the one before it is dead, as a machine's fleet does.
    """
    children.warm_up()  # what is forked from must have no threads; spawned, it would import all this again
    killed: list[str] = children.ask(_die_at, url, study, points, life)
    return killed


def _die_at(tell: Any, url: str, study: str, points: Sequence[int], life: Life) -> None:
    killed: list[str] = []
    for last in points:
        worker_id = new_uuid()
        if (child := os.fork()) == 0:
            try:
                _live_until(url, study, worker_id, last, life, killed[-1:])
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed.append(worker_id)
    tell.send(killed)


def _live_until(url: str, study: str, worker_id: str, last: int, life: Life, dead: Sequence[str]) -> None:
    storage = open_storage(url, Claimant(worker_id))
    for other in dead:
        workers.end(storage, other)

    def die(point: Point) -> None:
        if point.writes and point.number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    with points_of(storage, die):
        life(storage, studies.find(storage, study))
