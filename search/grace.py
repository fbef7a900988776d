"""After how many epochs the order of trials says something: found from their rank correlation, never assumed.

The first trials of a search are its probes. They train on, whatever their rank, until an earlier epoch ranked them as
the latest one that half of them have reached does; from that earlier epoch on trials may be paused. A first epoch
without any signal makes every rule that stops trials a random one. Called by `search.auto`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PROBES = 8
# The first epoch never: on recorded curves of real training with warm-up and schedules what looked bad then was often
# good in the end, even where the first epochs agreed with each other.
EARLIEST = 2
# By chance eight ranks correlate this much nearly once in four times; what has signal mostly has far more.
ENOUGH = 0.3


def grace(runs: Sequence[Floats], epochs: int) -> tuple[int, int]:
    """The first epoch at which trials may be paused, and the epoch until which probes train on.

    Args:
        runs: of the probes, each the lowest value so far by epoch; those that failed are left out.
        epochs: of a full training.

    Of the probes fewer than `PROBES` say nothing yet: then both are an eighth of a training.
    """
    until = max(EARLIEST, round(epochs / 8))
    if len(runs) < PROBES:
        return until, until
    while until < epochs:
        there = [run for run in runs if len(run) >= until]
        if len(there) < len(runs) // 2:
            return until, until
        last = _ranks([run[until - 1] for run in there])
        epoch = 1
        while epoch < until:
            if _correlation(_ranks([run[epoch - 1] for run in there]), last) >= ENOUGH:
                return max(epoch, EARLIEST), until
            epoch *= 2
        until = min(epochs, 2 * until)
    return epochs, epochs


def _ranks(values: Sequence[float]) -> Floats:
    """From 1 on, equal values their mean rank; `scipy.stats` has it too, but takes most of a second to import."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _correlation(some: Floats, others: Floats) -> float:
    if some.std() == 0 or others.std() == 0:
        return 0.0
    return float(np.corrcoef(some, others)[0, 1])
