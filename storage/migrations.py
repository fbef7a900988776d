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
from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    String,
    Table,
    Text,
    column,
    func,
    insert,
    select,
    table,
    update,
)


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


def _to_version_3(connection: Connection) -> None:
    """A trial's owners, sizes and places of checkpoints, two more limits of a study, and micro-batches.

    Of owners before this version only those that still hold a lease are known.
    """
    connection.execute(ColumnName("dialin_leases", "term", "tenure"))
    operations = Operations(MigrationContext.configure(connection))
    operations.add_column("dialin_checkpoints", Column("batch", Integer, nullable=False, server_default="0"))
    operations.add_column("dialin_checkpoints", Column("size", BigInteger))
    for new in (
        Column("budget_epochs", Integer),
        Column("spent_epochs", Integer, nullable=False, server_default="0"),
        Column("deadline", Float(53)),
    ):
        operations.add_column("dialin_studies", new)
    owners = operations.create_table(
        "dialin_owners",
        Column("trial_id", Integer, ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
        Column("generation", Integer, primary_key=True),
        Column("worker_id", String(32), nullable=False),
        Column("claim", String(32), nullable=False, unique=True),
        Column("recorded", Integer, nullable=False),
        Column("began_at", Float(53), nullable=False),
        Column("ended_at", Float(53)),
        Column("ending", String(16)),
    )
    _cascade(connection, "dialin_owners", "trials", "trial_id")
    operations.create_table(
        "dialin_micro_batches",
        Column("model", String(64), primary_key=True),
        Column("device", String(512), primary_key=True),
        Column("samples", Integer, nullable=False),
        Column("found_at", Float(53), nullable=False),
    )
    _keep_owners(connection, owners)
    _count_epochs(connection)


def _keep_owners(connection: Connection, owners: Table) -> None:
    """Whoever holds a lease becomes an owner on record, with the epochs of its own."""
    leases = table("dialin_leases", *map(column, ("trial_id", "tenure", "worker_id", "claim")))
    trials = table("dialin_trials", column("trial_id"), column("started_at"))
    epochs = table("dialin_epochs", column("trial_id"), column("generation"))
    recorded = select(func.count()).where(
        epochs.c.trial_id == leases.c.trial_id, epochs.c.generation == leases.c.tenure
    )
    holding = select(
        leases.c.trial_id,
        leases.c.tenure,
        leases.c.worker_id,
        leases.c.claim,
        recorded.scalar_subquery(),
        trials.c.started_at,
    ).join(trials, trials.c.trial_id == leases.c.trial_id)
    names = ["trial_id", "generation", "worker_id", "claim", "recorded", "began_at"]
    connection.execute(insert(owners).from_select(names, holding))


def _count_epochs(connection: Connection) -> None:
    studies = table("dialin_studies", column("study_id"), column("spent_epochs"))
    trials = table("dialin_trials", column("trial_id"), column("study_id"))
    epochs = table("dialin_epochs", column("trial_id"))
    spent = (
        select(func.count())
        .select_from(epochs.join(trials, trials.c.trial_id == epochs.c.trial_id))
        .where(trials.c.study_id == studies.c.study_id)
        .scalar_subquery()
    )
    connection.execute(update(studies).values(spent_epochs=spent))


def _to_version_4(connection: Connection) -> None:
    """Trials that are paused."""
    connection.execute(ColumnName("dialin_leases", "tenure", "reign"))
    Operations(MigrationContext.configure(connection)).add_column("dialin_trials", Column("paused", Integer))


def _to_version_5(connection: Connection) -> None:
    """A study's place in the queue, workers that serve whatever is open, what was done to studies, and tokens."""
    connection.execute(ColumnName("dialin_leases", "reign", "mandate"))
    operations = Operations(MigrationContext.configure(connection))
    for new in (
        Column("priority", Integer, nullable=False, server_default="1"),
        Column("concurrency", Integer),
        Column("virtual_time", Float(53), nullable=False, server_default="0"),
    ):
        operations.add_column("dialin_studies", new)
    some = column("paused", Integer).is_not(None)
    operations.create_index(
        "ix_dialin_trials_paused", "dialin_trials", ["study_id"], sqlite_where=some, postgresql_where=some
    )
    open_ = column("ended_at", Float(53)).is_(None)
    operations.create_index(
        "ix_dialin_workers_open", "dialin_workers", ["study_id"], sqlite_where=open_, postgresql_where=open_
    )
    operations.create_table(
        "dialin_queue_workers",
        Column("queue_worker_id", String(32), primary_key=True),
        Column("host", String(512), nullable=False),
        Column("pid", Integer, nullable=False),
        Column("slot", String(512), nullable=False),
        Column("study_id", Integer, index=True),
        Column("worker_id", String(32), unique=True),
        Column("since", Float(53), nullable=False),
        Column("charged_at", Float(53), nullable=False),
        Column("note", Text, nullable=False),
        Column("started_at", Float(53), nullable=False),
        Column("last_seen", Float(53), nullable=False),
        Column("ended_at", Float(53)),
    )
    operations.create_table(
        "dialin_tokens",
        Column("token_id", Integer, primary_key=True),
        Column("name", String(512), nullable=False, unique=True),
        Column("role", String(16), nullable=False),
        Column("sha256", String(64), nullable=False, unique=True),
        Column("created_at", Float(53), nullable=False),
        Column("last_used_at", Float(53)),
        Column("revoked_at", Float(53)),
    )
    operations.create_table(
        "dialin_events",
        Column("event_id", Integer, primary_key=True),
        Column("study_id", Integer, ForeignKey("studies.study_id", ondelete="CASCADE"), nullable=False, index=True),
        Column("at", Float(53), nullable=False),
        Column("kind", String(16), nullable=False),
        Column("actor", String(512), nullable=False),
        Column("detail", Text, nullable=False),
    )
    _cascade(connection, "dialin_events", "studies", "study_id")


def _cascade(connection: Connection, to: str, parent: str, key: str) -> None:
    """As `storage.tables` says, foreign keys are not heeded by everyone on SQLite."""
    if connection.dialect.name == "sqlite":
        connection.execute(
            DDL(  # type: ignore[no-untyped-call]
                "CREATE TRIGGER %(to)s_cascade AFTER DELETE ON %(parent)s BEGIN "
                "DELETE FROM %(to)s WHERE %(key)s = OLD.%(key)s; END",
                context={"to": to, "parent": parent, "key": key},
            )
        )


_STEPS: Mapping[int, Callable[[Connection], None]] = {
    1: _to_version_2,
    2: _to_version_3,
    3: _to_version_4,
    4: _to_version_5,
}
