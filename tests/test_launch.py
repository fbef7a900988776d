"""Following a search: the database is asked seldom where that takes long, what happens meanwhile is heeded at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping

import pytest
from storage_places import make_study, worker_on
from test_feed import Told

from search.crew import Death
from search.feed import Feed
from search.launch import _Interrupts, _Watch
from search.live import View
from storage.queries import StudyStatus

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


class OneWorker:
    """It ends when it is asked to hand back. `waited` is called instead of waiting, with for how long."""

    slots: Mapping[int, str] = {}

    def __init__(self, waited: Callable[[float], None]) -> None:
        self.alive, self.unheard, self.asked, self.looked_after = True, False, 0, 0
        self._waited = waited

    def deaths(self) -> Iterator[Death]:
        self.unheard = False
        return iter(())

    def start_again(self) -> None:
        self.looked_after += 1

    def no_more(self) -> None:
        pass

    def hand_back(self) -> None:
        if self.alive:
            self.alive, self.unheard, self.asked = False, True, self.asked + 1

    def kill(self) -> None:
        raise AssertionError("nothing took long")

    def wait(self, seconds: float) -> None:
        self._waited(seconds)

    def close(self) -> None:
        pass


class Shown(Told):
    """A view that may be told other things too."""

    def note(self, text: str) -> None:
        pass


def test_where_a_look_takes_long_there_are_few_and_ctrl_c_is_heeded_at_once(sqlite_url: str) -> None:
    worker, interrupts, now = worker_on(sqlite_url), _Interrupts(), 0.0
    looks: list[float] = []

    class Slow(Feed):
        def show(self, view: View) -> StudyStatus | None:
            looks.append(now)
            return super().show(view)

        def rest(self, least: float) -> float:
            return 5.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds
        assert now < 20, "nobody has noticed its end"
        if now == 12:
            interrupts(signal.SIGINT, None)

    crew = OneWorker(wait)
    _Watch(Slow(worker, make_study(worker)), crew, Shown(), interrupts, clock=lambda: now).until_all_have_ended()
    assert looks[:4] == [0.25, 5.25, 10.25, 12.0]
    assert crew.asked == 1
    assert crew.looked_after > 40, "whoever died is started again in time"
