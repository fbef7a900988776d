"""What a trial leaves in the database, written in order by a thread: training does not wait for one that is away.

`search.reporter` hands its epochs in here, and waits for the rest before the trial is settled or given back. Epochs
that come fast share a transaction: a commit is milliseconds of a disk's time, and a death costs more than they do.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from search.interrupt import Interrupt
from search.reporting import Interrupted
from storage.claims import Checkpoint, Epoch, EpochsSpent, Lease, LeaseLost
from storage.limits import Remaining
from storage.patience import DatabaseAway, away_seconds, waiting
from storage.shared import SharedStorage
from storage.tables import StudyState

# How long an epoch may be held for others to share its transaction: a tenth of what a death may cost anyway
# (`search.pace`), and less than people notice who look on.
HELD_SECONDS = 0.5
# So many share one at most, which keeps SQLite's other writers waiting for some milliseconds.
MOST_TOGETHER = 100
# How long training waits for a database that says nothing, once: until it answers again nothing is waited for. Ours
# answers in milliseconds, on a machine with more workers than cores in a second or two.
ANSWER_SECONDS = 5.0
# How long the rest may take when the process is to end: it has to be gone 5 s after it was asked.
HAND_BACK_SECONDS = 2.0
# How soon a wait for the rest hears that the process is to end.
_LISTEN_SECONDS = 0.2


@dataclass(frozen=True)
class _Report:
    epoch: Epoch
    checkpoint: Checkpoint | None


class Outbox:
    """For one trial under one lease. Its methods are the training thread's."""

    def __init__(
        self, storage: SharedStorage, lease: Lease, interrupt: Interrupt, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """What keeps it from writing for good is told to `interrupt` too: the training of a long epoch ends then.

        `clock`: by which epochs are held.
        """
        self._storage = storage
        self._lease = lease
        self._interrupt = interrupt
        self._clock = clock
        self._changed = threading.Condition()
        self._reports: deque[_Report] = deque()
        self._thread: threading.Thread | None = None
        self._hurried = 0  # so many of them are to be written now
        self._behind = False
        self._failure: BaseException | None = None
        self._given_up = False
        self._wrote_at = -math.inf  # when the last transaction began: the first epoch is not held
        self._left = Remaining(StudyState.RUNNING)  # what it found the study to have left
        self._deadline = math.inf

    @property
    def behind(self) -> bool:
        """Whether the database is away, and what was handed in last is not on record."""
        return self._behind

    def record(self, epoch: Epoch, checkpoint: Checkpoint | None = None, *, at_once: bool = False) -> StudyState | None:
        """Have an epoch recorded after those before; the study's state as far as is known, None where behind.

        It may be held, for HELD_SECONDS at most, but not where it has a checkpoint, nor where it spends what the study
        has left; `at_once`: nor this one. All that were held before are on record then too.

        Raises:
            LeaseLost: the trial is another's, also when only an earlier epoch was refused.
            Interrupted: the study's budget of epochs is on record without this one, or without one before it.
            DatabaseAway: the database has not come back within the limit.
        """
        with self._changed:
            self._check()
            self._reports.append(_Report(epoch, checkpoint))
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
                self._thread.start()
            if self._behind:
                return None
            if (at_once or checkpoint is not None or self._due()) and not self._written():
                return None
            return self._left.state

    def write_held(self) -> bool:
        """Have what is held written now; whether all is on record.

        Raises:
            LeaseLost, Interrupted, DatabaseAway: as `record`.
        """
        with self._changed:
            self._check()
            return not self._reports or self._written()

    def flush(self) -> None:
        """Wait until everything is on record, a short time only where the process is to end.

        Raises:
            LeaseLost, Interrupted: as `record`.
            DatabaseAway: the database has not come back within the limit, or the short time.
        """
        end = time.monotonic() + away_seconds() + ANSWER_SECONDS
        with self._changed:
            self._hurry()
            while self._reports and self._failure is None:
                if self._interrupt.hurried:
                    end = min(end, time.monotonic() + HAND_BACK_SECONDS)
                if time.monotonic() >= end:
                    self._given_up = True
                    left = len(self._reports)
                    unrecorded = f"{left} epochs are" if left > 1 else "1 epoch is"
                    raise DatabaseAway(f"the database did not answer: {unrecorded} not on record")
                self._changed.wait(_LISTEN_SECONDS)
            self._check()

    def _check(self) -> None:
        if isinstance(self._failure, EpochsSpent):
            raise Interrupted from self._failure
        if self._failure is not None:
            raise self._failure

    def _due(self) -> bool:
        """Whether the last epoch is not to be held."""
        if self._clock() >= self._held_until():
            return True
        if len(self._reports) >= self._left.epochs:
            return True
        left = self._left.seconds
        return left < math.inf and sum(one.epoch.seconds * one.epoch.devices for one in self._reports) >= left

    def _held_until(self) -> float:
        return min(self._wrote_at + HELD_SECONDS, self._deadline)

    def _hurry(self) -> None:
        self._hurried = len(self._reports)
        self._changed.notify_all()

    def _written(self) -> bool:
        """Wait until all is written: whether it is, or else the database does not answer."""
        self._hurry()
        seconds = HAND_BACK_SECONDS if self._interrupt.hurried else ANSWER_SECONDS
        self._changed.wait_for(lambda: not self._reports or self._behind or self._failure is not None, seconds)
        self._check()
        self._behind = bool(self._reports)
        return not self._behind

    def _write(self) -> None:
        """The thread: from the first report until there is none."""
        with waiting(stop=lambda: self._given_up, tell=lambda _line: self._fall_behind()):
            while together := self._next():
                epochs = [report.epoch for report in together]
                try:
                    left = self._storage.record_epochs(self._lease, epochs, together[-1].checkpoint)
                except BaseException as error:
                    self._fail(error)
                    return
                self._wrote(together, left)

    def _next(self) -> list[_Report]:
        """Waits while all there is may be held; nothing where there is nothing left."""
        with self._changed:
            while self._reports and not self._given_up:
                held = self._held_until() - self._clock()
                if held <= 0 and not self._hurried:
                    self._hurried = len(self._reports)
                if self._hurried:
                    self._wrote_at = self._clock()
                    return self._together()
                self._changed.wait(held)
            self._thread, self._behind = None, False
            return []

    def _together(self) -> list[_Report]:
        """What goes into one transaction: up to the first checkpoint, and no epoch twice."""
        together: dict[int, _Report] = {}
        for report in self._reports:
            if report.epoch.epoch in together:
                break
            together[report.epoch.epoch] = report
            if report.checkpoint is not None or len(together) == MOST_TOGETHER:
                break
        return [*together.values()]

    def _wrote(self, together: list[_Report], left: Remaining) -> None:
        with self._changed:
            for _ in together:
                self._reports.popleft()
            self._left, self._deadline = left, self._clock() + left.until_deadline
            self._hurried = max(0, self._hurried - len(together))
            if not self._hurried:
                self._behind = False
            self._changed.notify_all()

    def _fall_behind(self) -> None:
        with self._changed:
            self._behind = True
            self._hurry()

    def _fail(self, error: BaseException) -> None:
        # The interrupt first: whoever the failure stops looks at it.
        if isinstance(error, LeaseLost) and not self._given_up:
            self._interrupt.lose(str(error))
        elif not self._given_up:
            self._interrupt.request(str(error))
        with self._changed:
            self._failure = error
            self._changed.notify_all()
