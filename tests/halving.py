"""Round-robin successive halving: all trials train to the first rung, the better half goes on to the next, and so on.

It says the same whenever and by whomever it is asked, so that a study under blows ends as its undisturbed twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search.strategy import GoOn, Left, Seen, SeenState, Start, Verdict

OPEN = (SeenState.RUNNING, SeenState.PAUSED)


class Halving:
    """A rung is twice as far as the one before."""

    def __init__(self, first: int = 1) -> None:
        self.first = first

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        if left.trials > 0:
            return Start(None, "halving")
        rung = self.first
        while any(_epochs(one) >= rung for one in seen):
            reached = [one for one in seen if _epochs(one) >= rung]
            if any(one.state in OPEN and _epochs(one) < rung for one in self._ahead(seen, rung)):
                return None
            best = sorted(reached, key=lambda one: (one.values[rung], one.number))[: (len(reached) + 1) // 2]
            waiting = [one for one in best if one.state is SeenState.PAUSED and _epochs(one) == rung]
            if waiting:
                return GoOn(waiting[0].number)
            rung *= 2
        return None

    def _ahead(self, seen: Sequence[Seen], rung: int) -> list[Seen]:
        """Those that are to reach a rung: all the first one, of each other the better half of the one before."""
        if rung == self.first:
            return list(seen)
        before = [one for one in self._ahead(seen, rung // 2) if _epochs(one) >= rung // 2]
        best = sorted(before, key=lambda one: (one.values[rung // 2], one.number))
        return best[: (len(best) + 1) // 2]

    def verdict(self, number: int, seen: Sequence[Seen], left: Left, may_pause: bool = True) -> Verdict:
        epochs = _epochs(next(one for one in seen if one.number == number))
        rung = self.first
        while rung < epochs:
            rung *= 2
        return Verdict.PAUSE if rung == epochs else Verdict.GO_ON


def _epochs(one: Seen) -> int:
    return max(one.values, default=0)


def make(*_: Any) -> Halving:
    """As `search.judge.MakeStrategy`."""
    return Halving()
