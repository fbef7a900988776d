"""A connection is kept where the server has room, else only while it is used, and a process has few of them at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from storage_places import wait_until

from storage.brief_pool import BRIEF, LONG, REST, BriefPool
from storage.engine import make_engine
from storage.patience import away, patiently, waiting
from storage.urls import full, parse

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

MINE = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dialin' AND datname = current_database()"


def answer(engine: Engine, query: Any) -> Any:
    """Of a transaction of its own."""
    with engine.connect() as connection:
        return connection.scalar(query)


SETTINGS = ("statement_timeout", "idle_in_transaction_session_timeout")


def held(url: str) -> int:
    """How many connections to this database are open, by the server's count."""
    watcher = create_engine(full(parse(url)))
    try:
        with watcher.connect() as connection:
            return int(connection.scalar(text(MINE)) or 0)
    finally:
        watcher.dispose()


def test_where_there_is_room_all_transactions_share_a_connection(postgres_url: str) -> None:
    engine = make_engine(parse(postgres_url))
    pids = {answer(engine, select(func.pg_backend_pid())) for _ in range(20)}
    assert len(pids) == 1
    assert held(postgres_url) == 1
    with engine.connect() as connection:
        assert connection.connection._connection_record.info[REST] == LONG


def test_of_a_crowded_server_a_process_holds_none_between_two_transactions(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.engine.ROOM", 0.0)
    engine = make_engine(parse(postgres_url))
    with engine.connect() as connection:
        assert connection.scalar(select(1)) == 1
        assert held(postgres_url) == 1
    wait_until(lambda: held(postgres_url) == 0)


def test_whether_there_is_room_is_asked_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(parse(postgres_url))
    answer(engine, select(1))
    monkeypatch.setattr("storage.engine.ROOM", 0.0)
    monkeypatch.setattr(engine.pool, "_recycle", 0.0)
    answer(engine, select(1))
    wait_until(lambda: held(postgres_url) == 0)


def test_what_rests_for_long_does_not_keep_what_may_not_from_being_closed(postgres_url: str) -> None:
    engine = make_engine(parse(postgres_url))
    with engine.connect() as kept, engine.connect() as brief:
        for connection, seconds in ((kept, LONG), (brief, BRIEF)):
            connection.connection._connection_record.info[REST] = seconds
        kept.close()
        brief.close()
    wait_until(lambda: held(postgres_url) == 1)


def test_threads_beyond_the_limit_wait_for_their_turn(postgres_url: str) -> None:
    engine = create_engine(full(parse(postgres_url)), poolclass=BriefPool, connect_args={"application_name": "dialin"})
    most, there = 0, threading.Lock()

    def ask(_number: int) -> None:
        nonlocal most
        with engine.connect() as connection:
            now = connection.scalar(text(MINE))
            with there:
                most = max(most, now or 0)
            time.sleep(0.01)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(36)))
    assert 1 < most <= 4
    engine.dispose()


def test_a_connection_is_prepared_beside_what_a_persons_environment_says(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=7777")
    engine = make_engine(parse(postgres_url))
    with engine.connect() as connection:
        said = [connection.scalar(text(f"SHOW {name}")) for name in SETTINGS]
        connection.rollback()
        assert said == ["7777ms", "20s"]
        assert connection.scalar(text(f"SHOW {SETTINGS[1]}")) == "20s", "not for one transaction alone"
    engine.dispose()


def test_an_engine_that_is_disposed_of_closes_what_is_idle(postgres_url: str) -> None:
    engine = make_engine(parse(postgres_url))
    with engine.connect() as connection:
        connection.scalar(select(1))
    engine.dispose()
    wait_until(lambda: held(postgres_url) == 0)
    with engine.connect() as connection:
        assert connection.scalar(select(1)) == 1, "it opens new ones"


def test_a_server_whose_connections_are_all_taken_is_asked_again(postgres_url: str) -> None:
    owner = create_engine(full(parse(postgres_url)), isolation_level="AUTOCOMMIT")
    engine = make_engine(parse(postgres_url))
    with owner.connect() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        role = connection.scalar(text("SELECT current_user"))
        connection.execute(text("CREATE ROLE lodger LOGIN PASSWORD 'l' CONNECTION LIMIT 1"))
        connection.execute(text(f'GRANT CONNECT ON DATABASE "{name}" TO lodger'))
    assert role != "lodger"
    url = parse(postgres_url).set(username="lodger", password="l")
    engine, other = make_engine(url), make_engine(url)
    try:
        with engine.connect():
            with pytest.raises(DBAPIError) as refused:
                other.connect()
            assert away(refused.value)
            timer = threading.Timer(0.3, engine.dispose)
        timer.start()
        with waiting(20):
            patiently(lambda: other.connect().close())
    finally:
        for one in (engine, other):
            one.dispose()
        with owner.connect() as connection:
            connection.execute(text(f'REVOKE ALL ON DATABASE "{name}" FROM lodger'))
            connection.execute(text("DROP ROLE lodger"))
        owner.dispose()
