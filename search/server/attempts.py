"""How often somebody may come with a token that is none: counted by address, since whoever guesses has no name."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from threading import Lock

# Failed attempts from one address within so many seconds, after which none is looked at.
MOST = 10
SECONDS = 60.0
# Addresses that are remembered: a flood from everywhere must not fill the memory.
ADDRESSES = 10_000


class Attempts:
    """Failed attempts of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, deque[float]] = {}
        self._lock = Lock()

    def wait(self, address: str) -> int:
        """Seconds until another attempt of this address is looked at; 0: at once."""
        with self._lock:
            failed = self._late(address)
            if len(failed) < MOST:
                return 0
            return max(1, math.ceil(failed[0] + SECONDS - self._clock()))

    def failed(self, address: str) -> None:
        """One more."""
        with self._lock:
            if len(self._failed) >= ADDRESSES and address not in self._failed:
                self._failed.pop(next(iter(self._failed)))
            failed = self._failed.setdefault(address, deque(maxlen=MOST))
            failed.append(self._clock())

    def _late(self, address: str) -> deque[float]:
        failed = self._failed.get(address, deque())
        while failed and failed[0] <= self._clock() - SECONDS:
            failed.popleft()
        if not failed:
            self._failed.pop(address, None)
        return failed
