"""A thread beside a worker of the queue: signs of life, and whether the worker is wanted at another study.

`search.queue_worker` starts it for the life of the process: it lives through what takes long between two studies, such
as loading a data set. While a study is trained, `search.keeper` makes its rounds with its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from search.interrupt import Interrupt
from storage import queue
from storage.patience import DATABASE_ERRORS, Outage, waiting
from storage.shared import SharedStorage

# How often it asks whether the worker is wanted elsewhere: so soon a new study or a higher priority takes effect. Where
# there are many workers each asks more seldom, so that together they ask so many times a second.
LOOK_SECONDS, SELDOM_SECONDS = 2.0, 10.0
ALL_TOGETHER = 20.0
# A sixth of a lease, as for the leases of trials.
SIGN_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Attendant:
    """`note` and `slot` are shown to people beside the worker. Use as a context manager."""

    def __init__(self, storage: SharedStorage, me: str, without: Callable[[], Collection[int]]) -> None:
        """`without()`: ids of studies that the worker cannot serve."""
        self._storage, self._me, self._without = storage, me, without
        self._stint: tuple[Interrupt, int] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="attendant", daemon=True)
        self._outage = Outage(lambda line: _log.warning("%s", line))
        self._looked: float | None = None
        self._signed: float | None = None
        self._crowd = 1
        self.note = self.slot = ""

    def __enter__(self) -> Attendant:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.set()
        self._thread.join()

    @contextmanager
    def at(self, stint: Interrupt, study_id: int) -> Iterator[None]:
        """In this block the worker is at this study, and `stint` is asked to end that."""
        self._stint = stint, study_id
        try:
            yield
        finally:
            self._stint = None

    @property
    def pause(self) -> float:
        """Seconds between two rounds."""
        return min(max(LOOK_SECONDS, self._crowd / ALL_TOGETHER), SELDOM_SECONDS)

    def look(self) -> float:
        """One round; whoever asks the database anyway has it made, so that it takes no connection more.

        Seconds until the next in return. Raises DATABASE_ERRORS: the database does not answer.
        """
        self._looked = time.monotonic()
        self._round()
        return self.pause

    def _round(self) -> None:
        if self._signed is None or time.monotonic() - self._signed >= SIGN_SECONDS:
            queue.seen(self._storage, self._me, self.note, self.slot)
            self._crowd = queue.crowd(self._storage)
            self._signed = time.monotonic()
        self._ask()

    def _attend(self) -> None:
        with waiting(0):  # it asks again by itself
            while not self._end.wait(self.pause):
                if self._looked is not None and time.monotonic() - self._looked < 1.5 * self.pause:
                    continue  # the keeper of a trial's lease makes the rounds
                try:
                    self._round()
                    self._outage.answered()
                except DATABASE_ERRORS as error:
                    self._outage.not_answered(error)

    def _ask(self) -> None:
        if self._stint is None:
            return
        stint, study_id = self._stint
        if not stint.requested and queue.wanted_elsewhere(self._storage, self._me, self._without(), study_id):
            stint.request("another study has too few workers")
