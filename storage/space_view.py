"""What a study's samplers see of trials that were drawn from another space than today's.

A person may edit an objective between two `resume`s: move a range, add or drop a choice, add or remove a knob. Trials
stay on record as they were drawn. Samplers are shown those that today's space could have drawn, with today's
distributions; the others are left out of their view. `search.space_changes` finds out what has changed,
`SharedStorage` asks here, `storage.suggesting` tells what a trial is drawn from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from storage.constraints import alike, names_of
from storage.optuna_internals import SAMPLERS_NOTES, trial_id_of
from storage.priors import RANKS, Prior

# What is sampled in multiples of a unit that belongs to the optimizer, and under which name its real value is noted.
UNITS = {"lr_multiple": "lr", "l2": "weight_decay"}
# What is sampled as 1 - value: where its real value is noted, and which of several it is.
_COMPLEMENTS = {
    "one_minus_momentum": ("momentum", None),
    "one_minus_beta1": ("betas", 0),
    "one_minus_beta2": ("betas", 1),
}


@dataclass(frozen=True)
class Added:
    """A knob that older trials lack. `value`: what counts for those whose own record does not say; None: nothing does.

    `told`: a person said so, whatever the record says. `only`: the knob (optimizer, schedule) and its values beside
    which there is such a knob; empty: it is always there.
    """

    value: Any = None
    told: bool = False
    only: tuple[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class _Known:
    """A trial as it is on record, as today's space would have drawn it, and as samplers see it."""

    trial: FrozenTrial
    today: FrozenTrial | None
    shown: FrozenTrial | None


