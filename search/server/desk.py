"""Where answers come from: what many ask at the same time is asked of the database once.

A page that is open in twenty browsers asks the same twenty times. The first one to ask goes to the database, the others
wait for its answer, and for a moment it is everybody's. So the database's load does not grow with the number of
people who look, and an answer that takes long is asked for more seldom.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from search import printing
from storage.patience import waiting
from storage.shared import SharedStorage

# Seconds that an answer is given again; at least twice as long as it took to make.
FRESH_SECONDS = 1.0
TIMES_COST = 2.0
# Answers that are remembered, the ones longest unasked leave first.
ANSWERS = 64
# A database that restarts is waited for so long, in seconds, before somebody hears that it is away.
PATIENCE_SECONDS = 2.0


T = TypeVar("T")


@dataclass
class _Answer:
    """`lock` is held by whoever asks the database."""

    body: bytes = b""
    good_until: float = 0.0
    lock: Lock = field(default_factory=Lock)


class Desk:
    """The database as the server asks it, and the files root."""

    def __init__(self, storage: SharedStorage, files: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.storage, self.files = storage, files
        self._clock = clock
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._lock = Lock()

    def shared(self, key: Hashable, ask: Callable[[], Any]) -> bytes:
        """The JSON of what `ask()` gives, or gave a moment ago under the same key.

        Raises:
            whatever `ask` raises; that is remembered by nobody.
        """
        answer = self._of(key)
        with answer.lock:
            began = self._clock()
            if began >= answer.good_until:
                answer.body = self.now(ask)
                ended = self._clock()
                answer.good_until = ended + max(FRESH_SECONDS, TIMES_COST * (ended - began))
            return answer.body

    def now(self, ask: Callable[[], Any]) -> bytes:
        """The JSON of what `ask()` gives, for one alone."""
        with waiting(PATIENCE_SECONDS):
            return encoded(ask())

    def wait(self, do: Callable[[], T]) -> T:
        """What `do()` gives, with the patience that a request has."""
        with waiting(PATIENCE_SECONDS):
            return do()

    def forget(self) -> None:
        """Something was changed: whoever did it sees it at once."""
        with self._lock:
            self._answers.clear()

    def _of(self, key: Hashable) -> _Answer:
        with self._lock:
            answer = self._answers.setdefault(key, _Answer())
            self._answers.move_to_end(key)
            if len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
            return answer


def encoded(value: Any) -> bytes:
    """Strict JSON without needless spaces."""
    return json.dumps(printing.finite(value), allow_nan=False, separators=(",", ":")).encode()
