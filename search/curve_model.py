"""A Gaussian process over (recipe, epoch): how a learning curve goes on, and where one not yet begun would go.

Freeze-thaw Bayesian optimisation (Swersky et al. 2014): one part of the kernel joins what like recipes do, another what
one trial does from epoch to epoch. Called by `search.improvement`; numpy and scipy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]

SQRT5 = math.sqrt(5.0)
JITTER = 1e-6


@dataclass(frozen=True)
class Points:
    """Places on learning curves: `recipes` in the unit cube (n, d), `epochs` as log shares (n,), `trials` (n,).

    A trial's number is -1 where the curve is nobody's yet.
    """

    recipes: Floats
    epochs: Floats
    trials: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.epochs)

    def part(self, index: Any) -> Points:
        """Some of them."""
        return Points(self.recipes[index], self.epochs[index], self.trials[index])


def matern(distance: Floats) -> Floats:
    """Matern 5/2 of a scaled distance."""
    return (1 + SQRT5 * distance + 5 / 3 * distance**2) * np.exp(-SQRT5 * distance)


# The kernel's other parameters, as logs, and where the fit starts them: variances of what a recipe is worth at every
# epoch, of what it is worth at some, of what all trials share at an epoch, of what is one trial's own at every epoch
# and at some; the noise; and the length over epochs.
EXTRA = ("level", "course", "common", "own", "own_course", "noise", "span")
START = dict(zip(EXTRA, np.log([0.5, 0.3, 0.3, 0.05, 0.05, 0.003, 0.5]), strict=True))
# A wide prior keeps a fit to few points sane: (mean, deviation) of each log.
PRIOR = {name: (value, 1.0) for name, value in START.items()}


class CurveModel:
    """Fitted to values at points; says the mean and the deviation anywhere."""

    def __init__(self, dimensions: int, theta: Floats | None = None) -> None:
        """`theta`: parameters found before, to start from."""
        lengths = np.full(dimensions, math.log(0.35 * math.sqrt(max(dimensions, 1))))
        self.prior_mean = np.concatenate([lengths, [PRIOR[name][0] for name in EXTRA]])
        self.prior_deviation = np.concatenate([np.full(dimensions, 1.0), [PRIOR[name][1] for name in EXTRA]])
        self.theta = self.prior_mean.copy() if theta is None else theta.copy()
        self._d = dimensions

    def fit(self, points: Points, values: Floats, iterations: int) -> None:
        """Find the parameters (at most so many steps of L-BFGS), then condition on the values."""
        if iterations:
            squares = (points.recipes[:, None, :] - points.recipes[None, :, :]) ** 2
            squares = np.ascontiguousarray(np.moveaxis(squares, 2, 0))
            spans = np.abs(points.epochs[:, None] - points.epochs[None, :])
            same = (points.trials[:, None] == points.trials[None, :]).astype(np.float64)
            centred = values - values.mean()
            found = minimize(
                self._loss,
                self.theta,
                args=(squares, spans, same, centred),
                jac=True,
                method="L-BFGS-B",
                bounds=[(m - 3 * s, m + 3 * s) for m, s in zip(self.prior_mean, self.prior_deviation, strict=True)],
                options={"maxiter": iterations},
            )
            if np.all(np.isfinite(found.x)):
                self.theta = found.x
        self.condition(points, values)

    def condition(self, points: Points, values: Floats) -> None:
        """Take these values for what was seen."""
        self._points, self._mean = points, float(values.mean())
        covariance = self._between(points, points)
        covariance[np.diag_indices(len(points))] += math.exp(self.theta[self._d + 5]) + JITTER
        self._root = cholesky(covariance, lower=True)
        self._weights = cho_solve((self._root, True), values - self._mean)

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """Mean and deviation of the values there, without noise."""
        cross = self._between(points, self._points)
        mean = self._mean + cross @ self._weights
        half = solve_triangular(self._root, cross.T, lower=True)
        variance = sum(math.exp(self.theta[self._d + k]) for k in range(5))  # all but the noise
        return mean, np.sqrt(np.maximum(variance - (half**2).sum(axis=0), 1e-12))

    def _between(self, some: Points, others: Points) -> Floats:
        lengths = np.exp(self.theta[: self._d])
        level, course, common, own, own_course, _, span = np.exp(self.theta[self._d :])
        a, b = some.recipes / lengths, others.recipes / lengths
        squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
        alike = matern(np.sqrt(np.maximum(squared, 0.0)))
        near = matern(np.abs(some.epochs[:, None] - others.epochs[None, :]) / span)
        same = (some.trials[:, None] == others.trials[None, :]) & (some.trials[:, None] >= 0)
        return alike * (level + course * near) + common * near + same * (own + own_course * near)

    def _loss(self, theta: Floats, squares: Floats, spans: Floats, same: Floats, y: Floats) -> tuple[float, Floats]:
        """The negative log posterior of the parameters, and its gradient."""
        d, n = self._d, len(y)
        inverse = np.exp(-2 * theta[:d])
        level, course, common, own, own_course, noise, span = np.exp(theta[d:])
        distance = np.sqrt(np.einsum("kij,k->ij", squares, inverse))
        decay = np.exp(-SQRT5 * distance)
        alike = (1 + SQRT5 * distance + 5 / 3 * distance**2) * decay
        ratio = spans / span
        fade = np.exp(-SQRT5 * ratio)
        near = (1 + SQRT5 * ratio + 5 / 3 * ratio**2) * fade
        over = level + course * near
        covariance = alike * over + common * near + same * (own + own_course * near)
        covariance[np.diag_indices(n)] += noise + JITTER
        try:
            root = cholesky(covariance, lower=True)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        weights = cho_solve((root, True), y)
        away = (theta - self.prior_mean) / self.prior_deviation
        loss = 0.5 * y @ weights + np.log(np.diag(root)).sum() + 0.5 * away @ away
        # d loss / d K, then each parameter's share by the chain rule.
        outer = 0.5 * (cho_solve((root, True), np.eye(n)) - np.outer(weights, weights))
        slope = outer * over * (5 / 3) * (1 + SQRT5 * distance) * decay
        gradient = np.empty_like(theta)
        gradient[:d] = np.einsum("kij,ij->k", squares, slope) * inverse
        by_near = outer * near
        gradient[d] = level * (outer * alike).sum()
        gradient[d + 1] = course * (by_near * alike).sum()
        gradient[d + 2] = common * by_near.sum()
        gradient[d + 3] = own * (outer * same).sum()
        gradient[d + 4] = own_course * (by_near * same).sum()
        gradient[d + 5] = noise * np.trace(outer)
        bend = (5 / 3) * ratio**2 * (1 + SQRT5 * ratio) * fade
        gradient[d + 6] = (outer * bend * (course * alike + common + own_course * same)).sum()
        return float(loss), gradient + away / self.prior_deviation
