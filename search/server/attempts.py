"""How many wrong tokens somebody may come with: counted by address, since whoever guesses has no name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Lock

# Wrong tokens of one address within so many seconds, after which none is looked at. The same one again is no guess: a
# program that was left with a revoked token must not keep out all who share its address.
MOST = 10
SECONDS = 60.0
# Addresses that are remembered: a flood from everywhere must not fill the memory.
ADDRESSES = 10_000


class Attempts:
    """Failed attempts of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, dict[str, float]] = {}
        self._lock = Lock()

    def wait(self, address: str) -> int:
        """Seconds until another attempt of this address is looked at; 0: at once."""
        with self._lock:
            failed = self._late(address)
            if len(failed) < MOST:
                return 0
            return max(1, math.ceil(min(failed.values()) + SECONDS - self._clock()))

    def failed(self, address: str, digest: str) -> None:
        """The token of this digest is wrong."""
        with self._lock:
            if len(self._failed) >= ADDRESSES and address not in self._failed:
                self._failed.pop(next(iter(self._failed)))
            self._failed.setdefault(address, {}).setdefault(digest, self._clock())

    def _late(self, address: str) -> dict[str, float]:
        """When each wrong token of late came first."""
        late = {digest: at for digest, at in self._failed.pop(address, {}).items() if at > self._clock() - SECONDS}
        if late:
            self._failed[address] = late
        return late
