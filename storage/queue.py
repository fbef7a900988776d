"""A worker of the queue: which study it serves now, decided one worker after another under one lock.

Called by `search.queue_worker`, and by whatever opens a study or changes its priority. The rules are in
`storage.shares`. The lock is the row of the schema's version, which nobody else locks but an upgrade; after it only our
studies and the queue's own rows are written, so nobody waits for anybody in a circle.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, case, func, insert, or_, select, update
from sqlalchemy.orm import Session

from storage.contenders import OpenStudy, open_studies
from storage.engine import database_now
from storage.living import alive
from storage.patience import patient, pause
from storage.shared import SharedStorage
from storage.shares import Contender, choose, is_wanted_elsewhere, next_study, surely
from storage.tables import QueueWorkerRow, SchemaRow, StudyRow

_Row = QueueWorkerRow
T = TypeVar("T")

# While another worker decides, one that wants to comes again after so long at most, drawn at random; a decision takes
# milliseconds. The longest doubles each time, or hundreds that begin together would keep the database busy with asking.
# It gives up for now after so many seconds; one that ends sooner, for whoever died is charged by others.
AGAIN_SECONDS, MOST_AGAIN_SECONDS = 0.1, 4.0
TURN_SECONDS, LAST_TURN_SECONDS = 20.0, 1.0
# Not Python's own generator: training draws from that one, and is reproducible.
_random = random.Random()


class _NotYet(Exception):
    """Another worker decides now."""


def announce(storage: SharedStorage, me: str) -> None:
    """A worker of the queue is there, and serves nothing yet. `me`: a UUID of its own."""

    def attempt(session: Session, again: bool) -> None:
        if again and session.scalar(select(_Row.queue_worker_id).where(_Row.queue_worker_id == me)) is not None:
            return
        now = database_now()
        host, pid = socket.gethostname(), os.getpid()
        times = {"since": now, "charged_at": now, "started_at": now, "last_seen": now}
        session.execute(insert(_Row).values(queue_worker_id=me, host=host, pid=pid, slot="", note="", **times))

    storage.backend.write_once(attempt)


def take(storage: SharedStorage, me: str, without: Collection[int] = (), may_move: bool = True) -> int | None:
    """The study that this worker serves from now on, which may be the one that it serves already; None: it waits.

    `without`: ids of studies that it cannot serve. `may_move`: whether it leaves its study for a fraction of a worker.
    """
    mine, may_take = _look(storage, me, without)
    if not may_take:
        return None

    def attempt(session: Session, _again: bool) -> int | None:
        _turn(session)
        mine = _settle_up(session, me)
        rivals = _without(open_studies(session), without)
        chosen = choose(rivals) if mine is None else next_study(rivals, mine, may_move)
        study_id = chosen.study_id if chosen is not None else None
        if study_id != mine:
            _sit(session, me, study_id)
        return study_id

    return _in_turn(storage, attempt, mine, TURN_SECONDS)


@patient
def _look(storage: SharedStorage, me: str, without: Collection[int]) -> tuple[int | None, bool]:
    """Without the lock: a worker that waits asks often, and there is seldom anything. Its study, and whether to ask."""
    with storage.backend.read() as session:
        mine = session.scalar(select(_Row.study_id).where(_Row.queue_worker_id == me))
        return mine, mine is not None or choose(_without(open_studies(session), without)) is not None


def _in_turn(storage: SharedStorage, attempt: Callable[[Session, bool], T], otherwise: T, seconds: float) -> T:
    """A transaction that wants the lock; while another has it, it holds no connection.

    `otherwise`: its turn did not come within so many seconds, or nobody waits for it any longer.
    """
    until, longest = time.monotonic() + seconds, AGAIN_SECONDS
    while True:
        try:
            return storage.backend.write_once(attempt)
        except _NotYet:
            if time.monotonic() >= until or pause(min(_random.uniform(0.0, longest), until - time.monotonic())):
                return otherwise
            longest = min(2 * longest, MOST_AGAIN_SECONDS)


def wanted_elsewhere(storage: SharedStorage, me: str, without: Collection[int] = (), serves: int | None = None) -> bool:
    """Whether this worker should give its trial back and serve another study, which counts it from now on.

    Where another worker decides now it is not waited for: who asks keeps leases alive meanwhile, and asks again.
    `serves`: the study that it trains. One that is counted elsewhere already was told so in vain: the answer to that
    COMMIT was lost.
    """
    mine, is_wanted = _is_wanted(storage, me, without)
    if serves is not None and mine not in (None, serves):
        return True
    return is_wanted and _in_turn(storage, lambda session, _again: _move(session, me, without), False, 0.0)


@patient
def _is_wanted(storage: SharedStorage, me: str, without: Collection[int]) -> tuple[int | None, bool]:
    with storage.backend.read() as session:
        mine = session.scalar(select(_Row.study_id).where(_Row.queue_worker_id == me))
        return mine, mine is not None and is_wanted_elsewhere(_without(open_studies(session), without), mine)


def _move(session: Session, me: str, without: Collection[int]) -> bool:
    """Another may have been faster: it is asked again under the lock."""
    _turn(session)
    mine = _settle_up(session, me)
    rivals = _without(open_studies(session), without)
    if mine is None or not is_wanted_elsewhere(rivals, mine):
        return False
    chosen = next_study(surely(rivals, mine), mine, may_move=True)
    assert chosen is not None, "another study has less than its share"
    _sit(session, me, chosen.study_id)
    return True


@patient
def open_now(storage: SharedStorage) -> list[OpenStudy]:
    """The studies that have work for a worker, the oldest first."""
    with storage.backend.read() as session:
        return open_studies(session)


@patient
def begin(storage: SharedStorage, me: str, worker_id: str) -> None:
    """The worker begins at its study, where it goes by this identifier."""
    _update(storage, me, worker_id=worker_id)


@patient
def seen(storage: SharedStorage, me: str, note: str = "", slot: str | None = None) -> None:
    """A sign of life; also of one that was taken for dead: the time in which it was, frozen, nobody is charged with."""
    where = {} if slot is None else {"slot": slot}
    frozen = case((alive(_Row), 0.0), else_=database_now() - _Row.last_seen)
    charged_at = _Row.charged_at + frozen
    _update(storage, me, charged_at=charged_at, last_seen=database_now(), ended_at=None, note=note, **where)


@patient
def crowd(storage: SharedStorage) -> int:
    """How many workers serve the queue now."""
    with storage.backend.read() as session:
        return session.scalar(select(func.count()).select_from(_Row).where(alive(_Row))) or 0


def end(storage: SharedStorage, me: str) -> None:
    """The worker ends; what it has trained is charged to its study. Hardly waited for: one that is silent has ended."""

    def attempt(session: Session, _again: bool) -> None:
        _turn(session)
        _settle_up(session, me)
        _sit(session, me, None)
        session.execute(update(_Row).where(_Row.queue_worker_id == me).values(ended_at=database_now()))

    _in_turn(storage, attempt, None, LAST_TURN_SECONDS)


# -- Inside others' transactions


def enter(session: Session, study_id: int) -> None:
    """A study opens: it begins level with those that are open, however little time it has had, and keeps what is more.

    Without this one that was paused for a week would get every worker until it has caught up. It is level with those
    that it competes with: one that nobody here can serve, or that has all the workers it may have, falls behind for
    good, and whoever began level with that one would starve the others.
    """
    others = [one for one in open_studies(session) if one.study_id != study_id]
    rivals = [one.virtual_time for one in others if one.served and one.workers < one.room]
    study = StudyRow
    if rivals:
        level = min(rivals)
    elif others:
        level = max(one.virtual_time for one in others)
    else:
        level = session.scalar(select(func.max(study.virtual_time)).where(study.study_id != study_id)) or 0.0
    behind = (study.study_id == study_id) & (study.virtual_time < level)
    session.execute(update(study).where(behind).values(virtual_time=level))


def settle_accounts(session: Session, study_id: int) -> None:
    """Charge a study with what its workers have spent so far, before its priority changes. Wants `lock` first."""
    mine = (_Row.study_id == study_id) & alive(_Row)
    _charge(session, mine)
    session.execute(update(_Row).where(mine).values(charged_at=database_now()))


def _update(storage: SharedStorage, me: str, **values: Any) -> None:
    with storage.backend.write() as session:
        session.execute(update(_Row).where(_Row.queue_worker_id == me).values(**values))


def lock(session: Session) -> None:
    """One worker decides at a time."""
    session.execute(select(SchemaRow.version).with_for_update())


def _turn(session: Session) -> None:
    """As `lock`, but it does not wait. Raises _NotYet."""
    if session.scalar(select(SchemaRow.version).with_for_update(skip_locked=True)) is None:
        raise _NotYet


def _sit(session: Session, me: str, study_id: int | None) -> None:
    """Serve another study from now on, where it goes by its old identifier until it has begun, or none."""
    values: dict[str, Any] = {"study_id": study_id, "since": database_now()}
    if study_id is None:
        values["worker_id"] = None
    session.execute(update(_Row).where(_Row.queue_worker_id == me).values(**values))


def _charge(session: Session, which: ColumnElement[bool]) -> dict[str, int | None]:
    """Add to each study what these workers have spent on it since they were charged last, up to their last sign.

    The study of each worker in return. One UPDATE a study: a second one would lock Optuna's study, which a claim locks
    before ours.
    """
    until = case((alive(_Row), database_now()), else_=_Row.last_seen)
    found = session.execute(select(_Row.queue_worker_id, _Row.study_id, until - _Row.charged_at).where(which)).all()
    spent: dict[int, float] = defaultdict(float)
    for _, study_id, seconds in found:
        if study_id is not None:
            spent[study_id] += max(0.0, seconds)
    study = StudyRow
    for study_id, seconds in sorted(spent.items()):
        more = study.virtual_time + seconds / study.priority
        session.execute(update(study).where(study.study_id == study_id).values(virtual_time=more))
    return {worker: study_id for worker, study_id, _ in found}


def _settle_up(session: Session, me: str) -> int | None:
    """Charge studies with what this worker has spent, and with the time of those that have died without a word.

    The study of this worker in return.
    """
    dead = _Row.ended_at.is_(None) & ~alive(_Row)
    found = _charge(session, or_(dead, _Row.queue_worker_id == me))
    if left := {*found} - {me}:  # they keep their study: one that was only frozen goes on there
        gone = update(_Row).where(_Row.queue_worker_id.in_(left))
        session.execute(gone.values(ended_at=_Row.last_seen, charged_at=_Row.last_seen))
    now = database_now()  # or its time would count as not charged yet in what is decided next
    session.execute(update(_Row).where(_Row.queue_worker_id == me).values(charged_at=now, last_seen=now, ended_at=None))
    return found.get(me)


def _without(found: Sequence[OpenStudy], ids: Collection[int]) -> list[Contender]:
    return [one for one in found if one.study_id not in ids]
