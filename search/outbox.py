"""What a trial leaves in the database, written in order by a thread: training does not wait for one that is away.

`search.reporter` hands its epochs in here, and waits for the rest before the trial is settled or given back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from search.interrupt import Interrupt
from search.reporting import Interrupted
from storage.claims import Checkpoint, Epoch, EpochsSpent, Lease, LeaseLost
from storage.patience import DatabaseAway, away_seconds, waiting
from storage.shared import SharedStorage
from storage.tables import StudyState

# How long training waits for a database that says nothing, once: until it answers again nothing is waited for. Ours
# answers in milliseconds, on a machine with more workers than cores in a second or two.
ANSWER_SECONDS = 5.0
# How long the rest may take when the worker was asked to end: it has to be gone 5 s after that.
HAND_BACK_SECONDS = 2.0
# How soon a wait for the rest hears that the worker is asked to end.
_LISTEN_SECONDS = 0.2


@dataclass
class _Report:
    epoch: Epoch
    checkpoint: Checkpoint | None
    state: StudyState | None = None
    written: bool = False


class Outbox:
    """For one trial under one lease. Its methods are the training thread's."""

    def __init__(self, storage: SharedStorage, lease: Lease, interrupt: Interrupt) -> None:
        """What keeps it from writing for good is told to `interrupt` too: the training of a long epoch ends then."""
        self._storage = storage
        self._lease = lease
        self._interrupt = interrupt
        self._changed = threading.Condition()
        self._reports: deque[_Report] = deque()
        self._thread: threading.Thread | None = None
        self._behind = False
        self._failure: BaseException | None = None
        self._given_up = False

    @property
    def behind(self) -> bool:
        """Whether the database is away, and what was handed in last is not on record."""
        return self._behind

    def record(self, epoch: Epoch, checkpoint: Checkpoint | None = None) -> StudyState | None:
        """Have an epoch recorded after those before; the study's state, None while it is not on record yet.

        Raises:
            LeaseLost: the trial is another's, also when only an earlier epoch was refused.
            Interrupted: the study's budget of epochs is on record without this one.
            DatabaseAway: the database has not come back within the limit.
        """
        report = _Report(epoch, checkpoint)
        with self._changed:
            self._check()
            self._reports.append(report)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: report.written or self._behind or self._failure, ANSWER_SECONDS)
            self._check()
            self._behind = not report.written
        return report.state

    def flush(self) -> None:
        """Wait until everything is on record, a short time only where the worker is asked to end.

        Raises:
            LeaseLost, Interrupted: as `record`.
            DatabaseAway: the database has not come back within the limit, or the short time.
        """
        end = time.monotonic() + away_seconds() + ANSWER_SECONDS
        with self._changed:
            while self._reports and self._failure is None:
                if self._interrupt.requested:
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

    def _write(self) -> None:
        """The thread: from the first report until there is none."""
        with waiting(stop=lambda: self._given_up, tell=lambda _line: self._fall_behind()):
            while (report := self._next()) is not None:
                try:
                    state = self._storage.record_epoch(self._lease, report.epoch, report.checkpoint)
                except BaseException as error:
                    self._fail(error)
                    return
                with self._changed:
                    self._reports.popleft()
                    report.state, report.written = state, True
                    self._changed.notify_all()

    def _next(self) -> _Report | None:
        with self._changed:
            if self._reports and not self._given_up:
                return self._reports[0]
            self._thread, self._behind = None, False
            return None

    def _fall_behind(self) -> None:
        with self._changed:
            self._behind = True
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        # The interrupt first: whoever the failure stops looks at it.
        if isinstance(error, LeaseLost) and not self._given_up:
            self._interrupt.lose(str(error))
        elif not self._given_up:
            self._interrupt.request(str(error))
        with self._changed:
            self._failure = error
            self._changed.notify_all()
