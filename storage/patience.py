"""A database that goes away: which errors say that it may come back, and how long it is waited for.

Used by whatever asks the database: the storage itself for claims, settlements and reads, and a trial's outbox. A
function that is to be run again begins a new transaction, and looks up first what the lost COMMIT may have done.
"""

from __future__ import annotations

import functools
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from storage.errors import DialinError, UsageError

# Longer than a server's restart, a failover or a full disk that somebody sees to; a study that runs at night ends then
# with a line instead of holding its GPUs until the morning.
AWAY_SECONDS = 600.0
AWAY_VARIABLE = "DIALIN_AWAY_SECONDS"
# The first pause and the longest one: a server that restarts is back after a second or two, and many workers wait.
FIRST_SECONDS = 0.1
LONGEST_SECONDS = 5.0
# What a question to the database may raise, Optuna's wrapping included.
DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError)
# How soon a wait hears that it is wanted no more.
_LISTEN_SECONDS = 0.2

# SQLite's primary result codes: BUSY, LOCKED, NOMEM, IOERR, FULL, CANTOPEN, PROTOCOL (sqlite.org/rescode.html).
_SQLITE_CODES = {5, 6, 7, 10, 13, 14, 15}
# PostgreSQL's SQLSTATEs, whole or by their class: connections, a transaction that lost against another, resources
# (disk, memory, connections), the operator (shutting down, starting up), the system (input and output), and a
# transaction ended because its client was frozen (appendix A of its manual).
_POSTGRES_CODES = ("08", "25P03", "40001", "40P01", "53", "57P01", "57P02", "57P03", "57P04", "57P05", "58")

# What a server says when it turns a connection away for good; psycopg gives no SQLSTATE before there is a connection.
_REFUSED = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "is not permitted",
    "no password supplied",
)

# What a database says that will be back by itself, also to somebody who has never reached it.
_SOON = ("starting up", "shutting down", "in recovery", "too many clients", "connection slots", "is locked")

_Params = ParamSpec("_Params")
_Answer = TypeVar("_Answer")


class DatabaseAway(DialinError):
    """The database did not come back within the limit, or nobody wants to wait for it any longer."""


@dataclass(frozen=True)
class _Limit:
    """How long this thread waits; None: as AWAY_VARIABLE says. `stop()`: whether it should wait no more."""

    seconds: float | None = None
    stop: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda _line: None


_limit: ContextVar[_Limit] = ContextVar("limit", default=_Limit())  # noqa: B039 - frozen


