"""Epochs that cannot be written while the database is away: kept in order, written once it is back, never by two.

For those that are held, to share a transaction, see test_held_epochs.py.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from postgres_server import PostgresServer
from sqlalchemy import select
from storage_places import an_epoch, connections_closed, make_study, optuna_study, rows, wait_until, worker_on

from search.interrupt import Interrupt
from search.outbox import Outbox
from search.reporting import Interrupted
from storage import engine
from storage.claims import Checkpoint, Lease, LeaseLost
from storage.patience import DatabaseAway
from storage.shared import SharedStorage
from storage.tables import CheckpointRow, EpochRow, StudyRow, StudyState

pytestmark = pytest.mark.usefixtures("storage_test")
pytest_plugins = ("storage_fixtures",)


def claimed(url: str) -> tuple[SharedStorage, Lease]:
    storage = worker_on(url)
    trial = optuna_study(storage, make_study(storage, trials=1)).ask()
    return storage, storage.lease_of(trial)


def recorded(storage: SharedStorage) -> list[int]:
    with storage.backend.read() as session:
        return list(session.scalars(select(EpochRow.epoch).order_by(EpochRow.ended_at)))


@contextmanager
def held(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """The file is locked by another program for longer than a writer waits in SQLite itself."""
    monkeypatch.setattr(engine, "SQLITE_BUSY_SECONDS", 0.1)
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        yield holder
    finally:
        holder.close()


@pytest.fixture
def crashed(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that a test may kill; it runs again afterwards."""
    yield postgres_server
    postgres_server.start_again()


def test_what_is_not_held_is_recorded_at_once_while_the_database_answers(storage_url: str) -> None:
    storage, lease = claimed(storage_url)
    outbox = Outbox(storage, lease, Interrupt())
    assert outbox.record(an_epoch(1)) is StudyState.RUNNING
    assert outbox.record(an_epoch(2), Checkpoint(2, "state-2", "0" * 64)) is StudyState.RUNNING
    assert outbox.record(an_epoch(3), at_once=True) is StudyState.RUNNING
    assert not outbox.behind
    assert recorded(storage) == [1, 2, 3]


def test_training_goes_on_without_the_server_and_everything_is_on_record_in_order_when_it_is_back(
    postgres_url: str, crashed: PostgresServer
) -> None:
    storage, lease = claimed(postgres_url)
    outbox = Outbox(storage, lease, Interrupt())
    outbox.record(an_epoch(1))
    crashed.crash()
    assert outbox.record(an_epoch(2), Checkpoint(2, "state-2", "0" * 64)) is None
    assert [outbox.record(an_epoch(number)) for number in (3, 4, 5)] == [None] * 3
    assert outbox.behind
    crashed.start_again()
    outbox.flush()
    assert recorded(storage) == [1, 2, 3, 4, 5]
    assert [row.path for row in rows(storage, CheckpointRow)] == ["state-2"]
    assert [row.spent_seconds for row in rows(storage, StudyRow)] == [5 * 0.25]
    wait_until(lambda: not outbox.behind)
    assert outbox.record(an_epoch(6), at_once=True) is StudyState.RUNNING


def test_a_trial_adopted_during_the_outage_takes_nothing_more_from_its_owner_before(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(sqlite_url, monkeypatch) as adopter:
        storage, lease = claimed(sqlite_url)
        interrupt = Interrupt()
        outbox = Outbox(storage, lease, interrupt)
        outbox.record(an_epoch(1))
        adopter.execute("BEGIN IMMEDIATE")
        assert outbox.record(an_epoch(2), at_once=True) is None
        adopter.execute("UPDATE dialin_leases SET mandate = mandate + 1, worker_id = 'another'")
        adopter.execute("COMMIT")
        with pytest.raises(LeaseLost):
            outbox.flush()
    assert interrupt.lost
    assert interrupt.overdue
    with pytest.raises(LeaseLost):
        outbox.record(an_epoch(3))
    assert recorded(storage) == [1]


def test_an_epoch_beyond_the_budget_of_the_study_hands_its_trial_back(sqlite_url: str) -> None:
    storage = worker_on(sqlite_url)
    study = make_study(storage, trials=1, budget_epochs=1)
    lease = storage.lease_of(optuna_study(storage, study).ask())
    interrupt = Interrupt()
    outbox = Outbox(storage, lease, interrupt)
    assert outbox.record(an_epoch(1)) is StudyState.STOPPED
    with pytest.raises(Interrupted):
        outbox.record(an_epoch(2))
    assert interrupt.requested
    assert "budget of 1 epoch" in interrupt.reason
    with pytest.raises(Interrupted):
        outbox.flush()
    assert recorded(storage) == [1]


def test_after_the_limit_training_is_told_to_end(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALIN_AWAY_SECONDS", "0.5")
    with held(sqlite_url, monkeypatch) as holder:
        storage, lease = claimed(sqlite_url)
        interrupt = Interrupt()
        outbox = Outbox(storage, lease, interrupt)
        holder.execute("BEGIN IMMEDIATE")
        assert outbox.record(an_epoch(1)) is None
        wait_until(lambda: interrupt.requested)
        with pytest.raises(DatabaseAway, match="the database has not answered for"):
            outbox.flush()
        with pytest.raises(DatabaseAway):
            outbox.record(an_epoch(2))


def test_a_worker_that_is_asked_to_end_does_not_wait_for_the_limit(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.outbox.HAND_BACK_SECONDS", 0.1)
    with held(sqlite_url, monkeypatch) as holder:
        storage, lease = claimed(sqlite_url)
        interrupt = Interrupt()
        outbox = Outbox(storage, lease, interrupt)
        holder.execute("BEGIN IMMEDIATE")
        outbox.record(an_epoch(1))
        asking = threading.Timer(0.3, interrupt.request, ("SIGTERM",))
        asking.start()
        with pytest.raises(DatabaseAway, match="1 epoch is not on record"):
            outbox.flush()
        asking.join()
        wait_until(lambda: "outbox" not in {thread.name for thread in threading.enumerate()})
        holder.execute("COMMIT")
    with connections_closed():
        assert recorded(worker_on(sqlite_url)) == []
