"""One SQLAlchemy engine a process, set up so that any number of processes can write; called by `storage.backend`.

SQLite runs in WAL mode, where readers never wait. A transaction that will write must say so before its first
statement (`writing()`), and then begins with BEGIN IMMEDIATE: one that begins as a reader and writes later can
be refused half way ("database is locked") or act on what another process has changed since. Transactions that
only read stay deferred, or they would wait for writers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, Engine, Float, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

# Seconds that a SQLite writer waits for another's transaction. Ours last milliseconds; a full minute means that
# something holds the file for good.
SQLITE_BUSY_SECONDS = 60
# Seconds until a server that does not answer is called unreachable.
CONNECT_SECONDS = 10

_writing: ContextVar[bool] = ContextVar("writing", default=False)


@contextmanager
def writing() -> Iterator[None]:
    """Every transaction begun in this context takes SQLite's write lock at its start; nothing on PostgreSQL."""
    token = _writing.set(True)
    try:
        yield
    finally:
        _writing.reset(token)


def make_engine(url: URL) -> Engine:
    """The engine of this process for a URL from `urls.parse`. Connects to nothing yet."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        # A connection that the server closed meanwhile is replaced instead of failing the next statement.
        pool_pre_ping=True,
        # A worker's training thread, its lease thread and nobody else.
        pool_size=2,
        connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "dialin"},
    )


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: `_begin_sqlite` does
    connection.execute("PRAGMA foreign_keys = ON")
    # In WAL mode NORMAL keeps the file whole through a power cut; what may go is the last commits, all of each.
    connection.execute("PRAGMA synchronous = NORMAL")


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