@contextmanager
def waiting(
    seconds: float | None = None,
    stop: Callable[[], bool] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """In this block and thread the database is waited for so many seconds, 0 for not at all.

    Args:
        stop: asked several times a second; True ends the wait.
        tell: takes one line when a wait begins.
    """
    given = {name: value for name, value in (("seconds", seconds), ("stop", stop), ("tell", tell)) if value is not None}
    token = _limit.set(replace(_limit.get(), **given))  # type: ignore[arg-type]  # of three types
    try:
        yield
    finally:
        _limit.reset(token)


def pause(seconds: float) -> bool:
    """Sleep so long; less where `stop` of the `waiting` block says so, which is told: nobody waits any longer."""
    stop = _limit.get().stop
    _sleep_until(time.monotonic() + seconds, stop)
    return stop()


def _sleep_until(
    wake: float,
    stop: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    while (left := wake - clock()) > 0 and not stop():
        sleep(min(left, _LISTEN_SECONDS))


def away_seconds() -> float:
    """How long a database that went away is waited for, in seconds. Raises UsageError: the variable is no number."""
    text = os.environ.get(AWAY_VARIABLE, "")
    try:
        seconds = float(text) if text else AWAY_SECONDS
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(f"{AWAY_VARIABLE} must be a number of seconds, at least 0, but got {text!r}")
    return seconds


def away(error: BaseException) -> bool:
    """Whether the same may succeed later: the connection is lost or refused, the database restarts, is locked or full.

    What SQLAlchemy and Optuna have wrapped it in is looked through. False for `DatabaseAway`: that has been waited for.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DatabaseAway):
        if isinstance(cause, DBAPIError) and cause.orig is not None:
            return cause.connection_invalidated or _may_pass(cause.orig)
        if _may_pass(cause) or _is_cut_off(cause):
            return True
        cause = cause.__cause__
    return False


def _may_pass(error: BaseException) -> bool:
    """The same of a driver's own error."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_CODES
    package = type(error).__module__.partition(".")[0]
    if package != "psycopg":
        return False
    state = getattr(error, "sqlstate", None)
    if state:
        return str(state).startswith(_POSTGRES_CODES)
    broken = type(error).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")
    return broken and not any(words in str(error) for words in _REFUSED)


def is_back_soon(error: BaseException) -> bool:
    """Whether the database itself says that it will be back: no mistake in its address, nor a server to be started."""
    return away(error) and any(words in one_line(error) for words in _SOON)


def _is_cut_off(error: BaseException) -> bool:
    """Whether a transaction was gone on with (as Optuna does after some errors) when its connection was lost."""
    return isinstance(error, PendingRollbackError) and error.code == "8s2b"


def one_line(error: BaseException) -> str:
    """What the database itself said, without SQLAlchemy's and Optuna's wrapping."""
    cause: BaseException = error
    while not isinstance(cause, DBAPIError):
        inner = cause.__context__ if _is_cut_off(cause) else cause.__cause__
        if inner is None:
            break
        cause = inner
    said = str(cause.orig if isinstance(cause, DBAPIError) else cause).strip() or type(cause).__name__
    return " ".join(said.split())


class Outage:
    """For who asks again by itself: says one line when the database first does not answer, one when it does again."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._since: float | None = None

    @property
    def seconds(self) -> float | None:
        """How long the database has not answered; None while it does."""
        since = self._since
        return None if since is None else time.monotonic() - since

    def not_answered(self, error: Exception) -> None:
        """It was asked in vain. What else it says while it starts is not told."""
        if self._since is None:
            self._since = time.monotonic()
            self._tell(f"the database does not answer, asking again: {one_line(error)}")

    def answered(self) -> None:
        """It was asked, and has answered."""
        seconds, self._since = self.seconds, None
        if seconds is not None:
            self._tell(f"the database answers again after {seconds:.0f} s")


class Patience:
    """Pauses that grow from FIRST_SECONDS to LONGEST_SECONDS, with jitter, until a limit counted from the first."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Wait no longer than the `waiting` block around says."""
        self._limit, longest = _limit.get(), away_seconds()
        self._seconds = longest if self._limit.seconds is None else min(self._limit.seconds, longest)
        self._clock, self._sleep = clock, sleep
        # Not Python's own generator: training draws from that one, and is reproducible.
        self._random = random.Random()
        self._pause = FIRST_SECONDS
        self._since: float | None = None

    def wait(self, error: BaseException) -> None:
        """Pause after `error` and before the next attempt.

        Raises:
            DatabaseAway: the limit is reached, or nobody wants to wait any longer.
            error: itself, where it is not `away`, or where the limit is 0.
        """
        if not away(error) or self._seconds == 0:
            raise error
        if self._since is None:
            self._since = self._clock()
            self._limit.tell(f"the database does not answer, asking again: {one_line(error)}")
        end = self._since + self._seconds
        over = self._clock() >= end
        wake = min(end, self._clock() + self._pause * self._random.uniform(0.5, 1.0))
        _sleep_until(wake, self._limit.stop, self._clock, self._sleep)
        if over or self._limit.stop():
            waited = self._clock() - self._since
            raise DatabaseAway(f"the database has not answered for {waited:.0f} s: {one_line(error)}") from error
        self._pause = min(2 * self._pause, LONGEST_SECONDS)


def patiently(function: Callable[[], _Answer]) -> _Answer:
    """Call a function again and again until the database answers it. Raises DatabaseAway, and what is not `away`."""
    patience = Patience()
    while True:
        try:
            return function()
        except Exception as error:
            patience.wait(error)


def unless_away(function: Callable[[], _Answer], tell: Callable[[str], None] = lambda _said: None) -> _Answer | None:
    """Call a function once; None where the database is away, and `tell` takes what that said."""
    try:
        with waiting(0):
            return function()
    except DATABASE_ERRORS as error:
        if not away(error):
            raise
        tell(one_line(error))
        return None


def patient(function: Callable[_Params, _Answer]) -> Callable[_Params, _Answer]:
    """The same function, run again while the database is away: one that reads, or does the same when done twice."""

    @functools.wraps(function)
    def again(*args: _Params.args, **kwargs: _Params.kwargs) -> _Answer:
        return patiently(lambda: function(*args, **kwargs))

    return again
