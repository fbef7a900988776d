"""One SQLAlchemy engine a process, set up so that any number of processes can write; called by `storage.backend`.

SQLite runs in WAL mode, where readers never wait. A transaction that will write must say so before its first
statement (`writing()`), and then begins with BEGIN IMMEDIATE: one that begins as a reader and writes later can
be refused half way ("database is locked") or act on what another process has changed since. Transactions that
only read stay deferred, or they would wait for writers.

Readers of WAL mode write too: they mark what they read in a file beside the database. Where the file or its folder may
not be written it is opened for reading only, each time as it is at that moment. One case is left that cannot be read
then: the last writer was killed with its changes in the -wal file, and the -shm file is gone.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import DDL, Connection, Dialect, Engine, Float, NullPool, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from storage import urls
from storage.brief_pool import BRIEF, LONG, REST, BriefPool
from storage.errors import ReadOnly
from storage.patience import away_seconds

# Seconds that a SQLite writer waits in the driver for another's transaction, deaf to signals. Ours last milliseconds;
# so long means that something holds the file, and is met with patience (`storage.patience`).
SQLITE_BUSY_SECONDS = 20
# Seconds until a server that does not answer is called unreachable.
CONNECT_SECONDS = 10
# Seconds after which a connection is lost whose other end is silent: the network is gone, or the machine. (libpq's
# words; `tcp_user_timeout`, in milliseconds, is for what was sent and not acknowledged.)
LOST = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}
# Seconds until the server ends a transaction whose client says nothing more: a frozen one keeps the study's rows
# locked for everybody. Between two statements of ours are milliseconds.
IDLE_SECONDS = 20
# A connection that answered so few seconds ago is not asked whether it still does: that is a round trip a transaction.
FRESH_SECONDS = 1.0
# Of a server of whose connections a smaller share is in use a process keeps its own.
ROOM = 0.5
# Asked of a new connection: how many are in use, and how many there may be. In the same round trip it is prepared: an
# option of the connection itself would stand in the way of a person's PGOPTIONS, and PgBouncer takes none.
PREPARED = (
    "SELECT sum(numbackends), current_setting('max_connections')::int, "
    "set_config('idle_in_transaction_session_timeout', %s, false) FROM pg_stat_database"
)

_writing: ContextVar[bool] = ContextVar("writing", default=False)
_asking: ContextVar[bool] = ContextVar("asking", default=False)


@contextmanager
def writing() -> Iterator[None]:
    """Every transaction begun in this context takes SQLite's write lock at its start; nothing on PostgreSQL."""
    token = _writing.set(True)
    try:
        yield
    finally:
        _writing.reset(token)


@contextmanager
def asked_first() -> Iterator[None]:
    """A connection of this context is asked whether it still answers, however fresh: for what cannot be run again."""
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


def make_engine(url: URL) -> Engine:
    """The engine of this process for a URL from `urls.parse`. Connects to nothing yet."""
    file = urls.sqlite_file(url)
    if file is not None and only_readable(file):
        return _reading_engine(url, file)
    if file is not None:
        # A limit that is set shorter holds for the driver's waiting too.
        engine = create_engine(url, connect_args={"timeout": min(SQLITE_BUSY_SECONDS, away_seconds())})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    # What it says of a connection that is lost is raised too, and a log has one line about it.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    engine = create_engine(
        url,
        poolclass=BriefPool,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "dialin",
            **LOST,
        },
    )
    event.listen(engine, "connect", _prepare_postgres)
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", partial(_replace_if_closed, engine.dialect))
    return engine


@contextmanager
def one_moment(engine: Engine) -> Iterator[Connection]:
    """A transaction in which every statement sees the same, whatever others commit meanwhile. SQLite's are so."""
    with engine.connect() as connection:
        if engine.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        without_idle_timeout(connection)
        yield connection


def insert_for(dialect: str, table: Any) -> Any:
    """An INSERT that may say ON CONFLICT, which each database has in a construct of its own."""
    module: Any = postgresql if dialect == "postgresql" else sqlite
    return module.insert(table)


def without_idle_timeout(connection: Connection) -> None:
    """The server does not end this transaction because its client is slow."""
    if connection.dialect.name == "postgresql":
        connection.execute(DDL("SET LOCAL idle_in_transaction_session_timeout = 0"))  # type: ignore[no-untyped-call]


def only_readable(file: Path) -> bool:
    """Whether an existing SQLite file cannot be written here: WAL mode writes beside it too."""
    return file.is_file() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def left_behind(file: Path) -> bool:
    """Whether changes wait in the database's write-ahead log: somebody writes now, or was killed."""
    try:
        return file.with_name(f"{file.name}-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


def _reading_engine(url: URL, file: Path) -> Engine:
    """A new connection for each transaction: how to open the file depends on whether it is being written.

    With an empty log nothing is missing from the file itself, which `immutable` reads without a file beside it. (A
    checkpoint by somebody else in the middle of that one transaction would go unnoticed: it lasts milliseconds.)
    """

    def connect() -> sqlite3.Connection:
        how = "mode=ro" if left_behind(file) else "immutable=1"
        return sqlite3.connect(
            f"file:{quote(str(file))}?{how}", timeout=SQLITE_BUSY_SECONDS, uri=True, check_same_thread=False
        )

    def begin(connection: Connection) -> None:
        if _writing.get():
            raise ReadOnly(f"{urls.shown(url)} may only be read: are {file.name} and {file.parent} writable for you?")
        connection.exec_driver_sql("BEGIN")

    engine = create_engine(url, creator=connect, poolclass=NullPool)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", begin)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: `_begin_sqlite` does
    connection.execute("PRAGMA foreign_keys = ON")
    # In WAL mode NORMAL keeps the file whole through a power cut; what may go is the last commits, all of each.
    connection.execute("PRAGMA synchronous = NORMAL")


def _prepare_postgres(connection: Any, record: Any) -> None:
    """Whoever connects to a server that is half full leaves the connection to others when it is not used."""
    connection.autocommit = True
    used, most, _ = connection.execute(PREPARED, [f"{IDLE_SECONDS}s"]).fetchone()
    connection.autocommit = False
    record.info[REST] = LONG if used < ROOM * most else BRIEF


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _replace_if_closed(dialect: Dialect, connection: Any, record: Any, _proxy: Any) -> None:
    """A connection that the server closed meanwhile is replaced instead of failing the next statement."""
    used = record.info.get("used")
    if used is None or (time.monotonic() - used < FRESH_SECONDS and not _asking.get()):
        return
    try:
        dialect.do_ping(connection)
    except Exception as error:
        raise DisconnectionError from error


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writing.get() else "BEGIN")


class database_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """Seconds since 1970 by the database's clock, the one clock that all workers of a study share."""

    type = Float(53)
    inherit_cache = True


@compiles(database_now, "sqlite")
def _now_on_sqlite(_element: database_now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"  # 2440587.5 is the Julian day of 1970-01-01 00:00 UTC


@compiles(database_now, "postgresql")
def _now_on_postgresql(_element: database_now, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::double precision"
