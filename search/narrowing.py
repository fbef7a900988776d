"""A person's wish for a knob, by the name they use, as a narrower distribution: `lr=1e-4:1e-2`, `optimizer=adamw`.

`Objective.knobs` holds such wishes, `search.space` narrows the recipe's knobs by them and `Objective.task` the model's
own, so that the sampler, the database and the dashboard all see the narrowed range. How wishes are written is
`search.wishes`'.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from search.errors import ObjectiveError
from search.knobs import Knob, Row
from search.optimizers import OPTIMIZERS
from search.schedules import SCHEDULES
from search.wishes import (
    COMPLEMENTS,
    LIMITS,
    PAIRS,
    Around,
    Choices,
    Fixed,
    Range,
    Wish,
    complement,
    is_number,
    limited,
    number_of,
    value_of,
    wish,
    within_limits,
)

if TYPE_CHECKING:
    from search.objective import Objective

# Chosen from lists that the objective has as fields.
LISTS: Mapping[str, str] = {"optimizer": "optimizers", "schedule": "schedules", "batch_size": "batch_sizes"}
# Optuna's deprecated methods, which warn and call self.suggest_float: of the narrowed trial, that is.
OLD_SUGGESTIONS = ("suggest_uniform", "suggest_loguniform", "suggest_discrete_uniform")

_SomeTrial = TypeVar("_SomeTrial", bound=BaseTrial)


class NothingLeftError(ObjectiveError):
    """A wish that has nothing in common with the knob's own range, which may depend on the model's other knobs."""


def narrow(knobs: Mapping[str, Any], name: str, distribution: BaseDistribution) -> BaseDistribution:
    """The part of a knob's distribution that a person wants; the distribution itself where they did not say.

    A fixed value gives a distribution of one value, choices of a number a categorical one.

    Raises:
        NothingLeftError: the knob can be nothing of it.
        ObjectiveError: the wish is not of the knob's kind.
    """
    if name not in knobs:
        return distribution
    wanted = wish(name, knobs[name])
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution(_among(name, wanted, distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(wanted, Choices):
        return CategoricalDistribution(tuple(_inside(name, value, distribution) for value in wanted.values))
    if isinstance(wanted, Fixed):
        value = _inside(name, wanted.value, distribution)
        return _numbers(distribution, value, value)
    if isinstance(wanted, Around):
        if not distribution.low <= wanted.center <= distribution.high:
            raise NothingLeftError(f"{name} cannot be {wanted}: it is {_shown(name, distribution)}")
        wanted = wanted.range
    low, high = max(wanted.low, distribution.low), min(wanted.high, distribution.high)
    if distribution.step:  # only what lies on the knob's own grid
        low = _grid_value(distribution, math.ceil(_steps_to(distribution, low) - 1e-9))
        high = _grid_value(distribution, math.floor(_steps_to(distribution, high) + 1e-9))
    if low > high:
        raise NothingLeftError(f"{name}={wanted} leaves nothing of {_shown(name, distribution)}")
    return _numbers(distribution, low, high)


def _steps_to(distribution: FloatDistribution | IntDistribution, number: float) -> float:
    """How many steps `number` lies above the low end, in decimals as Optuna counts them: 0.1 is a tenth."""
    return float((Decimal(str(number)) - Decimal(str(distribution.low))) / Decimal(str(distribution.step)))


def _grid_value(distribution: FloatDistribution | IntDistribution, steps: int) -> float:
    return float(Decimal(str(distribution.low)) + steps * Decimal(str(distribution.step)))


def _among(name: str, wanted: Wish, choices: Sequence[Any]) -> tuple[Any, ...]:
    """Those of a categorical knob's choices that a wish leaves, in the knob's own order."""
    if isinstance(wanted, Around):
        raise ObjectiveError(f"{name} cannot be {wanted}: it is one of {Choices(tuple(choices))}, not a range")
    if isinstance(wanted, Range):
        if not all(map(is_number, choices)):
            raise ObjectiveError(f"{name}={wanted} is a range, but {name} is one of {Choices(tuple(choices))}")
        left = tuple(one for one in choices if wanted.low <= one <= wanted.high)
        if not left:
            raise NothingLeftError(f"{name}={wanted} leaves nothing of {Choices(tuple(choices))}")
        return left
    values = wanted.values if isinstance(wanted, Choices) else (wanted.value,)
    found = [_the_choice(name, value, choices) for value in values]
    return tuple(one for one in choices if any(one is kept for kept in found))


def _the_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The choice that a person means: True by `true`, "16" by `16`."""
    same = [one for one in choices if one == value and isinstance(one, bool) == isinstance(value, bool)]
    alike = [one for one in choices if str(one).lower() == str(value).lower()]
    if not same and not alike:
        raise NothingLeftError(f"{name} cannot be {value}: it is one of {', '.join(map(str, choices))}")
    return (same or alike)[0]


