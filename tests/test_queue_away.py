"""The database goes away while a worker of the queue is between two trials or studies, and it goes on after that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer
from sqlalchemy import update
from storage_places import a_study, optuna_study, worker_on
from studies import SLOW, TINY, rows, value, wait_until

from search import keeper, outbox, solo, worker
from search.devices import Slot, SlotPlan
from search.place import Place
from search.preflight import Placement
from search.queue_worker import QueueWorker
from search.told import Told
from storage import patience, queue, steering, workers
from storage.patience import DatabaseAway
from storage.shared import SharedStorage, open_storage
from storage.tables import LeaseRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

OWNERS = "SELECT generation, ending FROM dialin_owners WHERE trial_id = (SELECT min(trial_id) FROM trials)"
SETTLED = "SELECT count(*) FROM dialin_trials WHERE outcome = 'complete'"


class Blinking:
    """A server that is killed, and started again when somebody has asked it in vain."""

    def __init__(self, server: PostgresServer) -> None:
        self._server, self._asked, self.back = server, threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def blink(self) -> None:
        self._asked.clear()
        self._server.crash()
        self._threads.append(threading.Thread(target=self._start_again))
        self._threads[-1].start()

    def asked_in_vain(self) -> None:
        self._asked.set()

    def _start_again(self) -> None:
        assert self._asked.wait(60)
        self._server.start_again()
        self.back.set()

    def end(self) -> None:
        self._asked.set()
        for thread in self._threads:
            thread.join()
        self._server.start_again()


@pytest.fixture
def blinking(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blinking]:
    blinking, wait = Blinking(postgres_server), patience.Patience.wait

    def noted(self: patience.Patience, error: BaseException) -> None:
        blinking.asked_in_vain()
        wait(self, error)

    monkeypatch.setattr(patience.Patience, "wait", noted)
    yield blinking
    blinking.end()


@pytest.fixture
def serving(postgres_url: str, tmp_path: Path) -> QueueWorker:
    place = Place(postgres_url, tmp_path / "files", None, Placement(1, "cpu"))
    place.make_folders()
    return QueueWorker(place, [str(SLOW), str(TINY)], open_storage(postgres_url), Told(write=lambda _line: None), 0.0)


def blinks_first(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, blinking: Blinking) -> None:
    """The server goes away when this function is called for the first time."""
    whole, calls = getattr(owner, name), iter([blinking.blink])

    def first(*args: Any, **kwargs: Any) -> Any:
        next(calls, lambda: None)()
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, first)


def test_a_trial_of_a_paused_study_is_handed_back_when_it_is_there_again(
    serving: QueueWorker, postgres_url: str, blinking: Blinking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends has seconds for that; this worker does not end."""
    storage = open_storage(postgres_url)
    study = a_study(storage, SLOW, epochs=40)
    for module in (worker, outbox):
        monkeypatch.setattr(module, "HAND_BACK_SECONDS", 0.0)
    blinks_first(monkeypatch, SharedStorage, "hand_back", blinking)

    def pause() -> None:
        wait_until(lambda: value(postgres_url, "SELECT count(*) FROM dialin_epochs"), "an epoch")
        steering.pause(storage, study.study_id, "bo")

    person = threading.Thread(target=pause)
    person.start()
    serving.serve()
    person.join()
    assert rows(postgres_url, OWNERS) == [(1, "handed_back")]


def test_the_place_that_it_had_in_one_study_is_free_for_the_next(
    serving: QueueWorker, postgres_url: str, blinking: Blinking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU has one place, which is taken as long as whoever has it has not signed off."""
    storage = open_storage(postgres_url)
    for _ in range(2):
        a_study(storage, TINY)
    gpu = SlotPlan((Slot(("cpu",), 0, "GPU-1/0"),), 1)
    monkeypatch.setattr(solo, "plan_here", lambda _placement: gpu)
    monkeypatch.setattr(worker, "SIGN_OFF_SECONDS", 0.0)
    blinks_first(monkeypatch, workers, "end", blinking)
    serving.serve()
    assert value(postgres_url, SETTLED) == 2


def test_one_that_gives_a_database_up_does_not_wait_for_it_again(
    serving: QueueWorker,
    postgres_url: str,
    postgres_server: PostgresServer,
    blinking: Blinking,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has waited as long as anybody wants it to, and has a GPU."""
    a_study(open_storage(postgres_url), TINY, trials=2)
    monkeypatch.setenv(patience.AWAY_VARIABLE, "0.3")
    given_up: list[float | None] = []
    monkeypatch.setattr(solo, "tell_settled", lambda *_: postgres_server.crash())
    monkeypatch.setattr(worker.Worker, "_tidy_paused", lambda _self: given_up.append(patience._limit.get().seconds))
    with pytest.raises(DatabaseAway):
        serving.serve()
    assert given_up == [worker.SIGN_OFF_SECONDS]


def test_what_lost_its_lease_meanwhile_is_left_to_its_owner_for_a_moment(
    serving: QueueWorker, postgres_url: str, blinking: Blinking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who trains renews it as soon as they hear that the database is back; a worker that waited hears it as soon."""
    storage = worker_on(postgres_url)
    study = a_study(storage, TINY, trials=2)
    optuna_study(storage, study).ask()
    with storage.backend.write() as session:
        session.execute(update(LeaseRow).values(expires_at=1.0))
    monkeypatch.setattr(keeper, "RETURN_SECONDS", 3600.0)
    blinks_first(monkeypatch, queue, "take", blinking)

    def end() -> None:
        assert blinking.back.wait(60)
        wait_until(lambda: value(postgres_url, SETTLED), "the other trial")
        steering.stop(storage, study.study_id, "enough", "bo")

    person = threading.Thread(target=end)
    person.start()
    serving.serve()
    person.join()
    assert rows(postgres_url, OWNERS) == [(1, None)]
