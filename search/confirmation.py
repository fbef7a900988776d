"""The answer of a confirmation: recipes ranked by their mean over seeds, which of them tie, and which is preferred.

`read` makes one of what is on record, for commands and for Python. No torch here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from search.intervals import FLOAT_NOISE, Interval, of_difference, of_mean, resolution, seeds_to_tell
from storage import confirmations, confirmed, queries, studies
from storage.confirmed import Opened, Seed
from storage.outcomes import Outcome
from storage.queries import RankedTrial
from storage.shared import SharedStorage
from storage.studies import StudyRecord

# A mean of fewer seeds has no interval.
LEAST = 2
# Of two recipes that tie the cheaper is preferred where it takes so much less time, and where so many of its seeds,
# each beside each of the other's, took less: on a machine that does other things too seconds of one and the same recipe
# vary by some percent as a rule, and now and then threefold.
CHEAPER, MOSTLY = 0.9, 0.8
OPEN = ("waiting", "running", "adoptable", "paused")
UNKNOWN = Interval(math.nan, -math.inf, math.inf)


@dataclass(frozen=True)
class Confirmed:
    """A recipe, by the trial of the search that had it, and what fresh seeds made of it.

    Attributes:
        found: that trial; its value is the one that the search saw.
        values: the searched metric of each seed that was trained to its end, by the number of its trial.
        violating: how many of these violate a constraint.
        times: seconds of device time that each of these took.
        ended: how many ended otherwise, by outcome. left: how many are still to end.
        weights: those of the trials whose weights are on record.
        mean: of the values, with its interval.
        behind: by how much its mean is worse than the best one, with an interval; None: it is the best, or one of the
            two has too few seeds.
    """

    found: RankedTrial
    values: Mapping[int, float]
    times: tuple[float, ...] = ()
    ended: Mapping[str, int] = field(default_factory=dict)
    left: int = 0
    violating: int = 0
    weights: frozenset[int] = frozenset()
    mean: Interval = UNKNOWN
    behind: Interval | None = None

    @property
    def trial(self) -> int:
        """The number of the search's trial."""
        return self.found.number

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The real training knobs (lr, batch_size, ...)."""
        return dict(self.found.attrs.get("settings", {}))

    @property
    def model(self) -> Mapping[str, Any]:
        """The model's own knobs."""
        return dict(self.found.attrs.get("model", {}))

    @property
    def seconds(self) -> float:
        """Of device time that such a trial takes: the median, since a busy machine makes some take long."""
        return median(self.times) if self.times else 0.0

    @property
    def is_confirmed(self) -> bool:
        """Whether it has seeds enough for an interval."""
        return len(self.values) >= LEAST

    @property
    def failed(self) -> int:
        """Seeds that were not trained to their end."""
        return sum(self.ended.values())

    @property
    def unfit(self) -> int:
        """Seeds that failed, or violate a constraint."""
        return self.failed + self.violating

    def is_cheaper(self, than: Confirmed) -> bool:
        """Whether it takes so much less time that it is preferred where the two tie."""
        pairs = [mine < theirs for mine in self.times for theirs in than.times]
        return self.seconds < CHEAPER * than.seconds and sum(pairs) >= MOSTLY * len(pairs)

    def equals(self, other: Confirmed) -> bool:
        """Whether both have the same mean, but for what floats make of it."""
        return math.isclose(self.mean.estimate, other.mean.estimate, rel_tol=FLOAT_NOISE)


@dataclass(frozen=True)
class Confirmation:
    """What is known of a study's best recipes.

    Attributes:
        study: its name. name: that of the study that trains the recipes again.
        metric, direction: of the search.
        seeds: wanted of each recipe. top: so many of the search's best were wanted.
        resolution: how far apart the metric's values lie at least.
        recipes: the preferred one first, then by mean; those of which a seed failed, or violates a constraint, come
            after.
        finished: whether all seeds have ended.
        tests: what the test split said, in the order in which it was opened.
    """

    study: str
    name: str
    metric: str
    direction: str
    top: int
    seeds: int
    recipes: tuple[Confirmed, ...]
    resolution: float = 0.0
    finished: bool = True
    tests: tuple[Opened, ...] = ()

    @property
    def confirmed(self) -> tuple[Confirmed, ...]:
        """The recipes that have seeds enough."""
        return tuple(one for one in self.recipes if one.is_confirmed)

    @property
    def winner(self) -> Confirmed | None:
        """The recipe that is preferred; None before one has seeds enough."""
        return next(iter(self.confirmed), None)

    @property
    def best(self) -> Confirmed | None:
        """The recipe with the best mean."""
        return next((one for one in self.confirmed if one.behind is None), None)

    @property
    def ties(self) -> tuple[Confirmed, ...]:
        """Those that cannot be told from the best one, by their means."""
        best = self.best
        return () if best is None else tuple(sorted(_tied(best, self.confirmed), key=_distance))

    @property
    def more_seeds(self) -> int | None:
        """With how many seeds of each, more than there are, the best could be told from the nearest of those that tie.

        None: nothing ties with it, or so small a difference is worth no more seeds.
        """
        best, nearest = self.best, next(iter(self.ties), None)
        if best is None or nearest is None or nearest.equals(best):
            return None
        values = [*best.values.values()], [*nearest.values.values()]
        return seeds_to_tell(*values, self.seeds, len(self.confirmed) - 1, self.resolution)

    @property
    def test(self) -> Opened | None:
        """What the test split said of the winner; None before it was opened."""
        return next((one for one in self.tests if self.winner is not None and one.recipe == self.winner.trial), None)

    @property
    def best_seed(self) -> int | None:
        """The number, in the confirmation, of that trial of the winner's that has the best value, and its weights."""
        if self.winner is None:
            return None
        values, best = self.winner.values, max if self.direction == "maximize" else min
        return best(self.winner.weights or values, key=lambda trial: values[trial])

    @property
    def rivals(self) -> list[int]:
        """The recipes that more seeds may yet prefer, by their trials."""
        return [one.trial for one in (*self.ties, self.best) if one is not None]


