"""Recipes that did well before, ordered so that a few of them serve many tasks: what a search starts with.

Pure functions of values on record, driven alike by studies, by the script that makes the shipped portfolio and by
simulated searches. No SQL and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Twice as far from the best as a typical recipe is. How much worse still a recipe was says nothing about good ones.
CAP = 2.0

Floats = NDArray[np.float64]


def normalised(values: ArrayLike) -> Floats:
    """A task's values, lower is better, as 0 for the best of them and 1 for the median; at most CAP.

    Not a number, which a recipe that diverged has, becomes CAP. Where half of all are as good as the best, whatever
    is worse than it is 1.
    """
    given = np.asarray(values, dtype=np.float64)
    finite = given[np.isfinite(given)]
    if not len(finite):
        return np.full(given.shape, CAP)
    best, middle = float(finite.min()), float(np.median(np.where(np.isfinite(given), given, np.inf)))
    if not np.isfinite(middle):  # most have diverged
        middle = float(np.median(finite))
    over = given - best
    scaled = over / (middle - best) if middle > best else np.where(over > 0, 1.0, 0.0)
    return np.where(np.isfinite(given), np.clip(scaled, 0.0, CAP), CAP)


def complementary(values: ArrayLike, count: int, weights: Sequence[float] | None = None) -> list[int]:
    """Up to `count` recipes, each the one that lowers most the mean over tasks of the best value so far.

    Args:
        values: shape (recipes, tasks), `normalised` by task; NaN where nothing is known of a recipe on a task, which
            promises nothing there.
        weights: of the tasks in the mean; the same for all of them when left out.

    Returns their indices in that order; of equal ones that with the lower mean, then the lower index. Fewer than
    `count` when no other one lowers the mean.
    """
    known = np.minimum(np.nan_to_num(np.asarray(values, dtype=np.float64), nan=CAP), CAP)
    if known.size == 0:
        return []
    weighted = np.ones(known.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    share = weighted / weighted.sum()
    own, best = known @ share, np.full(known.shape[1], CAP)
    chosen: list[int] = []
    while len(chosen) < min(count, len(known)):
        means = np.minimum(known, best) @ share
        index = min(range(len(known)), key=lambda one: (round(float(means[one]), 12), float(own[one]), one))
        if not means[index] < best @ share - 1e-12:
            break
        chosen.append(index)
        best = np.minimum(best, known[index])
    return chosen
