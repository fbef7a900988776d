"""When a worker that has died is started again: soon, then later and later, and never after it died at its start.

`search.fleet` keeps one `Restarts` for each slot.
"""

from __future__ import annotations

from storage.workers import Work

# Pauses before a worker starts again: the first, and the longest that they double to.
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0
# One that has worked for so long did not die of how it was started.
WELL_SECONDS = 60.0
# One that dies so often in a row before it has claimed a trial will do so again.
STARTS = 3


class Restarts:
    """Counts the deaths in one slot."""

    def __init__(self) -> None:
        self._pause = FIRST_SECONDS
        self._at_start = 0

    def after(self, work: Work, seconds: float) -> float | None:
        """Seconds until the next start, of a worker that did this work and lived so long; None: it is given up."""
        self._at_start = 0 if work.claimed else self._at_start + 1
        if self._at_start >= STARTS:
            return None
        if work.settled or (work.claimed and seconds >= WELL_SECONDS):
            self._pause = FIRST_SECONDS
        pause = self._pause
        self._pause = min(2 * pause, LONGEST_SECONDS)
        return pause
