"""How a worker is told to let go of its trial: by a signal, by the study's state, or because the lease is gone.

Set from signal handlers and from the lease keeper's thread, read by the training thread between batches.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

# An epoch that ends within this time of the request is kept; a longer one is given up. With the hand-back itself
# a worker is gone 5 s after it was asked.
GRACE_SECONDS = 3.0


class Interrupt:
    """A request to hand the trial back, or the news that it is another's already."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self.reason = ""
        self.lost = False

    def request(self, reason: str) -> None:
        """Hand back at the end of the epoch, or after the grace period. The first reason stands."""
        if self._since is None:
            self.reason = reason
            self._since = self._clock()

    def lose(self, reason: str) -> None:
        """The lease is gone: stop at once and record nothing more of this trial."""
        self.lost = True
        if self._since is None:
            self.reason = reason

    @property
    def requested(self) -> bool:
        """Whether this worker should end."""
        return self._since is not None

    @property
    def overdue(self) -> bool:
        """Whether training must stop between two batches, without waiting for the epoch's end."""
        return self.lost or (self._since is not None and self._clock() - self._since > GRACE_SECONDS)

    def on_signals(self, *numbers: signal.Signals) -> None:
        """Let these signals request; a second one does what it does by default, which is to kill."""

        def handle(number: int, _frame: FrameType | None) -> None:
            signal.signal(number, signal.SIG_DFL)
            self.request(signal.Signals(number).name)

        for number in numbers:
            signal.signal(number, handle)