def mean_on_test(said: Opened, metric: str) -> Interval | None:
    """The mean over the models of a metric on the test split; None: there is none, or no such metric."""
    values = [metrics[metric] for metrics in (said.models or {}).values() if metric in metrics]
    return of_mean(values) if values and all(map(math.isfinite, values)) else None


def read(storage: SharedStorage, study: StudyRecord) -> Confirmation | None:
    """What is on record of a study's confirmation; None: there is none."""
    record = confirmations.of(storage, study)
    link = confirmations.link_of(storage, record.study_id) if record is not None else None
    if record is None or link is None:
        return None
    found = {one.number: one for one in queries.best(storage, study, None, [one.trial for one in link.recipes])}
    seeds, apart = confirmed.seeds(storage, record), apart_by(confirmed.values_seen(storage, record), len(link.recipes))
    recipes = [_of_recipe(found[one.trial], seeds, apart) for one in link.recipes if one.trial in found]
    return Confirmation(
        study=study.name,
        name=record.name,
        metric=study.metric,
        direction=study.direction,
        top=link.top,
        seeds=link.seeds,
        recipes=rank(recipes, study.direction, apart),
        resolution=apart,
        finished=queries.status(storage, record).finished and not any(one.left for one in recipes),
        tests=tuple(confirmed.opened(storage, record)),
    )


def apart_by(values: Sequence[float], recipes: int) -> float:
    """The metric's resolution by values that were seen of so many recipes; 0: they do not tell.

    No more different values than recipes lie apart because the recipes do, as those of a function without chance.
    """
    return resolution(values) if len({*values}) > recipes else 0.0


def _of_recipe(found: RankedTrial, seeds: Sequence[Seed], apart: float) -> Confirmed:
    """What its seeds came to. What raised is enqueued again, and no seed that ended."""
    mine = [seed for seed in seeds if seed.recipe == found.number]
    whole = [seed for seed in mine if seed.value is not None]
    ended = Counter(seed.state for seed in mine if seed.value is None and seed.state not in (*OPEN, Outcome.ERROR))
    values = {seed.trial: seed.value for seed in whole if seed.value is not None}
    return Confirmed(
        found,
        values,
        times=tuple(seed.seconds for seed in whole),
        ended=dict(ended),
        left=sum(seed.state in OPEN for seed in mine),
        violating=sum(not seed.feasible for seed in whole),
        weights=frozenset(seed.trial for seed in whole if seed.weights),
        mean=of_mean([*values.values()], apart) if values else UNKNOWN,
    )


def weights_of(
    storage: SharedStorage, study: StudyRecord, trial: int, answer: Confirmation | None
) -> tuple[StudyRecord, int]:
    """Study and trial whose weights stand for the recipe of a study's trial.

    Of the recipe that a confirmation prefers its best seed's, which the test split has seen; else the trial's own.
    """
    if answer is None or answer.winner is None or answer.winner.trial != trial or answer.best_seed is None:
        return study, trial
    return studies.find(storage, answer.name), answer.best_seed


def rank(recipes: Sequence[Confirmed], direction: str, apart: float = 0.0) -> tuple[Confirmed, ...]:
    """The preferred one first, then by mean; unfit ones after the others, those without a mean last.

    Preferred is the best mean, unless recipes that cannot be told from it have a mean within its own interval and are
    cheaper: then the cheapest of those. `apart`: the metric's resolution.
    """
    sign = 1.0 if direction == "maximize" else -1.0

    def place(one: Confirmed) -> tuple[Any, ...]:
        return not one.is_confirmed, one.unfit, -sign * one.mean.estimate, one.trial

    ordered = sorted((one for one in recipes if one.values), key=place)
    rest = sorted((one for one in recipes if not one.values), key=lambda one: one.trial)
    if not ordered or not ordered[0].is_confirmed:
        return (*ordered, *rest)
    best, others = ordered[0], [one for one in ordered[1:] if one.is_confirmed]
    compared = [replace(one, behind=_behind(best, one, sign, len(others), apart)) for one in others]
    ordered = [best, *compared, *ordered[1 + len(others) :]]
    preferred = _preferred(best, compared)
    return (preferred, *(one for one in ordered if one is not preferred), *rest)


def _behind(best: Confirmed, other: Confirmed, sign: float, comparisons: int, apart: float) -> Interval:
    mine, theirs = ([sign * value for value in one.values.values()] for one in (best, other))
    return of_difference(mine, theirs, comparisons, apart)


def _preferred(best: Confirmed, others: Sequence[Confirmed]) -> Confirmed:
    """An unsteady recipe ties with anything: its mean must lie in the best one's interval too."""
    near = [one for one in _tied(best, others) if best.mean.holds(one.mean.estimate) and one.is_cheaper(best)]
    return min(near, key=lambda one: one.seconds, default=best)


def _tied(best: Confirmed, others: Sequence[Confirmed]) -> list[Confirmed]:
    """Those that no interval tells from the best, and of which as many seeds are fit."""
    return [one for one in others if one.behind and one.behind.holds(0.0) and one.unfit == best.unfit]


def _distance(one: Confirmed) -> float:
    """To the best mean."""
    return one.behind.estimate if one.behind is not None else 0.0
