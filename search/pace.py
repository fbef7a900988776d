"""How often a checkpoint is due, and the thread that writes it while training goes on. Used by `search.checkpointer`.

A death costs the epoch in flight or 5 s, whichever is longer, and checkpoints at most a twentieth of the time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# What a death may cost besides the epoch in flight.
CHECKPOINT_SECONDS = 5.0
# A checkpoint that has cost the training thread a second is followed by so many seconds of training: 5%.
TRAINING_SHARE = 20.0


class Pace:
    """When the next checkpoint is due: so many seconds after the last, more where that one took long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._cost = 0.0

    def due(self, ahead: float = 0.0) -> bool:
        """Whether to take one now. `ahead`: in how many seconds it can be asked again, where that is long."""
        passed = self._clock() - self._since
        return passed + ahead >= CHECKPOINT_SECONDS and passed >= TRAINING_SHARE * self._cost

    def took(self, since: float) -> None:
        """One was taken, and has kept training since that moment of the clock."""
        self._since = self._clock()
        self._cost = self._since - since

    def cost(self, seconds: float) -> None:
        """Writing it has kept training so much longer."""
        self._cost += seconds

    def now(self) -> float:
        """This moment of the clock."""
        return self._clock()


class Background:
    """Does one thing at a time in a thread of its own. What it raises is raised in the thread that asks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._raised: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether the last thing is still being done."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: Callable[[], None]) -> None:
        """Begin with `task` as soon as the one before is done."""
        self.finish()
        self._thread = threading.Thread(target=self._run, args=(task,), name=self._name, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for what is being done. Raises what it raised."""
        self.wait()
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def wait(self) -> None:
        """Wait for what is being done, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._raised = error
