"""Dialin's own tables: what Optuna does not keep. They live beside Optuna's in the same database, under one prefix.

Every row hangs on Optuna's study or trial with ON DELETE CASCADE (on SQLite by triggers too), so that a study
deleted from any client goes whole. Times are seconds since 1970 by the database's clock. Identifiers that a client
makes (`ticket`, `claim`, `settlement`) are UUIDs, unique in their table, so that what a COMMIT had done can be found
when its answer was lost.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import DDL, BigInteger, Float, ForeignKey, Index, Integer, String, Text, column, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.optuna_internals import models

SCHEMA_VERSION = 5  # `storage.migrations` has the steps from older ones

_UUID = String(32)
_NAME = String(512)
_DOUBLE = Float(53)
_PAUSED = column("paused", Integer).is_not(None)
_NOT_ENDED = column("ended_at", _DOUBLE).is_(None)


class Base(DeclarativeBase):
    """Metadata of the tables below; `storage.schema` creates them and checks their version."""


def _study_key() -> ForeignKey:
    return ForeignKey(models.StudyModel.study_id, ondelete="CASCADE")


def _trial_key() -> ForeignKey:
    return ForeignKey(models.TrialModel.trial_id, ondelete="CASCADE")


class StudyState(StrEnum):
    """What workers of a study should do: go on, hand back what they train and wait, or hand it back and end."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class OwnerEnding(StrEnum):
    """How an owner's time with a trial ended: it settled it, gave it back, let it pause, or was given up for dead.

    OUT_OF_MEMORY is a death too: the system killed it, and somebody saw that it was for want of memory.
    """

    SETTLED = "settled"
    HANDED_BACK = "handed_back"
    PAUSED = "paused"
    DIED = "died"
    OUT_OF_MEMORY = "out_of_memory"


DEATHS = (OwnerEnding.DIED, OwnerEnding.OUT_OF_MEMORY)


class Role(StrEnum):
    """What the bearer of a token may do: look, or everything."""

    VIEWER = "viewer"
    OPERATOR = "operator"


class CheckpointKind(StrEnum):
    """What a checkpoint file is for: going on with the trial, or using its best epoch's weights."""

    STATE = "state"
    WEIGHTS = "weights"


class SchemaRow(Base):
    """One row: the version of these tables."""

    __tablename__ = "dialin_schema"
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


class StudyRow(Base):
    """What was asked for, and how much of its budget is taken. `epochs` is one fold's length, 0 where none is known.

    `spent_seconds` counts device time: an epoch's seconds times its devices. `spent_epochs` counts epochs on record,
    one trained again by an adopter once. `deadline` is a moment. `space` is JSON.

    Its place in the queue: a share of the workers in proportion to `priority`, and at most `concurrency` trials at once
    (None: no limit). `virtual_time` is the time that workers of the queue have spent on it for each unit of its
    priority, as far as it has been charged (`storage.queue`).
    """

    __tablename__ = "dialin_studies"
    study_id: Mapped[int] = mapped_column(_study_key(), primary_key=True, autoincrement=False)
    uid: Mapped[str] = mapped_column(_UUID, unique=True)
    objective: Mapped[str] = mapped_column(Text)
    objective_sha256: Mapped[str] = mapped_column(String(64))
    metric: Mapped[str] = mapped_column(_NAME)
    epochs: Mapped[int] = mapped_column(Integer)
    folds: Mapped[int] = mapped_column(Integer, server_default="1")
    trials: Mapped[int] = mapped_column(Integer)
    taken: Mapped[int] = mapped_column(Integer, default=0)
    returned: Mapped[int] = mapped_column(Integer, default=0)
    errors_in_a_row: Mapped[int] = mapped_column(Integer, default=0)
    seed: Mapped[int] = mapped_column(Integer)
    sampler: Mapped[str] = mapped_column(_NAME)
    pruner: Mapped[str] = mapped_column(_NAME)
    space: Mapped[str] = mapped_column(Text, server_default="{}")
    until: Mapped[float | None] = mapped_column(_DOUBLE)
    budget_seconds: Mapped[float | None] = mapped_column(_DOUBLE)
    spent_seconds: Mapped[float] = mapped_column(_DOUBLE, server_default="0")
    budget_epochs: Mapped[int | None] = mapped_column(Integer)
    spent_epochs: Mapped[int] = mapped_column(Integer, server_default="0")
    deadline: Mapped[float | None] = mapped_column(_DOUBLE)
    priority: Mapped[int] = mapped_column(Integer, server_default="1")
    concurrency: Mapped[int | None] = mapped_column(Integer)
    virtual_time: Mapped[float] = mapped_column(_DOUBLE, server_default="0")
    state: Mapped[str] = mapped_column(String(16), default=StudyState.RUNNING)
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(_DOUBLE)


