"""Recipes as rows of numbers: what a model of them is fitted to, and new ones drawn at random or near good ones.

Mixed and conditional spaces, known only from what trials suggested so far: which parameters go together is taken from
a trial that had them together. Called by `search.improvement` and `search.advice`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.strategy import Seen

Floats = NDArray[np.float64]

# One in so many neighbours takes the choices (and what hangs on them) of another trial.
CROSSED = 4


class RecipeSpace:
    """What the trials so far have suggested, each parameter in the range that was used last.

    A row has a column a parameter: a number as its share of the (log) range, a choice as its index, NaN for what the
    recipe does not have.
    """

    def __init__(self) -> None:
        self.distributions: dict[str, BaseDistribution] = {}
        self._rows: list[Floats] = []
        self._read: list[Mapping[str, Any]] = []

    def learn(self, seen: Sequence[Seen]) -> None:
        """Take in the trials that are new, and again all where a range has changed."""
        start = len(self._rows)
        if len(seen) < start or any(one.recipe != before for one, before in zip(seen, self._read, strict=False)):
            start = 0
        merged = dict(self.distributions) if start else {}
        for one in seen[start:]:
            merged |= one.distributions
        if merged != self.distributions:
            self.distributions, start = merged, 0
        self._rows[start:] = [self.row(one.recipe) for one in seen[start:]]
        self._read[start:] = [one.recipe for one in seen[start:]]

    @property
    def rows(self) -> Floats:
        """Of all trials, in their order."""
        return np.stack(self._rows)

    def row(self, recipe: Mapping[str, Any]) -> Floats:
        """One recipe."""
        values = [share(d, recipe[name]) if name in recipe else math.nan for name, d in self.distributions.items()]
        return np.asarray(values, dtype=np.float64)

    def recipe(self, row: Floats) -> dict[str, Any]:
        """What a row stands for."""
        pairs = zip(self.distributions.items(), row, strict=True)
        return {name: value_at(d, float(share)) for (name, d), share in pairs if not math.isnan(share)}

    def features(self, rows: Floats) -> Floats:
        """Rows in the unit cube: a choice is one column an option, and what a recipe does not have is in the middle."""
        columns: list[Floats] = []
        for column, d in zip(rows.T, self.distributions.values(), strict=True):
            if isinstance(d, CategoricalDistribution):
                columns += [(column == index).astype(np.float64) for index in range(len(d.choices))]
            else:
                columns.append(np.where(np.isnan(column), 0.5, column))
        return np.stack(columns, axis=1)

    def random(self, rng: np.random.Generator, count: int) -> Floats:
        """Rows with the parameters of some trial, every number and every choice that nothing hangs on drawn anew."""
        rows = self.rows[rng.integers(len(self._rows), size=count)]
        free = self._free
        for index, d in enumerate(self.distributions.values()):
            if d.single():
                continue
            if not isinstance(d, CategoricalDistribution):
                drawn = rng.random(count)
            elif free:
                drawn = rng.integers(len(d.choices), size=count).astype(np.float64)
            else:
                continue
            rows[:, index] = np.where(np.isnan(rows[:, index]), math.nan, drawn)
        return self._rounded(rows)

    def near(self, rng: np.random.Generator, parents: Floats, spread: float) -> Floats:
        """A neighbour of each row: about half of its numbers moved by `spread`, some of its choices made anew."""
        rows, (count, width) = parents.copy(), parents.shape
        others = self.rows[rng.integers(len(self._rows), size=count)]
        crossed = (rng.integers(CROSSED, size=count) == 0)[:, None]
        free, moved = self._free, rng.random((count, width)) < 0.5
        moved[np.arange(count), rng.integers(width, size=count)] = True
        for index, d in enumerate(self.distributions.values()):
            own, other = rows[:, index], others[:, index]
            if isinstance(d, CategoricalDistribution):
                if free:
                    drawn = rng.integers(len(d.choices), size=count)
                    own = np.where(moved[:, index] & (rng.random(count) < 0.2), drawn, own)
                elif crossed.any():
                    own = np.where(crossed[:, 0], other, own)
            else:
                step = np.where(moved[:, index], rng.normal(0, spread, count), 0.0) * (not d.single())
                own = np.where(crossed[:, 0] & (np.isnan(own) | np.isnan(other)), other, np.clip(own + step, 0, 1))
            rows[:, index] = own
        return self._rounded(rows)

    @property
    def _free(self) -> bool:
        """Whether nothing hangs on a choice: every trial has every parameter."""
        return not np.isnan(self.rows).any()

    def _rounded(self, rows: Floats) -> Floats:
        """Where a parameter has steps, on the nearest one."""
        for index, d in enumerate(self.distributions.values()):
            if isinstance(d, IntDistribution) or (isinstance(d, FloatDistribution) and d.step is not None):
                rows[:, index] = _shares(d, _values(d, rows[:, index]))
        return rows


def _limits(d: FloatDistribution | IntDistribution) -> tuple[float, float]:
    return (math.log(d.low), math.log(d.high)) if d.log else (float(d.low), float(d.high))


def _shares(d: FloatDistribution | IntDistribution, values: Floats) -> Floats:
    low, high = _limits(d)
    if high <= low:
        return np.where(np.isnan(values), math.nan, 0.5)
    return np.clip(((np.log(values) if d.log else values) - low) / (high - low), 0.0, 1.0)


def _values(d: FloatDistribution | IntDistribution, shares: Floats) -> Floats:
    low, high = _limits(d)
    values = low + shares * (high - low)
    if d.log:
        values = np.exp(values)
    if d.step is not None:
        values = d.low + np.round((values - d.low) / d.step) * d.step
    return np.clip(values, d.low, d.high)


def share(d: BaseDistribution, value: Any) -> float:
    if isinstance(d, CategoricalDistribution):
        return float(d.to_internal_repr(value)) if value in d.choices else math.nan
    assert isinstance(d, FloatDistribution | IntDistribution)
    return float(_shares(d, np.asarray(float(value))))


def value_at(d: BaseDistribution, share: float) -> Any:
    if isinstance(d, CategoricalDistribution):
        return d.choices[round(share)]
    assert isinstance(d, FloatDistribution | IntDistribution)
    value = float(_values(d, np.asarray(share)))
    return round(value) if isinstance(d, IntDistribution) else value