def _inside(name: str, value: Any, distribution: FloatDistribution | IntDistribution) -> int | float:
    """A value of a numeric knob. Raises ObjectiveError."""
    number = number_of(name, value, whole=isinstance(distribution, IntDistribution))
    steps = (number - distribution.low) / (distribution.step or 1.0)
    within = distribution.low <= number <= distribution.high  # so it is finite, too
    if not (within and (distribution.step is None or abs(steps - round(steps)) < 1e-8)):
        raise NothingLeftError(f"{name} cannot be {value}: it is {_shown(name, distribution)}")
    return number


def _numbers(like: FloatDistribution | IntDistribution, low: float, high: float) -> BaseDistribution:
    if isinstance(like, IntDistribution):
        return IntDistribution(int(low), int(high), log=like.log, step=like.step)
    return FloatDistribution(low, high, log=like.log, step=like.step)


def _shown(name: str, distribution: BaseDistribution) -> str:
    step = getattr(distribution, "step", None)
    return Knob(name, distribution).range + (f" in steps of {step:g}" if step and step != 1 else "")


def refuse_beyond(name: str, wanted: Wish, distribution: BaseDistribution) -> None:
    """Raises ObjectiveError when a range is partly outside the knob's own: what is asked for is never cut silently."""
    if isinstance(wanted, Range) and isinstance(distribution, FloatDistribution | IntDistribution):
        outside = wanted.low < distribution.low or wanted.high > distribution.high
        if outside and max(wanted.low, distribution.low) <= min(wanted.high, distribution.high):
            raise ObjectiveError(f"{name}={wanted} goes beyond what it can be: {_shown(name, distribution)}")


# -- A trial for the model


