"""Databases that an older Dialin made, from the SQLite files in `databases/`: a finished study, and one left open.

`version_1.sqlite` holds `finished` (four trials of `digits`, one of them pruned) and `open` (a budget of four, one
trial that its worker left after an epoch, one enqueued). Times are of 2024.
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

VERSION_1 = Path(__file__).resolve().parent / "databases" / "version_1.sqlite"


def put_version_1(url: str) -> None:
    """The old database at an empty URL: the file itself, or its tables and rows on a server."""
    file = sqlite_file(parse(url))
    if file is not None:
        shutil.copyfile(VERSION_1, file)
        return
    old, new = version_1(), make_engine(parse(url))
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


def version_1() -> Engine:
    """The file itself, to be read only."""
    uri = f"file:{VERSION_1}?immutable=1"
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
