"""Where a person believes that a knob's good values lie: samplers draw most there, and nothing is ruled out.

A prior is a change of scale: samplers see the knob as its rank among all that the prior would draw, from 0 to 1, where
their own uniform prior is the person's (`storage.space_view`). On record are the real value and the real range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

# What samplers see in place of a knob's range.
RANKS = FloatDistribution(0.0, 1.0)
# Where less of the prior lies within a knob's range it says nothing about it.
LEAST_MASS = 1e-9
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Prior:
    """Log-normal around `center`, cut off at the ends of the knob's range; all but 5% within `factor` either way.

    So `factor` is two standard deviations of the logarithm: what a person means by "1e-3, give or take a factor 10".
    """

    center: float
    factor: float

    def rank(self, value: float, distribution: BaseDistribution) -> float:
        """Which share of what the prior draws is below a value."""
        low, high = self._ends(distribution)
        below, above = self._below(low), self._below(high)
        if above - below < LEAST_MASS:
            return min(max((value - low) / (high - low), 0.0), 1.0)
        return min(max((self._below(value) - below) / (above - below), 0.0), 1.0)

    def value(self, rank: float, distribution: BaseDistribution) -> float:
        """The value of that rank, one that the distribution has."""
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = self._ends(distribution)
        below, above = self._below(low), self._below(high)
        if above - below < LEAST_MASS:
            value = low + rank * (high - low)
        else:
            share = min(max(below + rank * (above - below), 1e-300), 1 - 1e-16)
            value = math.exp(math.log(self.center) + self._deviation * _NORMAL.inv_cdf(share))
        if distribution.step is not None:
            steps = round((value - distribution.low) / distribution.step)
            value = round(distribution.low + steps * distribution.step, 12)
        value = min(max(value, distribution.low), distribution.high)
        return int(value) if isinstance(distribution, IntDistribution) else value

    @property
    def _deviation(self) -> float:
        return math.log(self.factor) / 2

    def _below(self, value: float) -> float:
        return _NORMAL.cdf((math.log(value) - math.log(self.center)) / self._deviation) if value > 0 else 0.0

    def _ends(self, distribution: BaseDistribution) -> tuple[float, float]:
        """Of a range in steps half a step more either way: each value stands for what is rounded to it."""
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        half = distribution.step / 2 if distribution.step is not None else 0.0
        return distribution.low - half, distribution.high + half
