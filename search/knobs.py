"""A knob: one sampled number or choice, with everything a person or a sampler needs to know about it.

Rows of the two tables (`optimizers.py`, `schedules.py`) bring their own knobs, `space.py` adds those that
every recipe has, and the command line prints them. What holds for the rows of both tables is here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from search.errors import ObjectiveError


@dataclass(frozen=True)
class Knob:
    """One parameter of a trial.

    `name` is its name in Optuna. `default` is what practice starts from, None where nobody knows (a model's
    own knob). `condition` says in words when it is sampled, "" for always. `varies`: its range depends on others.
    """

    name: str
    distribution: BaseDistribution
    default: CategoricalChoiceType = None
    text: str = ""
    condition: str = ""
    varies: bool = False

    def __post_init__(self) -> None:
        d = self.distribution
        if not isinstance(d, FloatDistribution | IntDistribution | CategoricalDistribution):
            raise ValueError(f"knob {self.name!r}: no suggest_ method samples a {type(d).__name__}")
        inside = self.default in d.choices if isinstance(d, CategoricalDistribution) else self._in_range()
        if self.default is not None and not inside:
            raise ValueError(f"knob {self.name!r}: its default {self.default!r} lies outside {self.range}")

    def _in_range(self) -> bool:
        d, value = self.distribution, self.default
        assert isinstance(d, FloatDistribution | IntDistribution)
        return isinstance(value, float | int) and d.low <= value <= d.high

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose: such a knob is never suggested."""
        return self.distribution.single()

    @property
    def range(self) -> str:
        """What it can be, for people: `0.03 .. 30 (log)` or `16, 32, 64, 128`."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            text = ", ".join(str(choice) for choice in d.choices)
        else:
            assert isinstance(d, FloatDistribution | IntDistribution)
            text = f"{d.low:g} .. {d.high:g}" + (" (log)" if d.log else "")
        return f"{text} (fixed)" if self.fixed else text

    def suggest(self, trial: BaseTrial, *, even_if_fixed: bool = False) -> Any:
        """This trial's value; a fixed knob's only value, without asking unless `even_if_fixed`."""
        d, fixed = self.distribution, self.fixed and not even_if_fixed
        if isinstance(d, CategoricalDistribution):
            return d.choices[0] if fixed else trial.suggest_categorical(self.name, d.choices)
        if isinstance(d, IntDistribution):
            return d.low if fixed else trial.suggest_int(self.name, d.low, d.high, step=d.step, log=d.log)
        assert isinstance(d, FloatDistribution)
        return d.low if fixed else trial.suggest_float(self.name, d.low, d.high, step=d.step, log=d.log)

    def as_dict(self) -> dict[str, Any]:
        """Everything about it, JSON-able; `kind` is float, int or categorical (choices are what Optuna can store)."""
        d = self.distribution
        kind = type(d).__name__.removesuffix("Distribution").lower()
        values: dict[str, Any] = {"knob": self.name, "kind": kind, "range": self.range}
        if isinstance(d, CategoricalDistribution):
            values["choices"] = list(d.choices)
        elif isinstance(d, FloatDistribution | IntDistribution):
            values |= {"low": d.low, "high": d.high, "log": d.log}
        return values | {"condition": self.condition, "default": self.default, "text": self.text}


def floating(name: str, low: float, high: float, default: float, text: str, *, log: bool = False) -> Knob:
    """A knob with a real value between `low` and `high`."""
    return Knob(name, FloatDistribution(low, high, log=log), default, text)


def integer(name: str, low: int, high: int, default: int, text: str) -> Knob:
    """A knob that counts, from `low` to `high`, both included."""
    return Knob(name, IntDistribution(low, high), default, text)


def choice(name: str, choices: tuple[CategoricalChoiceType, ...], default: CategoricalChoiceType, text: str) -> Knob:
    """A knob with one of `choices`."""
    return Knob(name, CategoricalDistribution(choices), default, text)


class Row(Protocol):
    """What the rows of both tables have."""

    @property
    def name(self) -> str: ...


SomeRow = TypeVar("SomeRow", bound=Row)


def rows_by_name(kind: str, rows: Iterable[SomeRow], known: Iterable[str]) -> dict[str, SomeRow]:
    """Rows by name, in the order given. Raises ObjectiveError when there are none, or two of one name.

    `kind` ("optimizer") and the `known` names are for the message.
    """
    found: dict[str, SomeRow] = {}
    for row in rows:
        if row.name in found:
            raise ObjectiveError(f"{kind} {row.name!r} is listed twice")
        found[row.name] = row
    if not found:
        raise ObjectiveError(f"no {kind} to choose from: name at least one of {', '.join(known)}")
    return found
