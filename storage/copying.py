"""All that is in one database to another, SQLite or PostgreSQL, with nothing changed; called by `dialin storage copy`.

Each side is one transaction: what is read is one moment of the one, and the other has all of it or nothing. Rows keep
their keys. Files are no part of it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    DDL,
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    delete,
    exists,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from storage import living, patience, schema, urls
from storage.engine import make_engine, one_moment, without_idle_timeout, writing
from storage.errors import DialinError, UsageError
from storage.optuna_internals import models
from storage.tables import Base, SchemaRow
from storage.words import counted

# So many rows are in memory at a time.
CHUNK_ROWS = 2000

# Optuna's migrations (alembic) keep their place in a table that no model declares.
_ALEMBIC = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
_VERSIONS = {_ALEMBIC.name, models.VersionInfoModel.__tablename__, SchemaRow.__tablename__}


@dataclass(frozen=True)
class Copied:
    """What was copied. `left_out`: tables in the old database that are neither Optuna's nor Dialin's."""

    studies: int
    trials: int
    rows: int
    left_out: tuple[str, ...]


def copy(source: URL, target: URL, *, while_training: bool = False) -> Copied:
    """Everything in `source` to `target`, which is empty or not there yet.

    Args:
        while_training: also when workers are alive in `source`; what they do from then on is in `source` only.

    Raises:
        UsageError: there is nothing to copy, `target` is not empty, or workers are alive.
        WrongVersion: one of them is of another version.
        DialinError: `target` does not take a row (PostgreSQL no text with NUL in it). It is left empty.
        StorageUnavailable, ReadOnly: one line each.
    """
    if source == target:
        raise UsageError(f"{urls.shown(source)} cannot be copied to itself: name another database")
    urls.there_is(source)
    old, new = make_engine(source), make_engine(target)
    try:
        with schema.errors_in_words(source), one_moment(old) as reading:
            schema.require(source, old)
            _refuse_at_work(source, reading, while_training)
            with schema.errors_in_words(target):
                schema.prepare(target, new, _sessions(new))
                with writing(), new.begin() as into:
                    without_idle_timeout(into)
                    _refuse_unless_empty(target, into)
                    return _copy_all(source, target, reading, into)
    finally:
        old.dispose()
        new.dispose()


def _sessions(engine: Engine) -> scoped_session[Session]:
    return scoped_session(sessionmaker(bind=engine))


def _refuse_at_work(url: URL, connection: Connection, while_training: bool) -> None:
    working = 0 if while_training else living.count(connection)
    if working:
        raise UsageError(
            f"{urls.shown(url)} is in use by {counted(working, 'worker')}: end them by `dialin stop`, or copy "
            "what there is at this moment with --while-training"
        )


def _refuse_unless_empty(url: URL, connection: Connection) -> None:
    """Nobody adds a study until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(DDL("LOCK TABLE studies IN SHARE ROW EXCLUSIVE MODE"))  # type: ignore[no-untyped-call]
    for table in _tables():
        if table.name not in _VERSIONS and connection.scalar(select(exists(select(table)))):
            raise UsageError(f"{urls.shown(url)} is not empty, it has rows in {table.name}: copy to a new database")


def _tables() -> list[Table]:
    """Those of Optuna, then ours; each after all that it refers to."""
    return [*models.BaseModel.metadata.sorted_tables, _ALEMBIC, *Base.metadata.tables.values()]


def _copy_all(source: URL, target: URL, reading: Connection, into: Connection) -> Copied:
    optunas = [connection.scalars(select(_ALEMBIC.c.version_num)).all() for connection in (reading, into)]
    if optunas[0] != optunas[1]:
        raise schema.WrongVersion(
            f"{urls.shown(source)} was made by another version of Optuna: `optuna storage upgrade` brings it up to date"
        )
    count = {}
    for table in _tables():
        if table.name in _VERSIONS:
            into.execute(delete(table))
        with closing(_chunks(source, reading, table)) as chunks:
            count[table.name] = sum(_put(target, into, table, rows) for rows in chunks)
        if into.scalar(select(func.count()).select_from(table)) != count[table.name]:
            raise DialinError(f"{urls.shown(target)} has not kept all rows of {table.name}: nothing was copied")
        _go_on_counting(into, table)
    others = {*inspect(reading).get_table_names()} - count.keys()
    return Copied(count["studies"], count["trials"], sum(count.values()), tuple(sorted(others)))


def _chunks(url: URL, connection: Connection, table: Table) -> Generator[list[dict[str, Any]]]:
    names = [column.key for column in table.columns]
    query = select(table).order_by(*table.primary_key)
    with schema.errors_in_words(url), connection.execute(query, execution_options={"yield_per": CHUNK_ROWS}) as found:
        for rows in found.partitions():
            yield [dict(zip(names, row, strict=True)) for row in rows]


def _put(url: URL, connection: Connection, table: Table, rows: list[dict[str, Any]]) -> int:
    try:
        connection.execute(insert(table), rows)
    except DBAPIError as error:
        raise DialinError(
            f"{urls.shown(url)} does not take a row of {table.name}: {patience.one_line(error)}; nothing was copied"
        ) from error
    return len(rows)


def _go_on_counting(connection: Connection, table: Table) -> None:
    """What PostgreSQL numbers itself goes on after the rows that came with their numbers."""
    number = table.autoincrement_column
    if connection.dialect.name == "postgresql" and number is not None:
        highest = select(func.max(number)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(table.name, number.name)
        connection.execute(select(func.setval(sequence, highest)).where(highest.is_not(None)))
