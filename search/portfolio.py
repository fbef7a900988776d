"""Recipes that did well before, ordered so that a few of them serve many tasks: what a search starts with.

Pure functions of values on record, driven alike by studies, by the script that makes the shipped portfolio and by
simulated searches. No SQL and no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.errors import UsageError

FILE = Path(__file__).with_name("portfolio.json")
# Names another file in its place.
VARIABLE = "DIALIN_PORTFOLIO"

# Twice as far from the best as a typical recipe is. How much worse still a recipe was says nothing about good ones.
CAP = 2.0

# Of recipes that were good on some tasks, how many are on another one. On tasks that were left out it did as well as 1
# does, the plain mean of the best so far, and it goes on where with few tasks nothing is left to gain with 1.
RELIABILITY = 0.5

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


def complementary(
    values: ArrayLike, count: int, weights: Sequence[float] | None = None, reliability: float = RELIABILITY
) -> list[int]:
    """Up to `count` recipes, each the one that lowers most what is expected of the best of those chosen.

    Args:
        values: shape (recipes, tasks), `normalised` by task; NaN where nothing is known of a recipe on a task, which
            promises nothing there.
        weights: of the tasks in the mean; the same for all of them when left out.
        reliability: the chance that a recipe does on a new task as it did on one of these, each by itself; otherwise
            it does as badly as can be. With 1 it is the mean over the tasks of the best value so far that is lowered,
            which chooses recipes that are best somewhere over those that are good everywhere.

    Returns their indices in that order; of equal ones that with the lower mean, then the lower index. Fewer than
    `count` when no other one is of use.
    """
    known = np.minimum(np.nan_to_num(np.asarray(values, dtype=np.float64), nan=CAP), CAP)
    if known.size == 0:
        return []
    weighted = np.ones(known.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    share = weighted / weighted.sum()
    own, so_far = known @ share, CAP
    chosen: list[int] = []
    while len(chosen) < min(count, len(known)):
        means = _expected_best(known, known[chosen], reliability) @ share
        left = [one for one in range(len(known)) if one not in chosen]
        index = min(left, key=lambda one: (round(float(means[one]), 12), float(own[one]), one))
        if not means[index] < so_far - 1e-12:
            break
        chosen.append(index)
        so_far = float(means[index])
    return chosen


def _expected_best(known: Floats, chosen: Floats, reliability: float) -> Floats:
    """For each recipe, beside those chosen, and each task: the mean of the best one that does as it did there."""
    besides = np.broadcast_to(chosen, (len(known), *chosen.shape))
    ordered = np.sort(np.concatenate([known[:, None], besides], axis=1), axis=1)
    missed = (1 - reliability) ** np.arange(ordered.shape[1])
    best: Floats = reliability * np.einsum("k,rkt->rt", missed, ordered) + (1 - reliability) * missed[-1] * CAP
    return best


@dataclass(frozen=True)
class Shipped:
    """A recipe in torch's units, as `Recipe.as_dict` has it, and for people where it is from."""

    settings: Mapping[str, Any]
    origin: str


def shipped() -> tuple[Shipped, ...]:
    """The recipes that come with the package, the most useful first; `benchmarks/portfolio.py` makes them.

    DIALIN_PORTFOLIO names a file of others, as that script writes it.

    Raises:
        UsageError: that file cannot be read, or is none.
    """
    other = os.environ.get(VARIABLE)
    return _read(Path(other) if other else FILE)


@cache
def _read(file: Path) -> tuple[Shipped, ...]:
    try:
        recipes = json.loads(file.read_text())["recipes"]
        return tuple(Shipped(one["settings"], f"shipped: {one['best_on']}") for one in recipes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{VARIABLE}: {file} is no portfolio: {type(error).__name__}: {error}") from None
