"""Databases that an older Dialin made, from the SQLite files in `databases/`: a finished study, and one left open.

Each was made by the commands of its version and holds `finished` (four trials of `digits`, at least one pruned) and
`open` (a budget of four, one trial that its worker left, the next enqueued); that of today's version too. From version
4 on there is `paused` as well (a stopped study of two trials: one complete, the other paused by the strategy), from 5
on a worker of the queue, events and a token.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, func, insert, select

from storage.engine import make_engine
from storage.optuna_internals import models
from storage.urls import parse, sqlite_file

VERSIONS = (1, 2, 3, 4)
DATABASES = Path(__file__).resolve().parent / "databases"


def put_version(version: int, url: str) -> None:
    """The old database at an empty URL: the file itself, or its tables and rows on a server."""
    file = sqlite_file(parse(url))
    if file is not None:
        shutil.copyfile(_file(version), file)
        return
    old, new = as_it_was(version), make_engine(parse(url))
    theirs = models.BaseModel.metadata  # Optuna's, whose types SQLite does not keep
    ours = reflected(old)
    for table in [*ours.tables.values()]:
        if table.name in theirs.tables:
            ours.remove(table)
            theirs.tables[table.name].to_metadata(ours)
    with old.connect() as source, new.begin() as target:
        ours.create_all(target)
        for table in ours.sorted_tables:
            rows = [row._asdict() for row in source.execute(select(table))]
            if rows:
                target.execute(insert(table), rows)
            number = table.autoincrement_column
            if rows and number is not None:  # the next ones come after those copied
                sequence = func.pg_get_serial_sequence(table.name, number.name)
                target.execute(select(func.setval(sequence, select(func.max(number)).scalar_subquery())))


def _file(version: int) -> Path:
    return DATABASES / f"version_{version}.sqlite"


def as_it_was(version: int) -> Engine:
    """The file itself, to be read only."""
    uri = f"file:{_file(version)}?immutable=1"
    return create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True))


def reflected(engine: Engine) -> MetaData:
    """The tables as the database has them."""
    metadata = MetaData()
    metadata.reflect(engine)
    return metadata


def all_rows(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, by the columns that the database has."""
    with engine.connect() as connection:
        return {
            table.name: [row._asdict() for row in connection.execute(select(table))]
            for table in reflected(engine).sorted_tables
        }
