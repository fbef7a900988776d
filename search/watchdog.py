"""Ends a worker that hangs: one that for too long has finished no batch, or of a person's own loop reported nothing.

Whoever supervises the worker starts another, and the trial goes on there. Started by `search.worker`; the training
loop's reporter says that it is alive.
"""

from __future__ import annotations

import faulthandler
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from search.objective import Objective

# A batch takes seconds, also a large model's; the first one waits for compilation and for a DataLoader's workers.
# PyTorch gives up on a collective operation after as long (torch.distributed's default timeout with NCCL).
DEFAULT_SECONDS = 600.0
# How often to look, as a share of the limit, and at most.
LOOKS, LOOK_SECONDS = 4, 1.0
STANDARD_ERROR = 2


class Timer(Protocol):
    """What `faulthandler` offers: a thread of C, which also runs while other C code keeps Python's from running."""

    def dump_traceback_later(self, timeout: float, /, *, file: int, exit: bool) -> None: ...
    def cancel_dump_traceback_later(self) -> None: ...


class Watchdog:
    """`seconds` without a `beat` are too long; with math.inf nothing is."""

    def __init__(
        self,
        seconds: float,
        end: Callable[[str], None],
        *,
        step: str = "batch",
        clock: Callable[[], float] = time.monotonic,
        timer: Timer = faulthandler,
    ) -> None:
        """`end` ends the process, and takes the words to do it with; `step`: what a beat stands for, in them."""
        self._seconds, self._end, self._step = seconds, end, step
        self._clock, self._timer = clock, timer
        self._last = 0.0

    def beat(self) -> None:
        """A batch was finished, or a report was made."""
        self._last = self._clock()

    @contextmanager
    def watching(self, trial: int) -> Iterator[None]:
        """While a trial trains."""
        if self._seconds == math.inf:
            yield
            return
        self.beat()
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(trial, over), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, trial: int, over: threading.Event) -> None:
        seconds, pause = self._seconds, min(LOOK_SECONDS, self._seconds / LOOKS)
        try:
            while True:
                # Should no thread of Python's run any more, this one included, that ends the process, with stacks.
                self._timer.dump_traceback_later(2 * seconds + LOOK_SECONDS, file=STANDARD_ERROR, exit=True)
                if over.wait(pause):
                    return
                if self._clock() - self._last > seconds:
                    self._end(f"trial {trial} hangs: no {self._step} for {seconds:g} s; its log has the stacks")
        finally:
            self._timer.cancel_dump_traceback_later()


def patience_with(objective: Objective, hang: float | None) -> float:
    """Seconds without a step that are too long: as a person said, else the objective says, else the default."""
    default = math.inf if objective.trains_itself else DEFAULT_SECONDS
    return hang or objective.step_timeout or default


def end_process(said: str, tell: Callable[[str], None]) -> None:
    """Write the stacks of all threads to the trial's log, tell whoever supervises, and end at once."""
    os.write(STANDARD_ERROR, f"{said}\n".encode())
    faulthandler.dump_traceback(file=STANDARD_ERROR, all_threads=True)
    try:
        tell(said)
    finally:
        os._exit(1)
