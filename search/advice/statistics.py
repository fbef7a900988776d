"""Comparisons of two or more groups of trials by rank, which no scale of a metric and no outlier can spoil.

Rules ask these and nothing else for "better", so that what a p means is the same everywhere.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def superiority(some: Floats, others: Floats) -> float:
    """The chance that one of `some` is higher than one of `others`, ties counting half (the AUC); 0.5 of none."""
    if not len(some) or not len(others):
        return 0.5
    differences = some[:, None] - others[None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


def p_higher(some: Floats, others: Floats) -> float:
    """How likely `some` would be so much higher by chance: Mann and Whitney's U, one-sided; 1 of none."""
    if not len(some) or not len(others):
        return 1.0
    from scipy.stats import mannwhitneyu  # takes half a second

    return float(mannwhitneyu(some, others, alternative="greater").pvalue)


def rank_correlation(some: Floats, others: Floats) -> float:
    """Spearman's; 0 where one of them is constant."""
    if len(some) < 3 or len(np.unique(some)) < 2 or len(np.unique(others)) < 2:
        return 0.0
    return float(np.corrcoef(ranks(some), ranks(others))[0, 1])


def ranks(values: Floats) -> Floats:
    """From 0, the lowest first; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Where the share lies of which so many were a sample, 95 of 100 times (Wilson 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - reach, middle + reach


def p_rank_correlation(some: Floats, others: Floats) -> float:
    """How likely chance alone would give so high a rank correlation, one-sided; 1 of fewer than three."""
    agreement = rank_correlation(some, others)
    if len(some) < 4 or agreement >= 1:
        return 0.0 if len(some) >= 4 else 1.0
    from scipy.stats import t

    score = agreement * math.sqrt((len(some) - 2) / (1 - agreement**2))
    return float(t.sf(score, len(some) - 2))


def p_higher_in_strata(values: Floats, chosen: Bools, strata: NDArray[np.int64]) -> float:
    """How likely the chosen would be so much higher than others of their own stratum by chance, one-sided.

    Van Elteren's test (1960): Wilcoxon's, stratum by stratum; 1 where no stratum has both.
    """
    score = variance = 0.0
    for stratum in np.unique(strata):
        here = strata == stratum
        count, mine = int(here.sum()), int(chosen[here].sum())
        if mine in (0, count):
            continue
        above = float(ranks(values[here])[chosen[here]].sum()) - mine * (count - 1) / 2
        score += above / (count + 1)
        variance += mine * (count - mine) / (12 * (count + 1))
    return 0.5 * math.erfc(score / math.sqrt(2 * variance)) if variance else 1.0