class WorkerRow(Base):
    """A process that trains. `slot_key` is a GPU's UUID and a place on it, leased while the worker lives."""

    __tablename__ = "dialin_workers"
    worker_id: Mapped[str] = mapped_column(_UUID, primary_key=True)
    study_id: Mapped[int] = mapped_column(_study_key(), index=True)
    host: Mapped[str] = mapped_column(_NAME)
    pid: Mapped[int] = mapped_column(Integer)
    slot: Mapped[str] = mapped_column(_NAME)
    slot_key: Mapped[str | None] = mapped_column(_NAME, unique=True)
    started_at: Mapped[float] = mapped_column(_DOUBLE)
    last_seen: Mapped[float] = mapped_column(_DOUBLE)
    ended_at: Mapped[float | None] = mapped_column(_DOUBLE)

    __table_args__ = (
        Index("ix_dialin_workers_open", "study_id", sqlite_where=_NOT_ENDED, postgresql_where=_NOT_ENDED),
    )


class TrialRow(Base):
    """A started trial: its ticket, and once it is settled how it ended.

    `paused`: the generation of the owner that let it go, to be gone on with by whoever the strategy says; None while it
    is trained, may be adopted, or has ended. A paused trial has no lease, and is RUNNING for Optuna.
    """

    __tablename__ = "dialin_trials"
    trial_id: Mapped[int] = mapped_column(_trial_key(), primary_key=True, autoincrement=False)
    study_id: Mapped[int] = mapped_column(_study_key(), index=True)
    ticket: Mapped[str] = mapped_column(_UUID, unique=True)
    paused: Mapped[int | None] = mapped_column(Integer)
    settlement: Mapped[str | None] = mapped_column(_UUID, unique=True)
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    best_epoch: Mapped[int | None] = mapped_column(Integer)
    started_at: Mapped[float] = mapped_column(_DOUBLE)
    settled_at: Mapped[float | None] = mapped_column(_DOUBLE)

    __table_args__ = (Index("ix_dialin_trials_paused", "study_id", sqlite_where=_PAUSED, postgresql_where=_PAUSED),)


class LeaseRow(Base):
    """Who trains a trial now. Gone when the trial is settled; expired or handed back when anyone may adopt it.

    `generation` counts the owners. Whatever an owner writes is conditional on its worker and its generation.
    `expires_at` 0 means handed back. Its column has another name in each version: whoever still writes an older one
    can neither claim, record nor settle.
    """

    __tablename__ = "dialin_leases"
    trial_id: Mapped[int] = mapped_column(_trial_key(), primary_key=True, autoincrement=False)
    study_id: Mapped[int] = mapped_column(_study_key(), index=True)
    worker_id: Mapped[str] = mapped_column(_UUID, index=True)
    generation: Mapped[int] = mapped_column("mandate", Integer, key="generation")
    claim: Mapped[str] = mapped_column(_UUID, unique=True)
    expires_at: Mapped[float] = mapped_column(_DOUBLE)