@dataclass
class SpaceView:
    """Today's space, as far as it is known, and what is to be done to trials drawn from another.

    Attributes:
        current: distributions by name, of knobs whose range does not depend on others.
        added: knobs that older trials lack. gone: knobs that there are no more.
        units: base rate ("lr_multiple") and unit of the decay ("l2") of each optimizer.
        learns: ranges of numbers count as moved when a trial suggests another one than those on record.
        priors: of numbers, by name. ranks: samplers see those knobs by their ranks; else only the first draws and
        those that are random anyway come from the prior.
        endless: a trial has drawn from a range that has no end of values: the space cannot be exhausted.
        changes: how often what trials suggested has changed the view.
    """

    current: dict[str, BaseDistribution] = field(default_factory=dict)
    added: Mapping[str, Added] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    units: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    learns: bool = False
    priors: Mapping[str, Prior] = field(default_factory=dict)
    ranks: bool = True
    endless: bool = False
    changes: int = 0
    _varying: set[str] = field(default_factory=set)
    _known: dict[str, BaseDistribution] = field(default_factory=dict)
    _finished: dict[int, _Known] = field(default_factory=dict)
    _constrained: bool = False
    _unconstrained: set[int] = field(default_factory=set)

    def __call__(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """The trials as samplers see them: themselves where nothing has changed and nobody has a prior."""
        if not (self.current or self.added or self.gone or (self.priors and self.ranks)):
            shown = trials
        else:
            shown = [one for trial in trials if (one := self._known_of(trial).shown) is not None]
        return alike(shown) if self._is_constrained(trials) else shown

    def _is_constrained(self, trials: Iterable[FrozenTrial]) -> bool:
        """Whether any trial has a constraint; of those that have ended each is looked at once."""
        for trial in trials if not self._constrained else ():
            if trial_id_of(trial) not in self._unconstrained:
                self._constrained = self._constrained or bool(names_of(trial))
                if trial.state.is_finished():
                    self._unconstrained.add(trial_id_of(trial))
        return self._constrained

    def today(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """The trials as today's space would have drawn them, in real values."""
        return [drawn for trial in trials if (drawn := self._known_of(trial).today) is not None]

    def one_today(self, trial: FrozenTrial) -> FrozenTrial | None:
        """A trial as today's space would have drawn it, in real values; None: it could not have."""
        return self._known_of(trial).today

    def _known_of(self, trial: FrozenTrial) -> _Known:
        if not trial.state.is_finished():
            return self._look_at(trial)
        known = self._finished.get(trial_id_of(trial))
        if known is None or known.trial is not trial:
            known = self._finished[trial_id_of(trial)] = self._look_at(trial)
        return known

    def _look_at(self, trial: FrozenTrial) -> _Known:
        if trial.state == TrialState.WAITING:
            return _Known(trial, trial, trial)
        today = self.of(trial)
        return _Known(trial, today, today and self._ranked(today))

    def _ranked(self, trial: FrozenTrial) -> FrozenTrial:
        ranks = {}
        for name, prior in self.priors.items() if self.ranks else ():
            distribution = trial.distributions.get(name)
            if distribution is not None and takes_prior(distribution):
                ranks[name] = prior.rank(trial.params[name], distribution), RANKS
        return _redrawn(trial, ranks, frozenset(), keep=True) if ranks else trial

    def prior(self, name: str, distribution: BaseDistribution) -> Prior | None:
        """What a person believes of a knob's values; None: nothing."""
        return self.priors.get(name) if takes_prior(distribution) else None

    def of(self, trial: FrozenTrial) -> FrozenTrial | None:
        """One trial, itself where it is of today's space; None: today's space could not have drawn it."""
        changed: dict[str, tuple[Any, BaseDistribution]] = {}
        for name, distribution in trial.distributions.items():
            today = self.current.get(name, distribution)
            if today is distribution or today == distribution:
                continue
            if not fits(trial.params[name], today):
                return None
            changed[name] = _as_drawn(trial.params[name], today), today
        for name, value in self.filled(trial).items():
            if name in self.current and not fits(value, self.current[name]):
                return None
            if name in self.current:
                changed[name] = _as_drawn(value, self.current[name]), self.current[name]
        gone = self.gone & trial.params.keys()
        return _redrawn(trial, changed, gone) if changed or gone else trial

    def filled(self, trial: FrozenTrial) -> dict[str, Any]:
        """Values of the knobs that were added since, for a trial that lacks them."""
        if not trial.params:
            return {}
        found = {}
        for name, added in self.added.items():
            value = self._value(trial, name, added) if name not in trial.params else None
            if value is not None:
                found[name] = value
        return found

    def _value(self, trial: FrozenTrial, name: str, added: Added) -> Any:
        settings = trial.user_attrs.get("settings", {})
        noted = None if added.told else noted_value(settings, name, self.units)
        if noted is not None or added.only is None:
            return added.value if noted is None else noted
        knob, values = added.only
        return added.value if settings.get(knob, trial.params.get(knob)) in values else None

    def learn(self, name: str, distribution: BaseDistribution, trials: Callable[[], Iterable[FrozenTrial]]) -> bool:
        """A trial suggests a knob from this distribution. Whether the samplers' view is another one by that."""
        today, known = self.current.get(name), self._known.get(name)
        if today == distribution or name in self._varying or distribution.single():
            return False
        if today is not None and compatible(today, distribution):  # two ranges in one process: it depends on others
            self._varying.add(name)
            del self.current[name]
        elif today is None and known is not None and self._alike(known, distribution):
            return False
        else:
            drawn = [trial.distributions[name] for trial in trials() if name in trial.distributions]
            self._known[name] = distribution
            if today is None and all(self._alike(one, distribution) for one in drawn):
                return False
            self.current[name] = distribution
        self._finished.clear()
        self.changes += 1
        return True

    def _alike(self, one: BaseDistribution, other: BaseDistribution) -> bool:
        return one == other if self.learns else compatible(one, other)


def takes_prior(distribution: BaseDistribution) -> bool:
    """Whether it is a range of numbers."""
    return not isinstance(distribution, CategoricalDistribution) and not distribution.single()


def compatible(one: BaseDistribution, other: BaseDistribution) -> bool:
    """Whether Optuna lets trials of one study be drawn from both."""
    try:
        check_distribution_compatibility(one, other)
    except ValueError:
        return False
    return True


def fits(value: Any, distribution: BaseDistribution) -> bool:
    """Whether a value could have been drawn from a distribution."""
    if not isinstance(distribution, CategoricalDistribution) and isinstance(value, str | bool):
        return False
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def noted_value(settings: Mapping[str, Any], name: str, units: Mapping[str, Mapping[str, float]]) -> Any:
    """What a knob's value was in a trial with these real settings; None where they do not say."""
    if name in _COMPLEMENTS:
        of, place = _COMPLEMENTS[name]
        value = settings.get(of)
        value = value[place] if place is not None and value is not None else value
        return None if value is None else round(1 - value, 12)
    if name in UNITS:
        unit, value = units.get(settings.get("optimizer", ""), {}).get(name), settings.get(UNITS[name])
        return None if unit is None or value is None else value / unit
    return settings.get(name)


def _as_drawn(value: Any, distribution: BaseDistribution) -> Any:
    """A value that fits as the distribution itself would have given it: 16.0 as 16."""
    return distribution.to_external_repr(distribution.to_internal_repr(value))


def _redrawn(
    trial: FrozenTrial, changed: Mapping[str, tuple[Any, BaseDistribution]], gone: frozenset[str], keep: bool = False
) -> FrozenTrial:
    """The trial as if drawn from another space. What samplers noted was about the old one: it goes, unless `keep`."""
    shown = copy.copy(trial)
    params = trial.params | {name: value for name, (value, _) in changed.items()}
    drawn = trial.distributions | {name: distribution for name, (_, distribution) in changed.items()}
    shown.params = {name: value for name, value in params.items() if name not in gone}
    shown.distributions = {name: distribution for name, distribution in drawn.items() if name not in gone}
    noted = trial.system_attrs.items()
    kept = {key: value for key, value in noted if keep or not key.startswith(SAMPLERS_NOTES)}
    shown.system_attrs = kept
    return shown
