"""Checks of what an author writes: a value that does not fit, or a name that is not there, is said in one line.

Used by `search.objective` and `search.data`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from search.errors import ObjectiveError
from storage.words import did_you_mean


class NamedArguments:
    """A base of dataclasses whose misspelt arguments are an ObjectiveError that guesses what was meant."""

    def __new__(cls, *_: Any, **given: Any) -> Any:
        known = list(inspect.signature(cls).parameters)
        for name in given:
            if name not in known:
                known_or_near = did_you_mean(name, known, alike=0.5) or f"it has {', '.join(known)}"
                raise ObjectiveError(f"{cls.__name__} has no argument {name!r}: {known_or_near}")
        return super().__new__(cls)


def at_least_one(name: str, value: Any, optional: bool = False) -> None:
    """Raises ObjectiveError unless `value` is an integer of at least 1, or None where that may be."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ObjectiveError(f"{name} must be an integer of at least 1, but got {value!r}")


def choices(name: str, value: Any) -> None:
    """Raises ObjectiveError unless `value` is a tuple or list of different choices."""
    if not isinstance(value, list | tuple) or not value:
        raise ObjectiveError(f"{name} must be a tuple of at least one, but got {value!r}")
    if len({getattr(choice, "name", str(choice)) for choice in value}) < len(value):
        raise ObjectiveError(f"{name} must be different from each other, but got {value!r}")


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Raises ObjectiveError unless `value` is one of the `known`."""
    if value not in known:
        raise ObjectiveError(f"{name} must be one of {', '.join(map(repr, known))}, but got {value!r}")


def positive(name: str, value: Any, below: float = float("inf")) -> None:
    """Raises ObjectiveError unless `value` is None or a number over 0 and under `below`."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < below:
        least = "above 0" if below == float("inf") else f"between 0 and {below:g}"
        raise ObjectiveError(f"{name} must be a number {least}, but got {value!r}")