class NarrowedTrial:
    """Suggests from narrowed distributions; everything else is the trial's own, its class too."""

    def __init__(
        self, trial: BaseTrial, knobs: Mapping[str, Any], asked: dict[str, BaseDistribution] | None = None
    ) -> None:
        """`asked` collects the distributions that were asked for, as they were before narrowing."""
        self._trial = trial
        self._knobs = knobs
        self.asked: dict[str, BaseDistribution] = {} if asked is None else asked

    def __getattr__(self, name: str) -> Any:
        if name == "_trial":  # of a copy that is being made
            raise AttributeError(name)
        if name in OLD_SUGGESTIONS:
            return MethodType(getattr(type(self._trial), name), self)
        return getattr(self._trial, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return NarrowedTrial, (self._trial, dict(self._knobs), self.asked)

    def __copy__(self) -> NarrowedTrial:
        return NarrowedTrial(copy.copy(self._trial), self._knobs, self.asked)

    @property
    def __class__(self) -> type:  # isinstance(trial, optuna.Trial) holds, which libraries ask
        return type(self._trial)

    @__class__.setter
    def __class__(self, other: type) -> None:
        raise TypeError("a narrowed trial keeps its class")

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """As Trial.suggest_float, from what is left."""
        return cast("float", self._suggest(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """As Trial.suggest_int, from what is left."""
        return cast("int", self._suggest(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As Trial.suggest_categorical, from what is left."""
        return self._suggest(name, CategoricalDistribution(choices))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        self.asked.setdefault(name, distribution)
        try:
            return Knob(name, narrow(self._knobs, name, distribution)).suggest(self._trial, even_if_fixed=True)
        except NothingLeftError as error:
            raise optuna.TrialPruned(str(error)) from error


def narrowed(trial: _SomeTrial, knobs: Mapping[str, Any]) -> _SomeTrial:
    """The trial, suggesting what `knobs` leave of each parameter.

    What is fixed is a parameter with one value, which no sampler wastes a thought on. A combination of which nothing
    is left, because a range depends on other knobs, is refused with TrialPruned.
    """
    return cast("_SomeTrial", NarrowedTrial(trial, knobs)) if knobs else trial


# -- The recipe's knobs


def narrow_knob(knobs: Mapping[str, Any], knob: Knob) -> Knob:
    """A knob of the recipe as a person wants it; its default moves to the nearest value that is left.

    Raises:
        ObjectiveError: as `narrow`; beyond what the knob can be at all.
    """
    wanted = _wish_for(knobs, knob.name)
    if wanted is None:
        return knob
    if knob.name in LIMITS and isinstance(knob.distribution, FloatDistribution):
        distribution = _of_limits(knob.name, wanted, log=knob.distribution.log)
    else:
        refuse_beyond(knob.name, wanted, knob.distribution)
        distribution = narrow({knob.name: value_of(wanted)}, knob.name, knob.distribution)
    default = wanted.center if isinstance(wanted, Around) else knob.default
    return replace(knob, distribution=distribution, default=nearest(default, distribution))


def real_knob(knobs: Mapping[str, Any], name: str, default: float, text: str) -> Knob | None:
    """The knob `name` in torch's own units ("lr", "weight_decay"), None when nobody wishes for it."""
    wanted = _wish_for(knobs, name)
    if wanted is None:
        return None
    distribution = _of_limits(name, wanted, log=True)
    default = wanted.center if isinstance(wanted, Around) else default
    return Knob(name, distribution, nearest(default, distribution), text)


def _of_limits(name: str, wanted: Wish, log: bool) -> BaseDistribution:
    if isinstance(wanted, Choices):
        return CategoricalDistribution(wanted.values)
    if isinstance(wanted, Around):
        wanted = within_limits(name, wanted)
    low, high = (wanted.low, wanted.high) if isinstance(wanted, Range) else (wanted.value, wanted.value)
    return FloatDistribution(low, high, log=log and low > 0)


def _wish_for(knobs: Mapping[str, Any], name: str) -> Wish | None:
    """What is wished for a knob of the recipe, also by its person's name; within LIMITS."""
    for theirs, ours in COMPLEMENTS.items():
        if ours == name and theirs in knobs:
            return complement(limited(theirs, wish(theirs, knobs[theirs])))
    return limited(name, wish(name, knobs[name])) if name in knobs else None


def nearest(default: Any, distribution: BaseDistribution) -> Any:
    """The value of a distribution that is nearest to `default`: itself where it can be; the first of other names."""
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if default in choices or not all(map(is_number, (default, *choices))):
            return default if default in choices else choices[0]
        return min(choices, key=lambda one: abs(float(one or 0) - default))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return None if default is None else min(max(default, distribution.low), distribution.high)


def beliefs(knobs: Mapping[str, Any]) -> dict[str, Around]:
    """Which values of which knobs, by the names they are sampled under, a person believes to be good."""
    found = {name: wish(name, value) for name, value in knobs.items()}
    near = {name: wanted for name, wanted in found.items() if isinstance(wanted, Around)}
    ours = {COMPLEMENTS[name]: complement(wanted) for name, wanted in near.items() if name in COMPLEMENTS}
    return {**near, **cast("dict[str, Around]", ours)}


# -- Objectives

_SomeRow = TypeVar("_SomeRow", bound=Row)


def applied(objective: Objective) -> dict[str, Any]:
    """The fields of an objective that its `knobs` change: optimizer, schedule and batch size become its lists.

    What is left in `knobs` narrows numbers and the model's own. Values of the recipe's knobs are checked here.

    Raises:
        ObjectiveError: a wish is malformed, impossible or leaves nothing; two wishes are for one knob.
    """
    knobs = dict(objective.knobs)
    if not all(isinstance(name, str) for name in knobs):
        raise ObjectiveError(f"knobs must map names to values, but got {objective.knobs!r:.80}")
    wishes = {name: wish(name, value) for name, value in knobs.items()}
    if objective.function is not None:
        return {}  # its names are its own
    for pair in PAIRS:
        if all(name in knobs for name in pair):
            raise ObjectiveError(f"{pair[0]} and {pair[1]} are one knob: narrow the one or the other")
    for name, wanted in wishes.items():
        limited(name, wanted)
    fields: dict[str, Any] = {}
    if "batch_size" in wishes:
        fields["batch_sizes"] = _sizes(wishes["batch_size"], objective.batch_sizes)
    if "optimizer" in wishes:
        fields["optimizers"] = _rows("optimizer", wishes["optimizer"], objective.optimizers, OPTIMIZERS)
    if "schedule" in wishes:
        fields["schedules"] = _rows("schedule", wishes["schedule"], objective.schedules, SCHEDULES)
    return fields | {"knobs": {name: value for name, value in knobs.items() if name not in LISTS}}


def model_wishes(objective: Objective) -> dict[str, Any]:
    """Those of an objective's `knobs` that are for what its model suggests: not the recipe's names."""
    rows = (*OPTIMIZERS.values(), *SCHEDULES.values(), *objective.optimizers, *objective.schedules)
    recipe = {knob.name for row in rows if not isinstance(row, str) for knob in row.knobs} | {*LIMITS, *LISTS}
    return {name: value for name, value in objective.knobs.items() if name not in recipe}


def _sizes(wanted: Wish, sizes: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes; one that the objective does not list is a person's wish all the same."""
    if isinstance(wanted, Range | Around):
        return _among("batch_size", wanted, sizes)
    values = wanted.values if isinstance(wanted, Choices) else (wanted.value,)
    return tuple(int(number_of("batch_size", value, whole=True)) for value in values)


def _rows(
    name: str, wanted: Wish, own: Sequence[str | _SomeRow], table: Mapping[str, _SomeRow]
) -> tuple[str | _SomeRow, ...]:
    """The rows that are wished for: the objective's own, or any of the table's."""
    known = {row if isinstance(row, str) else row.name: row for row in (*table, *own)}
    return tuple(known[one] for one in _among(name, wanted, tuple(known)))
