"""A study as rules look at it: which trials count, how well each stands, where in its range each knob was.

A pruned trial has no final value. So trials are compared two by two at the last epoch that both have reached, and a
trial's *standing* is the share of the others that it beats (a Borda count): of trials that trained to their end it is
their rank, and one that was stopped is behind those that were better by then. A diverged trial loses to all that did
not. Lower is better inside, whichever way the metric goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.advice.statistics import Bools, Floats
from search.confirmation import Confirmation
from search.recipe_space import share
from search.wishes import is_number
from storage.outcomes import Outcome
from storage.records import RecordedTrial
from storage.studies import StudyRecord

# How much of the judged trials are called the best ones: a fifth, and at least five.
BEST_SHARE, FEWEST_BEST = 0.2, 5
# So many trials before and after one are of its time; or so many in a row.
CONTEMPORARIES, STRETCH = 8, 15
# What every recipe of Dialin's has; whatever else a trial suggested is its author's.
RECIPE = {"optimizer", "lr", "weight_decay", "batch_size", "schedule", "warmup"}


@dataclass(frozen=True, eq=False)
class Knob:
    """A knob over the judged trials that have it, and had it from within its present range.

    Attributes:
        own: the model's own, or a loop's; else the recipe's.
        rows: the trials, as indices into what belongs to judged trials.
        shares: where in the (log) range each was, from 0 to 1; the index of a choice.
        always: every judged trial has it.
    """

    name: str
    distribution: BaseDistribution
    own: bool
    rows: NDArray[np.int64]
    shares: Floats
    always: bool

    @property
    def choices(self) -> tuple[Any, ...]:
        """Empty for a range."""
        return self.distribution.choices if isinstance(self.distribution, CategoricalDistribution) else ()

    @property
    def ordered(self) -> bool:
        """Whether more and less mean anything: a range, or three numbers and more to choose from."""
        if not isinstance(self.distribution, CategoricalDistribution):
            return True
        return len(self.choices) > 2 and all(map(is_number, self.choices)) and [*self.choices] == sorted(self.choices)

    @property
    def places(self) -> Floats:
        """Of an ordered knob the place in its range from 0 to 1, for choices too."""
        return self.shares / (len(self.choices) - 1) if self.choices else self.shares


class Evidence:
    """All of a study's trials, and of the judged ones, in their order, `standing`, `curves` and knobs.

    `answer`: what fresh seeds of the best recipes have shown; None where nobody has asked.
    """

    def __init__(self, study: StudyRecord, trials: Sequence[RecordedTrial], answer: Confirmation | None = None) -> None:
        self.study, self.trials, self.answer = study, tuple(trials), answer
        self.sign = -1.0 if study.direction == "maximize" else 1.0
        self.judged = tuple(one for one in trials if _is_judged(one))

    @cached_property
    def curves(self) -> tuple[Floats, ...]:
        """Of each judged trial the lowest value so far by epoch; NaN before its first value."""
        return tuple(self._lowest(one) for one in self.judged)

    def values(self, trial: RecordedTrial) -> Floats:
        """The value of each epoch on record, lower is better; NaN where it has none, or no finite one."""
        found = [math.nan if epoch.value is None else self.sign * epoch.value for epoch in trial.epochs]
        values = np.asarray(found, dtype=np.float64)
        return np.where(np.isfinite(values), values, math.nan)

    def _lowest(self, trial: RecordedTrial) -> Floats:
        values = self.values(trial)
        lowest = np.fmin.accumulate(values) if len(values) else values
        if not len(values) and trial.value is not None:  # told without an epoch
            return np.asarray([self.sign * trial.value])
        return lowest

    @cached_property
    def complete(self) -> Bools:
        """Trained to its end, with a finite value, and keeps to its constraints."""
        return np.asarray([self._counts(one) for one in self.judged], dtype=np.bool_)

    def _counts(self, trial: RecordedTrial) -> bool:
        finite = trial.value is not None and math.isfinite(trial.value)
        return trial.outcome is Outcome.COMPLETE and finite and trial.feasible

    @cached_property
    def final(self) -> Floats:
        """The value of each complete trial, lower is better; NaN of the others."""
        pairs = zip(self.judged, self.complete, strict=True)
        return np.asarray([self.sign * (one.value or 0.0) if complete else math.nan for one, complete in pairs])

    @cached_property
    def diverged(self) -> Bools:
        return np.asarray([one.outcome is Outcome.DIVERGED for one in self.judged], dtype=np.bool_)

    @cached_property
    def standing(self) -> Floats:
        """Of each judged trial the share of the others that it beats."""
        table, reach = self._table()
        scores = np.zeros(len(self.judged))
        feasible = np.asarray([one.feasible for one in self.judged], dtype=np.bool_)
        rank = self.diverged.astype(np.int64) * 2 + ~feasible  # whoever is lower here wins, whatever the values are
        everyone = np.arange(len(self.judged))
        for index in everyone:
            common = np.minimum(reach[index], reach)
            mine, theirs = table[index, common], table[everyone, common]
            won = np.where(mine < theirs, 1.0, np.where(mine == theirs, 0.5, 0.0))
            won = np.where(np.isnan(mine) | np.isnan(theirs), 0.5, won)
            won = np.where(rank == rank[index], won, rank > rank[index])
            scores[index] = won.sum() - won[index]
        return scores / max(1, len(self.judged) - 1)

    def _table(self) -> tuple[Floats, NDArray[np.int64]]:
        """A row a trial with its lowest value by epoch, in the last column its final one; and the last it has reached.

        A trial out of patience has reached the end, with its last value.
        """
        length = max((len(curve) for curve in self.curves), default=1)
        table = np.full((len(self.curves), length + 1), math.nan)
        reach = np.zeros(len(self.curves), dtype=np.int64)
        for row, (curve, final) in enumerate(zip(self.curves, self.final, strict=True)):
            table[row, : len(curve)] = curve
            reach[row] = len(curve) - 1
            if not math.isnan(final):
                table[row, len(curve) : length] = curve[-1] if len(curve) else final
                table[row, length], reach[row] = final, length
        return table, reach

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """Of each judged trial its place among stretches of trials, one after the other, that are of one time."""
        stretches = max(1, round(len(self.judged) / STRETCH))
        return np.arange(len(self.judged)) * stretches // max(1, len(self.judged))

    @cached_property
    def beside(self) -> Floats:
        """Of each judged trial its standing beside those of its time: more than 0 for one that is better than they.

        A sampler that learns leaves what seems bad early on, when its other choices were no good either.
        """
        standing, reach = self.standing, CONTEMPORARIES
        usual = [np.median(standing[max(0, n - reach) : n + reach + 1]) for n in range(len(standing))]
        return standing - np.asarray(usual, dtype=np.float64)

    @cached_property
    def best(self) -> NDArray[np.int64]:
        """Indices of the best judged trials that may be ranked, the best first."""
        allowed = [index for index in self.ranked if not self.diverged[index] and self.judged[index].feasible]
        return np.asarray(allowed[: max(FEWEST_BEST, round(BEST_SHARE * len(self.judged)))], dtype=np.int64)

    @cached_property
    def ranked(self) -> NDArray[np.int64]:
        """Indices of all judged trials by standing, the best first; of equal ones the earlier."""
        return np.argsort(-self.standing, kind="stable")

    @cached_property
    def best_complete(self) -> NDArray[np.int64]:
        """Indices of the complete trials by value, the best first."""
        order = np.argsort(self.final, kind="stable")
        return order[: int(self.complete.sum())]

    @cached_property
    def seconds_an_epoch(self) -> Floats:
        """The median of each judged trial's epochs; NaN without one. The first of several is left out: it warms up."""
        found = [[epoch.seconds for epoch in one.epochs][len(one.epochs) > 1 :] for one in self.judged]
        return np.asarray([float(np.median(times)) if times else math.nan for times in found])

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """What was searched: every knob with more than one value, in the range that was used last."""
        last: dict[str, BaseDistribution] = {}
        for one in self.judged:
            last |= one.distributions
        own = {name for one in self.judged for name in one.model}
        recipes = any(RECIPE.issubset(one.recipe) for one in self.judged)
        found = (self._knob(name, d, name in own or not recipes) for name, d in last.items() if not d.single())
        return tuple(knob for knob in found if len(knob.rows))

    def _knob(self, name: str, distribution: BaseDistribution, own: bool) -> Knob:
        had = [n for n, one in enumerate(self.judged) if name in one.params and _inside(distribution, one.params[name])]
        places = [share(distribution, self.judged[index].params[name]) for index in had]
        rows, shares = np.asarray(had, dtype=np.int64), np.asarray(places, dtype=np.float64)
        return Knob(name, distribution, own, rows, shares, len(had) == len(self.judged))

    def knob(self, *names: str) -> Knob | None:
        """The first of these that is searched."""
        known = {knob.name: knob for knob in self.knobs}
        return next((known[name] for name in names if name in known), None)

    def shown(self, value: float) -> float:
        """A value as the metric has it."""
        return self.sign * value


def _is_judged(trial: RecordedTrial) -> bool:
    """Settled on its merits, or paused: it says something of its recipe."""
    if trial.outcome is Outcome.DIVERGED:
        return bool(trial.params)
    told = any(epoch.value is not None for epoch in trial.epochs) or trial.outcome is Outcome.COMPLETE
    return (trial.outcome in (Outcome.COMPLETE, Outcome.PRUNED) or trial.state == "paused") and told


def _inside(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return is_number(value) and distribution.low <= value <= distribution.high
