"""Creates the tables once; refuses those of another version, and brings older ones up to date when asked to.

`storage.backend` calls `prepare` whenever a database is opened, `dialin storage upgrade` calls `upgrade`.

Optuna creates its tables without a lock: processes that open a new database together collide. Here the first
one creates everything under a lock that the database (or, for SQLite, its folder) keeps, and the rest find it done.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from sqlalchemy import Connection, Engine, func, insert, inspect, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from storage import living, migrations, urls
from storage.claims import LEASE_SECONDS
from storage.engine import left_behind, make_engine, only_readable, writing
from storage.errors import DialinError, UsageError
from storage.optuna_internals import VersionManager, models
from storage.patience import one_line
from storage.tables import SCHEMA_VERSION, Base, SchemaRow
from storage.words import counted

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
        WrongVersion: its tables are of another version; the line says the way out.
    """
    with errors_in_words(url):
        if not inspect(engine).has_table(SchemaRow.__tablename__) or _version(engine) is None:
            _create(url, engine, sessions)
        found = _version(engine)
        if found != SCHEMA_VERSION:
            raise WrongVersion(_other_version(url, found))
        manager = VersionManager(urls.full(url), engine, sessions)
        try:
            manager.check_table_schema_compatibility()
        except RuntimeError as error:
            raise WrongVersion(f"{urls.shown(url)} was made by another version of Optuna: {error}") from None
    return manager


def upgrade(url: URL) -> int:
    """Bring the tables of an older Dialin up to date, all steps in one transaction; the version that they had.

    That is SCHEMA_VERSION where there was nothing to do.

    Raises:
        StorageUnavailable: the database cannot be reached.
        ReadOnly: it may only be read.
        WrongVersion: nothing leads from its version to this one, or workers of its version are alive.
        UsageError: there are no tables of Dialin's.
    """
    engine = make_engine(url)
    try:
        with errors_in_words(url):
            found = _found(url, engine)
            if found != SCHEMA_VERSION and not migrations.steps_from(found, SCHEMA_VERSION):
                raise WrongVersion(_other_version(url, found))
            return found if found == SCHEMA_VERSION else _upgrade(url, engine)
    finally:
        engine.dispose()


def require(url: URL, engine: Engine) -> None:
    """Nothing is made where nothing is.

    Raises:
        UsageError: there are no tables of Dialin's.
        WrongVersion: they are of another version.
    """
    found = _found(url, engine)
    if found != SCHEMA_VERSION:
        raise WrongVersion(_other_version(url, found))


def _found(url: URL, engine: Engine) -> int:
    found = _version(engine) if inspect(engine).has_table(SchemaRow.__tablename__) else None
    if found is None:
        raise UsageError(f"{urls.shown(url)} has no tables of Dialin's: the first `dialin run` makes them")
    return found


@contextmanager
def errors_in_words(url: URL) -> Iterator[None]:
    """What the database refuses, in one line."""
    try:
        yield
    except (DBAPIError, sqlite3.Error, optuna.exceptions.StorageInternalError, OSError) as error:
        raise StorageUnavailable(explain(url, error)) from error


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


def _other_version(url: URL, found: int | None) -> str:
    """Why the database cannot be used as it is, and the way out."""
    if found is not None and found < SCHEMA_VERSION and migrations.steps_from(found, SCHEMA_VERSION):
        named = f" --storage {urls.shown(url)}" if url.password is None else ""
        way_out = f"`dialin storage upgrade{named}` brings them up to date"
    elif found is not None and found > SCHEMA_VERSION:
        way_out = "upgrade dialin"
    else:
        way_out = "use the dialin that made it, or a new database"
    return (
        f"{urls.shown(url)} has Dialin's tables of version {found}, but this dialin reads version "
        f"{SCHEMA_VERSION}: {way_out}"
    )


def _upgrade(url: URL, engine: Engine) -> int:
    """The version that it found: another process may have done it meanwhile."""
    with _lock(url, engine), writing(), engine.begin() as connection:
        found = connection.scalar(select(SchemaRow.version)) or 0
        if found < SCHEMA_VERSION:
            _refuse_at_work(url, connection)
            for step in migrations.steps_from(found, SCHEMA_VERSION):
                step(connection)
            connection.execute(update(SchemaRow).values(version=SCHEMA_VERSION))
        return found


def _refuse_at_work(url: URL, connection: Connection) -> None:
    """Workers of an older Dialin could not go on after the upgrade."""
    working = living.count(connection)
    if working:
        raise WrongVersion(
            f"{urls.shown(url)} is in use by {counted(working, 'worker')} of an older dialin: end them by its "
            f"`dialin stop`, and upgrade again when there was no sign of one for {LEASE_SECONDS:g} s"
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
