"""How long an epoch of a recipe takes, learnt from those on record: a wide network or a small batch takes long.

Called by `search.improvement`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Of the ridge regression: the variance of a logarithm of seconds that no recipe explains, over that of a slope.
PENALTY = 0.1


@dataclass(frozen=True)
class EpochCost:
    """A ridge regression of the logarithm of an epoch's seconds on a recipe's features, within what was seen."""

    level: float
    middle: Floats
    slopes: Floats
    limits: tuple[float, float]

    @classmethod
    def fitted(cls, features: Floats, seconds: Floats) -> EpochCost:
        """`features`, of shape (trials, columns), and the seconds an epoch of each took; 0 where nobody knows."""
        rows, logarithms = features[seconds > 0], np.log(seconds[seconds > 0])
        if not len(rows):
            return cls(0.0, np.zeros(features.shape[1]), np.zeros(features.shape[1]), (0.0, 0.0))
        level, middle = float(logarithms.mean()), rows.mean(axis=0)
        centred = rows - middle
        gram = centred.T @ centred + PENALTY * np.eye(rows.shape[1])
        slopes = np.linalg.solve(gram, centred.T @ (logarithms - level))
        return cls(level, middle, slopes, (float(logarithms.min()), float(logarithms.max())))

    def of(self, features: Floats) -> Floats:
        """Seconds an epoch of each row; 1 where nothing is known."""
        return np.exp(np.clip(self.level + (features - self.middle) @ self.slopes, *self.limits))
