"""Tells many trackers at once, and sees to it that none of them fails a trial or holds one up.

One that raises is left out of the rest of its trial, with one warning in that trial's log. Those that may wait for
a disk or a network do so in a thread of their own, in order: no trial waits for them, and a worker that ends only a
little.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from search.failures import first_line
from search.trackers.tracker import Batches, Ending, Point, Tracker, TrialInfo

# How long a worker that has no more to do waits for what is not written yet, and how long one that was told to end:
# a person waits for that, and whoever goes on with its trial writes what is missing.
END_SECONDS = 30.0
HURRIED_SECONDS = 1.0
LOOK_SECONDS = 0.05

_log = logging.getLogger(__name__)


class Guarded:
    """A tracker, made when the first trial starts. What it raises ends it for the trial."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self._tracker: Tracker | None = None
        self._failed = False
        self._number = 0

    def start(self, info: TrialInfo) -> None:
        """A trial starts: whatever failed in the one before is tried anew."""
        raise NotImplementedError

    def epoch(self, point: Point) -> None:
        """An epoch was recorded."""
        raise NotImplementedError

    def end(self, ending: Ending) -> None:
        """The trial ended."""
        raise NotImplementedError

    def close(self) -> None:
        """There will be no more trials."""

    def over(self, seconds: float) -> bool:
        """Whether everything is told; waits so many seconds at most."""
        return True

    def _start(self, info: TrialInfo) -> None:
        self._failed, self._number = False, info.number
        self._try(lambda tracker: tracker.start(info))

    def _end(self, ending: Ending) -> None:
        self._try(lambda tracker: tracker.end(ending))
        self._failed = False

    def _try(self, tell: Callable[[Tracker], None]) -> None:
        if self._failed:
            return
        try:
            if self._tracker is None:
                self._tracker = self._make()
            tell(self._tracker)
        except Exception as error:
            self._failed = True
            reason = ": ".join(filter(None, (type(error).__name__, first_line(error))))
            _log.warning("%s hears no more of trial %d: %s", self.name, self._number, reason)


class Direct(Guarded):
    """Told in the worker's own thread; also of the end of a trial that never started."""

    def start(self, info: TrialInfo) -> None:
        self._start(info)

    def epoch(self, point: Point) -> None:
        self._try(lambda tracker: tracker.epoch(point))

    def end(self, ending: Ending) -> None:
        self._end(ending)


class Background(Guarded):
    """Told in a thread of its own, in order."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        super().__init__(name, make)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._started = False

    def start(self, info: TrialInfo) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        self._started = True
        self._calls.put(lambda: self._start(info))

    def epoch(self, point: Point) -> None:
        self._calls.put(lambda: self._try(lambda tracker: tracker.epoch(point)))

    def end(self, ending: Ending) -> None:
        if self._started:
            self._started = False
            self._calls.put(lambda: self._end(ending))

    def close(self) -> None:
        self._calls.put(None)

    def over(self, seconds: float) -> bool:
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class Trackers:
    """All trackers of one worker, which calls `start`, `epoch` and `end` for each trial, and `close` at last.

    None of them raises anything that a tracker raised. Without `guarded` nobody is told anything.
    """

    def __init__(self, guarded: Sequence[Guarded] = ()) -> None:
        self._guarded = tuple(guarded)

    def start(self, info: TrialInfo) -> None:
        """A trial starts or goes on."""
        for one in self._guarded:
            one.start(info)

    def epoch(self, epoch: int, metrics: Mapping[str, float], seconds: float = 0.0) -> None:
        """An epoch (from 1) was recorded, which took so many seconds."""
        point = Point(epoch, dict(metrics), seconds, time.time())
        for one in self._guarded:
            one.epoch(point)

    def end(
        self,
        outcome: str,
        value: float | None = None,
        *,
        best_epoch: int | None = None,
        reason: str = "",
        kept: bool = False,
        predict: Batches | None = None,
    ) -> None:
        """The trial ended, or is handed back (`HANDED_BACK`): see `Ending`."""
        ending = Ending(outcome, value, best_epoch, reason, kept, predict)
        for one in self._guarded:
            one.end(ending)

    def close(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Let the threads tell what they know and end; `hurried`, which may turn true meanwhile, waits less for them.

        One that takes longer is left behind: the process ends without it.
        """
        for one in self._guarded:
            one.close()
        begun = time.monotonic()
        waiting = list(self._guarded)
        while waiting and time.monotonic() - begun <= (HURRIED_SECONDS if hurried() else END_SECONDS):
            waiting = [one for one in waiting if not one.over(LOOK_SECONDS)]
        for one in waiting:
            _log.warning("%s is slow: ending without waiting for it", one.name)
