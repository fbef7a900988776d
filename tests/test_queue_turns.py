"""One worker of the queue decides at a time: how long the others wait for that, and who does not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from storage_places import make_study, newcomer, worker_on

from storage import queue
from storage.patience import waiting
from storage.shared import SharedStorage

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

PLENTY = 1000


@pytest.fixture
def decides(postgres_url: str) -> Iterator[SharedStorage]:
    """Of a database with an open study, while another worker decides, which takes for ever."""
    storage = worker_on(postgres_url)
    make_study(storage, trials=PLENTY)
    with storage.backend.write() as another:
        queue.lock(another)
        yield worker_on(postgres_url)


def in_time(act: Callable[[], object]) -> object:
    """What it gives, where it does not wait for ever."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(act).result(60)


def test_a_worker_that_is_to_end_waits_for_no_turn(decides: SharedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "TURN_SECONDS", 3600.0)
    monkeypatch.setattr(queue, "LAST_TURN_SECONDS", 0.0)
    me = newcomer(decides)

    def take() -> int | None:
        with waiting(stop=lambda: True):
            return queue.take(decides, me)

    assert in_time(take) is None
    in_time(lambda: queue.end(decides, me))


def test_whoever_keeps_leases_alive_waits_for_no_turn(decides: SharedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_is_wanted", lambda *_: (1, True))
    monkeypatch.setattr(queue, "TURN_SECONDS", 3600.0)
    assert in_time(lambda: queue.wanted_elsewhere(decides, newcomer(decides))) is False


def test_waiting_for_its_turn_it_draws_nothing_that_training_would_have_drawn(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attendant waits for it in the middle of a trial, which is to come out the same again."""
    storage = worker_on(postgres_url)
    make_study(storage, trials=PLENTY)
    me, before = newcomer(storage), random.getstate()
    monkeypatch.setattr(queue, "TURN_SECONDS", 0.2)
    with storage.backend.write() as another:
        queue.lock(another)
        assert queue.take(storage, me) is None
    assert random.getstate() == before
    assert queue.take(storage, me) is not None
