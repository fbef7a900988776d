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
    """It ends when it is asked to hand back. `waited` is called instead of waiting, with how often that was before."""

    slots: Mapping[int, str] = {}

    def __init__(self, waited: Callable[[int], None]) -> None:
        self.alive, self.unheard, self.asked = True, False, 0
        self._waited, self._waits = waited, 0

    def deaths(self) -> Iterator[Death]:
        self.unheard = False
        return iter(())

    def start_again(self) -> None:
        pass

    def no_more(self) -> None:
        pass

    def hand_back(self) -> None:
        if self.alive:
            self.alive, self.unheard, self.asked = False, True, self.asked + 1

    def kill(self) -> None:
        raise AssertionError("nothing took long")

    def wait(self, seconds: float) -> None:
        self._waited(self._waits)
        self._waits += 1

    def close(self) -> None:
        pass


class Shown(Told):
    """A view that may be told other things too."""

    def note(self, text: str) -> None:
        pass


def test_where_a_look_takes_long_there_are_few_and_ctrl_c_is_heeded_at_once(sqlite_url: str) -> None:
    worker, interrupts = worker_on(sqlite_url), _Interrupts()
    looks: list[View] = []
    at_the_interrupt: list[View] = []

    class Slow(Feed):
        def show(self, view: View) -> StudyStatus | None:
            looks.append(view)
            return super().show(view)

        def rest(self, least: float) -> float:
            return 3600.0

    def press(waits: int) -> None:
        if waits == 9:
            at_the_interrupt.extend(looks)
            interrupts(signal.SIGINT, None)

    crew = OneWorker(press)
    _Watch(Slow(worker, make_study(worker)), crew, Shown(), interrupts).until_all_have_ended()
    assert len(at_the_interrupt) == 1
    assert crew.asked == 1
    assert len(looks) > 1, "its end was seen"
