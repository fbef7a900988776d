"""Workers announce themselves and take a place on a GPU; called by `search.worker` and by whoever sees one die."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from storage import concurrency, leases, living
from storage.claims import Lease
from storage.engine import database_now
from storage.errors import DialinError, UsageError
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import LeaseRow, OwnerEnding, OwnerRow, StudyRow, WorkerRow


class NoFreeSlot(DialinError):
    """Every GPU that this worker may use is taken by another worker."""


@dataclass(frozen=True)
class Place:
    """Where a worker trains. `key` is unique in the world (a GPU's UUID and a place on it), None on a CPU."""

    name: str
    key: str | None


def register(storage: SharedStorage, worker_id: str, study_id: int, places: Sequence[Place]) -> Place:
    """Announce a worker and take the first of `places` that no living worker holds.

    A worker not seen for a lease's length is dead, and its place free.

    Raises:
        NoFreeSlot: all are taken.
        UsageError: the study is gone.
    """
    for place in places:
        try:
            storage.backend.write_once(partial(_announce, worker_id, study_id, place))
        except IntegrityError:
            if not _taken(storage, place):
                raise
            continue
        return place
    raise NoFreeSlot(f"every place is taken by another worker: {', '.join(p.name for p in places)}")


def _announce(worker_id: str, study_id: int, place: Place, session: Session, again: bool) -> None:
    _wait_for_turn(session, study_id)
    announced = select(WorkerRow.worker_id).where(WorkerRow.worker_id == worker_id)
    if again and session.scalar(announced) is not None:
        return  # the answer to its COMMIT was lost
    session.execute(update(WorkerRow).where(WorkerRow.slot_key == place.key, ~living.alive()).values(slot_key=None))
    session.execute(
        insert(WorkerRow).values(
            worker_id=worker_id,
            study_id=study_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            slot=place.name,
            slot_key=place.key,
            started_at=database_now(),
            last_seen=database_now(),
        )
    )


def _wait_for_turn(session: Session, study_id: int) -> None:
    """One after another, so that `ordinal` never gives two workers one number.

    The row is Optuna's, which claims lock first too: otherwise they and we wait for each other.
    """
    study = models.StudyModel
    if session.scalar(select(study.study_id).where(study.study_id == study_id).with_for_update()) is None:
        raise UsageError("the study is gone: somebody deleted it")


@patient
def ordinal(storage: SharedStorage, worker_id: str) -> int:
    """How many workers the study had before this one, ever: what tells their samplers apart, also after a resume."""
    me = aliased(WorkerRow)
    earlier = or_(
        WorkerRow.started_at < me.started_at,
        and_(WorkerRow.started_at == me.started_at, WorkerRow.worker_id < me.worker_id),
    )
    query = select(func.count()).select_from(WorkerRow).join(me, me.study_id == WorkerRow.study_id)
    with storage.backend.read() as session:
        return session.scalar(query.where(me.worker_id == worker_id, earlier)) or 0


@patient
def _taken(storage: SharedStorage, place: Place) -> bool:
    with storage.backend.read() as session:
        return session.scalar(select(WorkerRow.worker_id).where(WorkerRow.slot_key == place.key)) is not None


def end(storage: SharedStorage, worker_id: str, how: OwnerEnding = OwnerEnding.DIED) -> int:
    """The worker has ended or was seen dead: its place is free and its trials may be adopted; their number.

    `how`: of what it died, if it still held any.
    """

    def attempt(session: Session, _again: bool) -> int:
        left = leases.bury(session, worker_id, how)  # first: whoever deletes the study comes to the workers last
        session.execute(
            update(WorkerRow).where(WorkerRow.worker_id == worker_id).values(ended_at=database_now(), slot_key=None)
        )
        return left

    return storage.backend.write_once(attempt)


@dataclass(frozen=True)
class Work:
    """What a worker has done: trials that it claimed or adopted, and those of them that it settled."""

    claimed: int
    settled: int


@patient
def work_of(storage: SharedStorage, worker_id: str) -> Work:
    """What a worker has done in its life."""
    query = select(func.count(), func.count().filter(OwnerRow.ending == OwnerEnding.SETTLED))
    with storage.backend.read() as session:
        claimed, settled = session.execute(query.where(OwnerRow.worker_id == worker_id)).one()
    return Work(claimed, settled)


@patient
def living_here(storage: SharedStorage) -> int:
    """How many workers on this host have given a sign of life within a lease's length."""
    with storage.backend.read() as session:
        return living.count(session, WorkerRow.host == socket.gethostname())


@patient
def is_one_too_many(storage: SharedStorage, lease: Lease) -> bool:
    """Whether the study trains as many trials at once as it may without this one: the limit was lowered.

    Those stay that began first.
    """
    before = concurrency.trained(lease.study_id, LeaseRow.trial_id < lease.trial_id)
    query = select(before >= StudyRow.concurrency).where(StudyRow.study_id == lease.study_id)
    with storage.backend.read() as session:
        return bool(session.scalar(query))
