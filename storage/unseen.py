"""Never the same recipe twice: which values a trial may still take so that it differs from every other on record.

What trials suggested, one after the other, makes a tree. `storage.suggesting` walks down it beside the trial that is
drawn: where the drawn value leads only to recipes that other trials have had, another one is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from storage.outcomes import Outcome
from storage.space_view import fits

# A knob of more values than that is not counted through: no study comes to an end of it.
MOST_VALUES = 10_000


class Unseen:
    """What trials on record have left open from some point of a recipe on; `went` goes one step further."""

    def __init__(self, trials: Iterable[FrozenTrial], without: int | None = None) -> None:
        """`without`: the number of the trial that is drawn."""
        others = [trial for trial in trials if trial.number != without and trial.params and not _to_be_mended(trial)]
        drawn = [trial for trial in others if trial.state.is_finished() or "settings" in trial.user_attrs]
        if len(drawn) < len(others):  # some may suggest more yet: they count as soon as they have what others had
            whole = {frozenset(trial.params) for trial in drawn}
            drawn = [trial for trial in others if frozenset(trial.params) in whole]
        self._alike = drawn
        self._walked: set[str] = set()

    @property
    def exhausted(self) -> bool:
        """Whether every way on from here has been gone to its end."""
        return _exhausted(self._alike, self._walked)

    def leads_on(self, name: str, distribution: BaseDistribution, value: Any) -> bool:
        """Whether there is a recipe with this value, as far as from here, that no trial has."""
        return not _exhausted(_with(self._alike, name, distribution, value), {*self._walked, name})

    def open_values(self, name: str, distribution: BaseDistribution) -> list[Any]:
        """The values with which there is one; empty where there are too many to count, too."""
        values = values_of(distribution) or []
        return [value for value in values if self.leads_on(name, distribution, value)]

    def went(self, name: str, distribution: BaseDistribution, value: Any) -> None:
        """The trial that is drawn has this value."""
        if self._alike:
            self._alike = _with(self._alike, name, distribution, value)
        self._walked.add(name)


def is_exhausted(trials: Sequence[FrozenTrial]) -> bool:
    """Whether trials have had every recipe that there is: cheap where a knob has no end of values."""
    newest = next((trial for trial in reversed(trials) if trial.params), None)
    if newest is None or any(values_of(one) is None for one in newest.distributions.values()):
        return False
    return Unseen(trials).exhausted


def _to_be_mended(trial: FrozenTrial) -> bool:
    """Whether it ended in a mistake of the objective's: its recipe was never tried."""
    return trial.user_attrs.get("outcome") == Outcome.ERROR.value


def _exhausted(alike: Collection[FrozenTrial], walked: Collection[str]) -> bool:
    if not alike:
        return False
    ahead = {trial.number: next((name for name in trial.params if name not in walked), None) for trial in alike}
    if None in ahead.values():
        return True  # a trial that suggested no more
    newest = max(alike, key=lambda trial: trial.number)
    name = ahead[newest.number]
    assert name is not None
    distribution = newest.distributions[name]
    values = values_of(distribution)
    if values is None or len(values) > len(alike):
        return False
    further = {*walked, name}
    return all(_exhausted(_with(alike, name, distribution, value), further) for value in values)


def _with(trials: Iterable[FrozenTrial], name: str, distribution: BaseDistribution, value: Any) -> list[FrozenTrial]:
    """Those that have this value of a knob."""
    wanted = distribution.to_internal_repr(value)
    having = (trial for trial in trials if name in trial.params)
    return [trial for trial in having if _internal(trial.params[name], distribution) == wanted]


def _internal(value: Any, distribution: BaseDistribution) -> float | None:
    return distribution.to_internal_repr(value) if fits(value, distribution) else None


def values_of(distribution: BaseDistribution) -> list[Any] | None:
    """All values of a distribution; None where it has no end of them."""
    if isinstance(distribution, CategoricalDistribution):
        return [*distribution.choices]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.single():
        return [distribution.low]
    step = distribution.step
    if step is None or (distribution.high - distribution.low) / step > MOST_VALUES:
        return None
    if isinstance(distribution, IntDistribution):
        return [*range(distribution.low, distribution.high + 1, distribution.step)]
    low, by = Decimal(str(distribution.low)), Decimal(str(step))
    return [float(low + count * by) for count in range(int((Decimal(str(distribution.high)) - low) / by) + 1)]
