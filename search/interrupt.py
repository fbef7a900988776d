"""How a worker is told to let go of its trial: by a signal, by the study's state, or because the lease is gone.

Set from signal handlers and from the lease keeper's thread, read by the training thread between batches.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# An epoch that ends within this time of the request is kept; a longer one is given up. With the hand-back itself
# a worker is gone 5 s after it was asked.
GRACE_SECONDS = 3.0


class Interrupt:
    """A request to hand the trial back, or the news that it is another's already."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, outer: Interrupt | None = None) -> None:
        """`outer`: what it requests is requested here too, but not the other way round."""
        self._clock = clock
        self._outer = outer
        self._since: float | None = None
        self._gives_up = False
        self.reason = ""
        self.lost = False

    def request(self, reason: str) -> None:
        """Hand back at the end of the epoch, or after the grace period. The first reason stands."""
        if self._since is None:
            self.reason = reason
            self._since = self._clock()

    def give_up(self, reason: str) -> None:
        """As `request`, and nothing is waited for any longer: it was waited for long enough."""
        self._gives_up = True
        self.request(reason)

    def lose(self, reason: str) -> None:
        """The lease is gone: stop at once and record nothing more of this trial."""
        self.lost = True
        if self._since is None:
            self.reason = reason

    def forget(self) -> None:
        """What was asked for is done, or of no more interest; not what `outer` requests."""
        self._since, self.reason, self.lost = None, "", False

    @property
    def requested(self) -> bool:
        """Whether this worker should end."""
        self._hear()
        return self._since is not None

    @property
    def hurried(self) -> bool:
        """Whether the process is to end, within seconds; who only leaves a trial or a study has time."""
        return self._gives_up or (self._outer.hurried if self._outer is not None else self.requested)

    @property
    def overdue(self) -> bool:
        """Whether training must stop between two batches, without waiting for the epoch's end."""
        self._hear()
        return self.lost or (self._since is not None and self._clock() - self._since > GRACE_SECONDS)

    def _hear(self) -> None:
        if self._outer is not None and self._outer.requested:
            self.request(self._outer.reason)

    def on_signals(self, *numbers: signal.Signals, then: signal.Handlers = signal.SIG_DFL) -> None:
        """Let these signals request; a second one is met with `then`: by default it kills."""

        def handle(number: int, _frame: FrameType | None) -> None:
            signal.signal(number, then)
            self.request(signal.Signals(number).name)

        for number in numbers:
            signal.signal(number, handle)

    @contextmanager
    def heeding(self, *numbers: signal.Signals) -> Iterator[None]:
        """In this block these signals request; afterwards they mean what they did before."""
        before = {number: signal.getsignal(number) for number in numbers}
        self.on_signals(*numbers)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
