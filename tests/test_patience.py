"""A database that goes away is waited for: which errors mean that, how long, and what a person reads."""

from __future__ import annotations

import ast
import random
import sqlite3
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from optuna.exceptions import StorageInternalError
from postgres_server import PostgresServer
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError, PendingRollbackError
from studies import optuna_url

from storage import patience
from storage.errors import UsageError
from storage.patience import (
    AWAY_SECONDS,
    LONGEST_SECONDS,
    DatabaseAway,
    Outage,
    Patience,
    away,
    away_seconds,
    patient,
    unless_away,
    waiting,
)


class Clock:
    """Time passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    def patience(self, seconds: float | None = None) -> Patience:
        with waiting(seconds):
            return Patience(clock=lambda: self.now, sleep=self.sleep)


def locked(tmp_path: Path) -> OperationalError:
    """What SQLAlchemy raises when another process holds the file."""
    path = tmp_path / "locked.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0})
    try:
        with pytest.raises(OperationalError) as raised, engine.connect() as connection:
            connection.execute(text("SELECT * FROM sqlite_master"))
    finally:
        holder.close()
        engine.dispose()
    return raised.value


def wait_for_ever(patience: Patience, error: Exception, after: Callable[[], object] = lambda: None) -> None:
    while True:
        patience.wait(error)
        after()


def test_a_locked_file_and_a_server_that_is_not_there_may_come_back(tmp_path: Path) -> None:
    engine = create_engine(f"postgresql+psycopg://nobody@/none?host={tmp_path}")
    with pytest.raises(OperationalError) as refused:
        engine.connect()
    assert away(refused.value)
    assert away(locked(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.AdminShutdown(),
        psycopg.errors.CannotConnectNow(),
        psycopg.errors.TooManyConnections(),
        psycopg.errors.DiskFull(),
        psycopg.errors.DeadlockDetected(),
        psycopg.errors.IdleInTransactionSessionTimeout(),
        psycopg.OperationalError("server closed the connection unexpectedly"),
    ],
)
def test_a_server_that_restarts_is_full_or_has_ended_a_transaction_may_come_back(error: Exception) -> None:
    wrapped = StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = OperationalError("SELECT 1", {}, error)
    assert away(error)
    assert away(wrapped)


def test_a_transaction_that_is_gone_on_with_after_its_connection_was_lost_may_come_back(
    postgres_server: PostgresServer,
) -> None:
    engine = create_engine(optuna_url(postgres_server.url))
    with engine.connect() as connection:
        other = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        postgres_server.execute(f"SELECT pg_terminate_backend({other})")
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT 1"))
        with pytest.raises(PendingRollbackError) as cut_off:
            connection.execute(text("SELECT 1"))
    engine.dispose()
    assert away(cut_off.value)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UniqueViolation(),
        psycopg.errors.UndefinedTable(),
        psycopg.errors.InvalidPassword(),
        psycopg.OperationalError('connection failed: FATAL:  password authentication failed for user "me"'),
        psycopg.OperationalError('connection failed: FATAL:  database "other" does not exist'),
        sqlite3.OperationalError("no such table: trials"),
        ConnectionError("theirs"),
        DatabaseAway("has been waited for"),
    ],
)
def test_what_waiting_does_not_mend_is_not_waited_for(error: Exception) -> None:
    assert not away(error)
    with pytest.raises(type(error)):
        Clock().patience().wait(error)


def test_the_pauses_grow_with_jitter_until_the_limit(tmp_path: Path) -> None:
    error, clock = locked(tmp_path), Clock()
    before, ends = random.getstate(), []
    with pytest.raises(DatabaseAway, match="has not answered for 60 s: database is locked"):
        wait_for_ever(clock.patience(60), error, lambda: ends.append(clock.now))
    assert clock.now == pytest.approx(60)
    pauses = [later - earlier for earlier, later in pairwise([0.0, *ends])]
    assert 0.05 <= pauses[0] <= 0.1
    assert max(pauses) <= LONGEST_SECONDS
    assert len(set(pauses)) == len(pauses)
    assert random.getstate() == before, "training draws from the same generator"


def test_a_wait_ends_when_it_is_wanted_no_more(tmp_path: Path) -> None:
    error, clock = locked(tmp_path), Clock()
    lines: list[str] = []
    with waiting(stop=lambda: clock.now > 3, tell=lines.append):
        patience = clock.patience()
    with pytest.raises(DatabaseAway):
        wait_for_ever(patience, error)
    assert clock.now < 4
    assert lines == ["the database does not answer, asking again: database is locked"]


def test_a_block_that_waits_for_nothing_gets_the_error_itself(tmp_path: Path) -> None:
    error = locked(tmp_path)
    with waiting(0), pytest.raises(OperationalError):
        Patience().wait(error)


def test_a_function_runs_again_until_the_database_answers(tmp_path: Path) -> None:
    error, calls = locked(tmp_path), []

    @patient
    def ask(answer: int) -> int:
        calls.append(answer)
        if len(calls) < 3:
            raise error
        return answer

    assert ask(7) == 7
    assert len(calls) == 3


def test_the_limit_is_a_number_of_seconds_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert away_seconds() == AWAY_SECONDS
    monkeypatch.setenv("DIALIN_AWAY_SECONDS", "2.5")
    assert away_seconds() == 2.5
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("DIALIN_AWAY_SECONDS", wrong)
        with pytest.raises(UsageError, match="DIALIN_AWAY_SECONDS must be a number of seconds"):
            away_seconds()


def test_every_function_that_reads_can_be_run_again() -> None:
    """A server may be killed between two statements: whoever reads begins anew."""
    reading = [
        (path.name, function)
        for path in Path(patience.__file__).parent.glob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and reads(function)
    ]
    assert len(reading) > 20
    once = [(name, one.name) for name, one in reading if "patient" not in map(ast.unparse, one.decorator_list)]
    assert once == []


def reads(function: ast.FunctionDef) -> bool:
    """Whether it opens a reading transaction of the storage's."""
    entered = [item for one in ast.walk(function) if isinstance(one, ast.With) for item in one.items]
    return any(ast.unparse(item.context_expr).endswith("backend.read()") for item in entered)


def test_what_is_asked_unless_the_database_is_away_is_asked_once(tmp_path: Path) -> None:
    said: list[str] = []

    def ask(error: Exception) -> int:
        raise error

    assert unless_away(lambda: 5) == 5
    assert unless_away(lambda: ask(locked(tmp_path)), said.append) is None
    assert said == ["database is locked"]
    with pytest.raises(ValueError, match="theirs"):
        unless_away(lambda: ask(ValueError("theirs")))


def test_an_outage_is_told_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    lines: list[str] = []
    outage = Outage(lines.append)
    outage.answered()
    for error in (locked(tmp_path), StorageInternalError("another word for it")):
        outage.not_answered(error)
    assert outage.seconds is not None
    outage.answered()
    outage.answered()
    assert lines == [
        "the database does not answer, asking again: database is locked",
        "the database answers again after 0 s",
    ]
