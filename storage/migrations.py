"""From the tables of an older Dialin to today's, step by step; called by `storage.schema` under its lock.

A step names the tables and columns of its own time and never today's classes, which will change again. It is one
transaction with the new version number, on SQLite too: a process that dies in the middle has changed nothing.

Whoever opened the database before a step and goes on with the old statements must fail at the first of them that
matters: a claim, an epoch, a settlement. So a step also renames a column that all of these need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from alembic.ddl.base import ColumnName
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Connection, Float, Integer, Text, column, func, select, table, update


def steps_from(version: int, to: int) -> list[Callable[[Connection], None]]:
    """The steps from one version to another; none where there is no way."""
    wanted = range(version, to)
    return [_STEPS[step] for step in wanted] if all(step in _STEPS for step in wanted) else []


def _to_version_2(connection: Connection) -> None:
    """Folds, limits and a narrowed space of a study; the devices of an epoch. Tables in the order workers lock them."""
    connection.execute(ColumnName("dialin_leases", "generation", "term"))
    operations = Operations(MigrationContext.configure(connection))
    operations.add_column("dialin_epochs", Column("devices", Integer, nullable=False, server_default="1"))
    for new in (
        Column("folds", Integer, nullable=False, server_default="1"),
        Column("space", Text, nullable=False, server_default="{}"),
        Column("until", Float(53)),
        Column("budget_seconds", Float(53)),
        Column("spent_seconds", Float(53), nullable=False, server_default="0"),
    ):
        operations.add_column("dialin_studies", new)
    studies = table("dialin_studies", column("study_id"), column("spent_seconds"))
    trials = table("dialin_trials", column("trial_id"), column("study_id"))
    epochs = table("dialin_epochs", column("trial_id"), column("seconds"))
    spent = (
        select(func.coalesce(func.sum(epochs.c.seconds), 0.0))
        .join(trials, trials.c.trial_id == epochs.c.trial_id)
        .where(trials.c.study_id == studies.c.study_id)
        .scalar_subquery()
    )
    connection.execute(update(studies).values(spent_seconds=spent))


_STEPS: Mapping[int, Callable[[Connection], None]] = {1: _to_version_2}
