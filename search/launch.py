"""Following a search from its start to its end; `dialin run` and `dialin resume` are thin over it.

The parent process imports no torch: it reads the database and shows what it finds.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from rich.console import Console

from search import children
from search.crew import Crew, Death
from search.feed import Feed
from search.live import View
from search.restarts import STARTS
from search.views import make_view
from storage import queries, studies
from storage.errors import DialinError, UsageError
from storage.patience import DATABASE_ERRORS, Outage, away, away_seconds, waiting
from storage.queries import StudyStatus
from storage.shared import SharedStorage
from storage.studies import StudyRecord

POLL_SECONDS = 0.25
# A worker that has not given its trial back by then (one batch may take minutes) is killed; the trial is adopted.
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Ending:
    """How following a study ended. `signal`: what the person or the system ended it with, if any."""

    status: StudyStatus
    signal: int | None = None

    @property
    def interrupted(self) -> bool:
        """Whether it was ended from outside."""
        return self.signal is not None


class _Interrupts:
    """Counts the person's Ctrl-C."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number


def follow(console: Console, storage: SharedStorage, study: StudyRecord, start: Callable[[], Crew]) -> Ending:
    """Start the workers and show the study until they have all ended.

    The first Ctrl-C (or SIGTERM) gives the running trials back, a second one kills the workers. Python hears signals on
    its main thread only: elsewhere they are left alone.

    Raises:
        DialinError: the study was deleted meanwhile.
    """
    with _counting_interrupts() as interrupts:
        feed = Feed(storage, study)  # before the workers: what they end is new
        crew = start()
        view = make_view(console, crew.slots)
        with ExitStack() as last:  # the last of these first, and each whatever the others do
            last.callback(view.close)
            last.callback(crew.close)
            last.callback(_bury, crew)
            last.callback(crew.kill)
            _Watch(feed, crew, view, interrupts).until_all_have_ended()
    try:
        with waiting(PATIENCE_SECONDS, tell=lambda _line: None):
            status = queries.status(storage, studies.find(storage, study.name))
    except UsageError:
        raise DialinError(f"study {study.name!r} was deleted or renamed while it ran") from None
    return Ending(status, interrupts.first)


class _Watch:
    """Follows a study while its workers run: shows what is new, and sees to workers that have died."""

    def __init__(
        self,
        feed: Feed,
        crew: Crew,
        view: View,
        interrupts: _Interrupts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed, self._crew, self._view, self._interrupts, self._clock = feed, crew, view, interrupts, clock
        self._asked: float | None = None
        self._next_look = clock() + POLL_SECONDS  # workers that have just been started have done nothing yet
        self._answered = False  # the database, when it was asked last
        self._outage = Outage(view.note)
        self._may_come_back = True

    def until_all_have_ended(self) -> None:
        """Redraw a few times a second, more seldom where a look takes long. A database that is away is asked again."""
        while True:
            over = not self._crew.alive and not self._crew.unheard
            try:
                if over or self._is_due:
                    self._answered = self._look()
                    self._next_look = self._clock() + self._feed.rest(POLL_SECONDS)
                if self._answered:
                    self._start_again()
                if over or (not self._answered and not self._crew.alive and self._gives_up):
                    return
                self._heed_interrupts()
            except BrokenPipeError:  # whoever read the lines has gone (`| head`): trials are given back in silence
                self._interrupts(signal.SIGPIPE, None)
            self._crew.wait(POLL_SECONDS)

    @property
    def _is_due(self) -> bool:
        """Whether to look now: after a while, when a worker has ended, and when the person waits for the end."""
        return self._crew.unheard or bool(self._interrupts.count) or self._clock() >= self._next_look

    def _look(self) -> bool:
        """Ask the database, and say so once where it does not answer; whether it did."""
        try:
            with waiting(0):
                status = self._feed.show(self._view)
                if status is None or status.over:
                    self._crew.no_more()
                for death in self._crew.deaths():
                    self._view.note(_obituary(death))
        except DATABASE_ERRORS as error:
            self._may_come_back = away(error)
            self._outage.not_answered(error)
            return False
        self._outage.answered()
        return True

    def _start_again(self) -> None:
        try:
            self._crew.start_again()
        except DialinError as error:
            self._view.note(f"no worker can be started again: {error}")
            self._crew.no_more()

    @property
    def _gives_up(self) -> bool:
        """Whether a database that does not answer is waited for no longer, now that no worker is left."""
        waited = self._outage.seconds or 0.0
        return bool(self._interrupts.count) or not self._may_come_back or waited >= away_seconds()

    def _heed_interrupts(self) -> None:
        if not self._interrupts.count:
            return
        self._crew.no_more()
        if self._asked is None:
            self._asked = self._clock()
            self._view.note("giving the trials back (Ctrl-C again to kill)")
        patient = self._interrupts.count == 1 and self._clock() - self._asked < PATIENCE_SECONDS
        self._crew.hand_back() if patient else self._crew.kill()


def _bury(crew: Crew) -> None:
    """What they held may be adopted at once."""
    with suppress(*DATABASE_ERRORS), waiting(0):
        [*crew.deaths()]


def _obituary(death: Death) -> str:
    """One line for a worker that has died."""
    left = "; its trial goes on elsewhere" if death.handed_back else ""
    then = f"; another starts in {death.again:.0f} s" if death.again is not None else ""
    if death.hopeless:
        then = f"; given up: it died at its start {STARTS} times in a row (`dialin logs --workers` has more)"
    return f"worker {death.slot.name} failed: {death.reason}{left}{then}"


@contextmanager
def _counting_interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM) if children.on_main_thread() else ()
    before = {number: signal.signal(number, interrupts) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
