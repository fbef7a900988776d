"""The learning curves on record as a strategy needs them: lowest values so far, and ranks.

Called by `search.auto` and `search.improvement`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.strategy import Seen, SeenState

Floats = NDArray[np.float64]


class Curves:
    """Of all trials, by number. What has not changed is not computed again."""

    def __init__(self) -> None:
        self._runs: dict[int, Floats] = {}
        self._learnt: dict[int, tuple[int, bool]] = {}
        self.total = 0
        self.longest_complete = 0

    def learn(self, seen: Sequence[Seen]) -> None:
        """Take in what is new."""
        for one in seen:
            now = len(one.values), one.feasible
            if self._learnt.get(one.number) != now:
                self._runs[one.number] = lowest_so_far(one)
                self._learnt[one.number] = now
        self.total = sum(epochs for epochs, _ in self._learnt.values())
        complete = [one.number for one in seen if one.state is SeenState.COMPLETE]
        self.longest_complete = max((self.reached(number) for number in complete), default=0)

    def run(self, number: int) -> Floats:
        """The lowest value so far at each epoch from 1 on; empty where there is none."""
        return self._runs.get(number, np.empty(0))

    def reached(self, number: int) -> int:
        """The last epoch on record."""
        return len(self.run(number))

    def low(self, number: int) -> float:
        """The lowest value of a trial."""
        run = self.run(number)
        return float(run[-1]) if len(run) else math.inf

    def ranked(self, epoch: int | None = None) -> list[int]:
        """The trials that reached an epoch, the lowest until then first; without one, all that have a value."""
        least = epoch or 1
        return sorted((n for n in self._runs if self.reached(n) >= least), key=lambda n: (self._at(n, epoch), n))

    def _at(self, number: int, epoch: int | None) -> float:
        return float(self._runs[number][-1 if epoch is None else epoch - 1])


def lowest_so_far(one: Seen) -> Floats:
    """By epoch from 1 on. What is no finite number counts as the value before it, or at first the one after it.

    Empty where there is none, or none that counts since the trial violates a constraint.
    """
    if not one.values or not one.feasible:
        return np.empty(0)
    by_epoch = np.full(max(one.values), math.inf)
    for epoch, value in one.values.items():
        if math.isfinite(value):
            by_epoch[epoch - 1] = value
    run = np.minimum.accumulate(by_epoch)
    finite = np.flatnonzero(np.isfinite(run))
    if not len(finite):
        return np.empty(0)
    run[: finite[0]] = run[finite[0]]
    return run
