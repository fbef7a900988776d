"""Creates the tables once, or brings older ones up to date; refuses what it cannot read. Called by `storage.backend`.

Optuna creates its tables without a lock: processes that open a new database together collide. Here the first
one creates or upgrades everything under a lock that the database (or, for SQLite, its folder) keeps, and the rest
find it done.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from sqlalchemy import Connection, Engine, func, insert, inspect, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from storage import migrations, urls
from storage.claims import LEASE_SECONDS
from storage.engine import database_now, left_behind, only_readable, writing
from storage.errors import DialinError, UsageError
from storage.optuna_internals import VersionManager, models
from storage.patience import one_line
from storage.tables import SCHEMA_VERSION, Base, SchemaRow, WorkerRow

# Any number that no other program on the server is likely to lock: "dialin" read as base 36.
_ADVISORY_LOCK = int("dialin", 36)


class StorageUnavailable(DialinError):
    """The database cannot be opened now: no server, no rights, no such folder."""


class WrongVersion(UsageError):
    """The database was made by another version of Dialin or of Optuna."""


def prepare(url: URL, engine: Engine, sessions: scoped_session[Session]) -> VersionManager:
    """Make sure that Optuna's tables and Dialin's are there and are of this version.

    Raises:
        StorageUnavailable: the database cannot be reached, or must be made and cannot be written.
        ReadOnly: it must be upgraded and may only be read.
        WrongVersion: its tables are of another version, or of one that workers still use.
    """
    try:
        if not inspect(engine).has_table(SchemaRow.__tablename__) or _version(engine) is None:
            _create(url, engine, sessions)
        outdated = _check(url, engine)
        manager = VersionManager(urls.full(url), engine, sessions)
        manager.check_table_schema_compatibility()
        if outdated:
            _upgrade(url, engine)
    except (DBAPIError, optuna.exceptions.StorageInternalError, OSError) as error:
        raise StorageUnavailable(explain(url, error)) from error
    except RuntimeError as error:
        raise WrongVersion(f"{urls.shown(url)} was made by another version of Optuna: {error}") from None
    return manager


def explain(url: URL, error: BaseException) -> str:
    """One line for a database error: which database, what it said, and what to look at."""
    said = one_line(error)
    hint = ""
    file = urls.sqlite_file(url)
    if file is not None:
        if file.is_dir():
            hint = " (that is a folder)"
        elif not file.parent.is_dir():
            hint = f" (there is no folder {file.parent})"
        elif "unable to open" in said and only_readable(file) and left_behind(file):
            hint = f" (its last writer was killed: only who may write in {file.parent} can open it, once is enough)"
        elif "readonly" in said or "unable to open" in said:
            hint = f" (is {file.parent} writable for you?)"
        elif "not a database" in said:
            hint = f" ({file} is some other file)"
    elif "Is the server running" not in said and ("refused" in said or "translate" in said or "timeout" in said):
        hint = " (is the server running, and is the address right?)"
    return f"cannot use storage {urls.shown(url)}: {said}{hint}"


def _version(engine: Engine) -> int | None:
    with engine.connect() as connection:
        return connection.scalar(select(SchemaRow.version))


def _check(url: URL, engine: Engine) -> bool:
    """Whether the tables must be upgraded before use. Raises WrongVersion where they cannot be."""
    found = _version(engine)
    if found == SCHEMA_VERSION:
        return False
    if found is not None and migrations.steps_from(found, SCHEMA_VERSION):
        return True
    newer = found is not None and found > SCHEMA_VERSION
    way_out = "upgrade dialin" if newer else "use the dialin that made it, or a new database"
    raise WrongVersion(
        f"{urls.shown(url)} has Dialin's tables of version {found}, but this dialin reads version "
        f"{SCHEMA_VERSION}: {way_out}"
    )


def _upgrade(url: URL, engine: Engine) -> None:
    """All steps in one transaction, unless another process has done them meanwhile."""
    with _lock(url, engine), writing(), engine.begin() as connection:
        found = connection.scalar(select(SchemaRow.version)) or 0
        if found >= SCHEMA_VERSION:
            return
        _refuse_at_work(url, connection)
        for step in migrations.steps_from(found, SCHEMA_VERSION):
            step(connection)
        connection.execute(update(SchemaRow).values(version=SCHEMA_VERSION))


def _refuse_at_work(url: URL, connection: Connection) -> None:
    """Workers of an older Dialin could not go on after the upgrade; who only looks must not end them."""
    alive = WorkerRow.ended_at.is_(None) & (WorkerRow.last_seen > database_now() - LEASE_SECONDS)
    working = connection.scalar(select(func.count()).select_from(WorkerRow).where(alive))
    if working:
        raise WrongVersion(
            f"{urls.shown(url)} is in use by {working} worker{'s' * (working > 1)} of an older dialin: end them by its "
            f"`dialin stop`; after {LEASE_SECONDS:g} s without a sign of one this dialin upgrades the database"
        )


def _create(url: URL, engine: Engine, sessions: scoped_session[Session]) -> None:
    with _lock(url, engine):
        if url.get_backend_name() == "sqlite":
            _use_write_ahead_log(engine)
        models.BaseModel.metadata.create_all(engine)
        VersionManager(urls.full(url), engine, sessions)  # stamps Optuna's version where there is none yet
        Base.metadata.create_all(engine)
        with writing(), engine.begin() as connection:
            if connection.scalar(select(SchemaRow.version)) is None:
                connection.execute(insert(SchemaRow).values(version=SCHEMA_VERSION))


def _use_write_ahead_log(engine: Engine) -> None:
    """Stays with the file. Only possible outside a transaction, so on the driver's own connection."""
    pooled = engine.raw_connection()
    try:
        pooled.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        pooled.close()


@contextmanager
def _lock(url: URL, engine: Engine) -> Iterator[None]:
    """Held by one process at a time while it creates tables, and freed by its death too."""
    file = urls.sqlite_file(url)
    if file is None:
        with engine.connect() as connection:
            connection.execute(select(func.pg_advisory_lock(_ADVISORY_LOCK)))
            try:
                yield
            finally:
                connection.execute(select(func.pg_advisory_unlock(_ADVISORY_LOCK)))
    else:
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