class OwnerRow(Base):
    """One owner of a trial, for good: who held which generation of its lease, what came of it, and how it ended.

    `claim` is the lease's. `recorded` is more than 0 once it has left an epoch or a checkpoint. `ending` is an
    `OwnerEnding`, None while it holds the lease; `ended_at` is when that was written, for a death the moment of the
    adoption.
    """

    __tablename__ = "dialin_owners"
    trial_id: Mapped[int] = mapped_column(_trial_key(), primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    worker_id: Mapped[str] = mapped_column(_UUID)
    claim: Mapped[str] = mapped_column(_UUID, unique=True)
    recorded: Mapped[int] = mapped_column(Integer, default=0)
    began_at: Mapped[float] = mapped_column(_DOUBLE)
    ended_at: Mapped[float | None] = mapped_column(_DOUBLE)
    ending: Mapped[str | None] = mapped_column(String(16))


class EpochRow(Base):
    """One epoch of a trial: every metric (JSON text, NaN allowed), what it cost, and who trained it."""

    __tablename__ = "dialin_epochs"
    trial_id: Mapped[int] = mapped_column(_trial_key(), primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(Integer)
    worker_id: Mapped[str] = mapped_column(_UUID)
    metrics: Mapped[str] = mapped_column(Text)
    seconds: Mapped[float] = mapped_column(_DOUBLE)
    samples: Mapped[int] = mapped_column(Integer)
    device: Mapped[str] = mapped_column(_NAME)
    devices: Mapped[int] = mapped_column(Integer, server_default="1")
    ended_at: Mapped[float] = mapped_column(_DOUBLE)


class CheckpointRow(Base):
    """A checkpoint file that is whole: recorded after it was written.

    `batch`: how many batches of the epoch after `epoch` it holds as well. `size` is in bytes, None where not known.
    """

    __tablename__ = "dialin_checkpoints"
    checkpoint_id: Mapped[int] = mapped_column(Integer, primary_key=True)
    trial_id: Mapped[int] = mapped_column(_trial_key())
    kind: Mapped[str] = mapped_column(String(16))
    epoch: Mapped[int] = mapped_column(Integer)
    batch: Mapped[int] = mapped_column(Integer, server_default="0")
    generation: Mapped[int] = mapped_column(Integer)
    path: Mapped[str] = mapped_column(Text)
    size: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("ix_dialin_checkpoints_trial_kind", "trial_id", "kind"),)


class MicroBatchRow(Base):
    """The largest part of a batch that fitted into memory: of which model, on which kind of device.

    `model` is a digest of what a batch's memory depends on, `device` a kind ("NVIDIA H100 80GB HBM3", "cpu 8 GiB").
    """

    __tablename__ = "dialin_micro_batches"
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(_NAME, primary_key=True)
    samples: Mapped[int] = mapped_column(Integer)
    found_at: Mapped[float] = mapped_column(_DOUBLE)


class QueueWorkerRow(Base):
    """A process that serves whatever study is open. It hangs on no study, and outlives each.

    `study_id` and `worker_id` (its row in `dialin_workers`) say what it serves since `since`; None while it waits.
    `charged_at`: up to when its time is in the study's `virtual_time`. `note`: what it would tell a person, such as why
    it leaves a study alone.
    """

    __tablename__ = "dialin_queue_workers"
    queue_worker_id: Mapped[str] = mapped_column(_UUID, primary_key=True)
    host: Mapped[str] = mapped_column(_NAME)
    pid: Mapped[int] = mapped_column(Integer)
    slot: Mapped[str] = mapped_column(_NAME, default="")
    study_id: Mapped[int | None] = mapped_column(Integer, index=True)
    worker_id: Mapped[str | None] = mapped_column(_UUID, unique=True)
    since: Mapped[float] = mapped_column(_DOUBLE)
    charged_at: Mapped[float] = mapped_column(_DOUBLE)
    note: Mapped[str] = mapped_column(Text, default="")
    started_at: Mapped[float] = mapped_column(_DOUBLE)
    last_seen: Mapped[float] = mapped_column(_DOUBLE)
    ended_at: Mapped[float | None] = mapped_column(_DOUBLE)


class EventRow(Base):
    """What somebody did to a study: submitted, paused, resumed, stopped or changed it.

    `actor`: a person as their machine knows them, or the name of a token. `detail`: in words.
    """

    __tablename__ = "dialin_events"
    event_id: Mapped[int] = mapped_column(Integer, primary_key=True)
    study_id: Mapped[int] = mapped_column(_study_key(), index=True)
    at: Mapped[float] = mapped_column(_DOUBLE)
    kind: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(_NAME)
    detail: Mapped[str] = mapped_column(Text, default="")


class TokenRow(Base):
    """Who may come in over the network. The token itself is on no record: `sha256` is the hex digest of it."""

    __tablename__ = "dialin_tokens"
    token_id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, unique=True)
    role: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(_DOUBLE)
    last_used_at: Mapped[float | None] = mapped_column(_DOUBLE)
    revoked_at: Mapped[float | None] = mapped_column(_DOUBLE)


def _cascade_for_everyone() -> None:
    """SQLite heeds ON DELETE CASCADE only for connections that ask, and Optuna's own do not; triggers run for all."""
    for table in Base.metadata.tables.values():
        for key in table.foreign_keys:
            trigger = DDL(  # type: ignore[no-untyped-call]
                "CREATE TRIGGER IF NOT EXISTS %(table)s_cascade AFTER DELETE ON %(parent)s BEGIN "
                "DELETE FROM %(table)s WHERE %(column)s = OLD.%(column)s; END",
                context={"parent": key.column.table.name, "column": key.column.name},
            )
            event.listen(table, "after_create", trigger.execute_if(dialect="sqlite"))


_cascade_for_everyone()
