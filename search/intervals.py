"""Means with their intervals, and differences of means, from few values: what a handful of seeds says of a recipe.

Student 1908 for a mean; Welch 1947 for the difference of two means whose variances differ, which Colas et al. 2019
("A Hitchhiker's Guide to Statistical Comparisons of Reinforcement Learning Algorithms") found to keep best to its error
rate with few seeds. Used by `search.confirmation`.

A metric such as an accuracy takes only values that lie some way apart, on which two seeds may well agree. `resolution`:
how far; values are taken to vary by at least what their rounding hides, its square over 12 (Sheppard 1898).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev

LEVEL = 0.95
# Values that differ by less are the same one, rounded in float32 on the way.
FLOAT_NOISE = 1e-6
# A difference of two means is to be seen so often. Nobody trains more seeds than this to see one.
DETECTED, MOST_SEEDS = 0.8, 30


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval; infinite where so few values say nothing of their spread."""

    estimate: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        return self.low <= value <= self.high


def of_mean(values: Sequence[float], resolution: float = 0.0, level: float = LEVEL) -> Interval:
    """The mean of one value and more, by Student's t with one degree of freedom less than there are values."""
    middle = mean(values)
    if len(values) < 2:
        return Interval(middle, -math.inf, math.inf)
    half = _quantile(len(values) - 1, level) * math.sqrt(_variance(values, resolution) / len(values))
    return Interval(middle, middle - half, middle + half)


def of_difference(
    one: Sequence[float],
    other: Sequence[float],
    comparisons: int = 1,
    resolution: float = 0.0,
    level: float = LEVEL,
) -> Interval:
    """Mean of `one` less that of `other`, by Welch's t. Of both there are two values and more.

    `comparisons`: so many such intervals are to hold together with probability `level` (Bonferroni's correction, Dunn
    1961).
    """
    parts = [_variance(values, resolution) / len(values) for values in (one, other)]
    difference, spread = mean(one) - mean(other), sum(parts)
    if spread == 0:
        return Interval(difference, difference, difference)
    if math.isinf(spread):
        return Interval(difference, -math.inf, math.inf)
    # Welch-Satterthwaite: the degrees of freedom of a sum of two variances.
    freedom = 1 / sum(
        (part / spread) ** 2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    half = _quantile(freedom, 1 - (1 - level) / comparisons) * math.sqrt(spread)
    return Interval(difference, difference - half, difference + half)


def seeds_to_tell(
    one: Sequence[float], other: Sequence[float], had: int, comparisons: int = 1, resolution: float = 0.0
) -> int | None:
    """With how many seeds of each, more than `had`, such a difference is beyond its interval four times in five.

    Of a t-test, whose quantiles are those of so many values: with a handful that is more than normal ones would have.
    None: with more than anybody trains, or the means are the same. Of both there are two values and more.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    gap, freedom = abs(mean(one) - mean(other)), len(one) + len(other) - 2
    within = math.sqrt(sum((len(values) - 1) * _variance(values, 0.0) for values in (one, other)) / freedom)
    spread = max(within, resolution / math.sqrt(12))
    for count in range(had + 1, MOST_SEEDS + 1) if gap > 0 else ():
        quantiles = _quantile(2 * count - 2, 1 - (1 - LEVEL) / comparisons) + stdtrit(2 * count - 2, DETECTED)
        if gap >= quantiles * spread * math.sqrt(2 / count):
            return count
    return None


def resolution(values: Iterable[float]) -> float:
    """How far apart the values of a metric lie at least, by those that were seen; 0 where they are all the same."""
    apart = ((high - low, FLOAT_NOISE * max(abs(low), abs(high))) for low, high in pairwise(sorted({*values})))
    # Noise is relative to the two values, not to the largest: one epoch of a loss may have been beyond all others.
    return min((gap for gap, noise in apart if gap > noise), default=0.0)


def _variance(values: Sequence[float], resolution: float) -> float:
    deviation = max(stdev(values), resolution / math.sqrt(12))
    return deviation * deviation  # infinite where it is too large for a float, which `**` would raise for


def _quantile(freedom: float, level: float) -> float:
    """So many standard errors on both sides hold `level` of Student's distribution."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    return float(stdtrit(freedom, (1 + level) / 2))
