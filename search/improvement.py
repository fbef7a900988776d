"""What improves most on the best value for its cost, by a model of the learning curves: a paused trial or a new recipe.

Called by `search.auto` for the half of its decisions that a model makes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from search.curve_model import EXTRA, CurveModel, Points
from search.curve_points import Curves
from search.epoch_cost import EpochCost
from search.recipe_space import RecipeSpace
from search.strategy import GoOn, Seen, SeenState, Start

Floats = NDArray[np.float64]

# What a new trial was started for.
RANDOM, NEIGHBOUR, MODEL = "random", "neighbour", "model"
# Points that the model is fitted to: a decision takes the cube of their number.
POINTS = 250
# It is fitted anew when so many times the epochs are on record, in so many steps.
GROWTH, STEPS = 1.3, 15
# Recipes drawn at random and near the best trials, and more near so many of the most promising ones.
DRAWN, LEADERS, AROUND = 100, 8, 10
# How near, in shares of a range; the promising ones' neighbours in as many rounds.
NEAR = (0.1, 0.03)
NEARER = (0.05, 0.025)
# Whose neighbours start without the model's word, and how near they are.
PARENTS, NEIGHBOURHOOD = 5, 0.1
# The power of what is to be paid that a promise is divided by. A trial that is nearly done is cheap to finish, and a
# small network cheap to train, but neither is worth all that its price alone would say.
PRICED = 0.25
# Values worse than this, in distances of the median trial from the best one, say no more: they have diverged.
CAP = 100.0
# Added under the root, so that the best value so far is no sharp tip of what the model sees.
SOFTENED = 0.1


class Improver:
    """Keeps the model's parameters from one decision to the next; the rest is what is on record."""

    def __init__(self) -> None:
        self._space = RecipeSpace()
        self._theta: Floats | None = None
        self._fitted_at = 0

    def choose(
        self,
        seen: Sequence[Seen],
        paused: Sequence[Seen],
        curves: Curves,
        length: int,
        may_start: bool,
        rng: np.random.Generator,
        timed: bool,
    ) -> Start | GoOn | None:
        """The best of the paused trials and, if one may start, of new recipes; None where there are neither.

        `timed`: a trial costs what its epochs take; else all epochs cost the same.
        """
        if not paused and not may_start:
            return None
        if not timed:
            seen, paused = ([replace(one, seconds=0.0) for one in some] for some in (seen, paused))
        known = _known(seen, curves)
        if not known:
            return Start(None, RANDOM) if may_start else GoOn(paused[0].number)
        self._space.learn(known)
        rows = self._space.rows
        look = self._look(known, rows, curves, length, rng)
        number_of = {one.number: index for index, one in enumerate(known)}
        waiting = [one for one in paused if one.number in number_of]
        old = look.waiting(waiting, rows[[number_of[one.number] for one in waiting]], curves)
        if not may_start:
            return GoOn(waiting[int(np.argmax(old))].number) if waiting else GoOn(paused[0].number)
        new, scores = self._candidates(look, known, curves, rng)
        scores = np.where(self._met(new, rows), -1.0, scores)
        best = int(np.argmax(scores))
        if len(old) and old.max() >= scores[best]:
            return GoOn(waiting[int(np.argmax(old))].number)
        if scores[best] < 0:
            return Start(None, RANDOM)
        return Start(self._space.recipe(new[best]), MODEL)

    def neighbour(self, seen: Sequence[Seen], curves: Curves, rng: np.random.Generator) -> Start:
        """A recipe near that of one of the best trials; a random one while there are none, or nothing new is near."""
        known = _known(seen, curves)
        if known:
            self._space.learn(known)
            best = self._space.rows[_best(known, curves, PARENTS)]
            rows = self._space.near(rng, rng.choice(best, AROUND), NEIGHBOURHOOD)
            new = rows[~self._met(rows, self._space.rows)]
            if len(new):
                return Start(self._space.recipe(new[0]), NEIGHBOUR)
        return Start(None, RANDOM)

    def _look(self, known: Sequence[Seen], rows: Floats, curves: Curves, length: int, rng: np.random.Generator) -> Look:
        """The model, conditioned on what is on record."""
        features = self._space.features(rows)
        points, values = _points(known, features, curves, length, rng)
        width = features.shape[1]
        fresh = self._theta is None or len(self._theta) != width + len(EXTRA)
        model = CurveModel(width, None if fresh else self._theta)
        if fresh or curves.total > GROWTH * self._fitted_at or curves.total < self._fitted_at:
            model.fit(points, values, STEPS)
            self._theta, self._fitted_at = model.theta, curves.total
        else:
            model.condition(points, values)
        cost = EpochCost.fitted(features, _paces(known, curves))
        return Look(model, self._space, float(values.min()), length, cost)

    def _candidates(
        self, look: Look, known: Sequence[Seen], curves: Curves, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """New recipes and what each promises."""
        leaders = self._space.rows[_best(known, curves, LEADERS)]
        parents = leaders[np.arange(DRAWN) % len(leaders)]
        near = [self._space.near(rng, parents, spread) for spread in NEAR]
        rows = np.concatenate([self._space.random(rng, DRAWN), *near])
        scores = look.new(rows)
        for spread in NEARER:
            best = rows[np.argsort(-scores, kind="stable")[:AROUND]]
            more = self._space.near(rng, np.repeat(best, AROUND, axis=0), spread)
            rows, scores = np.concatenate([rows, more]), np.concatenate([scores, look.new(more)])
        return rows, scores

    @staticmethod
    def _met(rows: Floats, before: Floats) -> NDArray[np.bool_]:
        """Which of the rows a trial has already had."""
        some, others = np.nan_to_num(rows, nan=-1.0), np.nan_to_num(before, nan=-1.0)
        known = {row.tobytes() for row in np.round(others, 9) + 0.0}
        return np.asarray([row.tobytes() in known for row in np.round(some, 9) + 0.0], dtype=bool)


@dataclass(frozen=True)
class Look:
    """The expected improvement on `best` at the end of training, over a power of what is to be paid for it."""

    model: CurveModel
    space: RecipeSpace
    best: float
    length: int
    cost: EpochCost

    def waiting(self, paused: Sequence[Seen], rows: Floats, curves: Curves) -> Floats:
        """What each paused trial promises."""
        if not paused:
            return np.empty(0)
        reached = np.asarray([curves.reached(one.number) for one in paused])
        own, features = _paces(paused, curves), self.space.features(rows)
        paces = np.where(own > 0, own, self.cost.of(features))
        numbers = np.asarray([one.number for one in paused])
        return self._scores(features, numbers, np.maximum(self.length - reached, 1) * paces)

    def new(self, rows: Floats) -> Floats:
        """What each recipe promises."""
        features = self.space.features(rows)
        return self._scores(features, np.full(len(rows), -1), self.length * self.cost.of(features))

    def _scores(self, features: Floats, numbers: NDArray[np.int64], costs: Floats) -> Floats:
        at_the_end = Points(features, np.ones(len(features)), numbers)
        mean, deviation = self.model.predict(at_the_end)
        z = (self.best - mean) / deviation
        expected = deviation * (z * ndtr(z) + np.exp(-z * z / 2) / math.sqrt(2 * math.pi))
        return expected / costs**PRICED


def _known(seen: Sequence[Seen], curves: Curves) -> list[Seen]:
    """The trials that say something of recipes; none as long as no value is on record."""
    known = [one for one in seen if one.state is not SeenState.FAILED and one.recipe]
    return known if any(curves.reached(one.number) for one in known) else []


def _best(known: Sequence[Seen], curves: Curves, most: int) -> NDArray[np.int64]:
    """The places of the best trials among those that have a value."""
    lows = np.asarray([curves.low(one.number) for one in known])
    order = np.argsort(lows, kind="stable")[:most]
    return order[np.isfinite(lows[order])]


def _paces(some: Sequence[Seen], curves: Curves) -> Floats:
    """Seconds an epoch of each; 0 where nobody knows."""
    return np.asarray([one.seconds / max(curves.reached(one.number), 1) for one in some])


def _points(
    known: Sequence[Seen], features: Floats, curves: Curves, length: int, rng: np.random.Generator
) -> tuple[Points, Floats]:
    """Each curve at its last epoch and at the powers of two; one that ended early, at the end too."""
    found: list[tuple[int, int, float, bool, float]] = []
    for index, one in enumerate(known):
        run = curves.run(one.number)
        if not len(run):
            if one.state is SeenState.PRUNED or not one.feasible:  # or it diverged at once
                found.append((index, length, math.inf, True, math.inf))
            continue
        last, low = len(run), float(run[-1])
        found += [(index, 2**k, float(run[2**k - 1]), False, low) for k in range((last - 1).bit_length())]
        found.append((index, last, low, True, low))
        if last < length and one.state in (SeenState.COMPLETE, SeenState.PRUNED):
            found.append((index, length, low, True, low))
    if len(found) > POINTS:
        found = _fewer(found, rng)
    owners, epochs, raw = (np.asarray(column) for column in list(zip(*found, strict=True))[:3])
    numbers = np.asarray([one.number for one in known])[owners]
    shares = np.log(epochs.astype(np.float64)) / math.log(max(length, 2))
    return Points(features[owners], np.minimum(shares, 1.0), numbers), _scaled(
        raw, [curves.low(one.number) for one in known]
    )


def _fewer(
    found: list[tuple[int, int, float, bool, float]], rng: np.random.Generator
) -> list[tuple[int, int, float, bool, float]]:
    """The last points of the best trials, and of the rest as many at random."""
    found = sorted(found, key=lambda point: (not point[3], point[4]))
    sure = POINTS // 2
    rest = rng.permutation(len(found) - sure)[: POINTS - sure] + sure
    return found[:sure] + [found[index] for index in rest]


def _scaled(values: Floats, lows: Sequence[float]) -> Floats:
    """0.1 for the best value of all, the more the worse.

    The root tells good ones apart from the best; the logarithm keeps bad ones, whose order says something too, near.
    """
    finite = np.asarray([low for low in lows if math.isfinite(low)])
    best, middle = float(finite.min()), float(np.median(finite))
    over = (values - best) / (middle - best if middle > best else 1.0)
    over = np.clip(over, 0.0, CAP)
    return np.sqrt(np.where(over > 1.0, 1.0 + np.log(np.maximum(over, 1.0)), over) + SOFTENED)
