"""The trial that workers sample with: Optuna's, whose values are drawn with what samplers do not know of.

In a study whose space has changed a trial that goes on keeps what was drawn, and one whose values are not searched any
more ends. Where a person has a prior, samplers draw ranks. No recipe is drawn twice.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from storage.optuna_internals import CONSTRAINT, draw_alone, forget_space
from storage.priors import RANKS
from storage.space_view import SpaceView, compatible, fits
from storage.unseen import Unseen, values_of

EXHAUSTED = "every recipe of the space is on record"
# So many trials TPE waits for before it draws otherwise than at random.
STARTUP = 10
# How often a value that leads only to what other trials have had is drawn again before it is changed.
DRAWS = 3


class CannotBeDrawn(optuna.TrialPruned):
    """A trial has a value that is not searched any more, or every recipe there is was had by another: it ends."""


class SuggestingTrial(Trial):
    """Goes on with `trial` under another class, with what it has sampled already.

    `asked`: somebody, or the strategy, has said what it suggests, or some of it: that may be what another trial had.
    `filled`: knobs that were added to the objective since it was drawn, and their values in it.
    """

    def __init__(self, trial: Trial) -> None:
        self.__dict__.update(trial.__dict__)
        self._suggested: set[str] = set()
        self._view: SpaceView | None = getattr(self.storage, "view", None)
        self._recorded: Callable[[int], list[FrozenTrial]] = getattr(self.storage, "recorded", lambda _study_id: [])
        self.asked = bool(self._fixed_params)
        self._unseen: Unseen | None = None
        # One that goes on has of the knobs that were added since the values that it was trained with.
        self.filled = self._view.filled(self._cached_frozen_trial) if self._view is not None else {}
        self._fixed_params = self.filled | self._fixed_params

    def start_over(self) -> None:
        """Draw everything again: nothing of what was drawn is on record."""
        self.__dict__.update(SuggestingTrial(Trial(self.study, self._trial_id)).__dict__)

    def set_constraint(self, key: str, value: float) -> None:
        """As Optuna's, but the last value counts: a model is made again in a trial that goes on, and a loop learns."""
        known = self._cached_frozen_trial.system_attrs.get(CONSTRAINT + key)
        if known is None:
            super().set_constraint(key, value)
        elif math.isnan(float(value)):
            raise ValueError(f"the constraint {key!r} is no number")
        elif float(value) != known:
            self.storage.set_trial_system_attr(self._trial_id, CONSTRAINT + key, float(value))
            self._cached_frozen_trial.system_attrs[CONSTRAINT + key] = float(value)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        view = self._view
        if name in self._cached_frozen_trial.distributions:
            self._keep_drawn(name, distribution)
        elif name in self._fixed_params:
            self._check_asked(name, distribution)
        elif view is not None and not distribution.single():
            self._fixed_params = self._fixed_params | {name: self._draw(name, distribution, view)}
            view.endless = view.endless or values_of(distribution) is None
        self._suggested.add(name)
        value = super()._suggest(name, distribution)
        if self._unseen is not None:
            self._unseen.went(name, distribution, value)
        return value

    def _keep_drawn(self, name: str, distribution: BaseDistribution) -> None:
        """Have a value on record returned, also where Optuna would find its distribution another than it was."""
        frozen = self._cached_frozen_trial
        if compatible(frozen.distributions[name], distribution):
            return
        value = frozen.params[name]
        if name in self._suggested:
            raise ValueError(
                f"{name!r} is suggested twice in one trial, from {frozen.distributions[name]} and from {distribution}: "
                "give them two names"
            )
        if not fits(value, distribution):
            raise CannotBeDrawn(f"{name} is {value} here, which is not searched any more")
        # Only in memory: on record it stays as it was drawn.
        frozen.distributions = frozen.distributions | {name: distribution}
        frozen.params = frozen.params | {name: distribution.to_external_repr(distribution.to_internal_repr(value))}

    def _check_asked(self, name: str, distribution: BaseDistribution) -> None:
        value = self._fixed_params[name]
        if isinstance(distribution, CategoricalDistribution) and not fits(value, distribution):
            raise CannotBeDrawn(f"{name}={value} was asked for, which is not searched any more")

    def _draw(self, name: str, distribution: BaseDistribution, view: SpaceView) -> Any:
        """What the sampler draws, but for recipes that other trials have had."""
        if view.learn(name, distribution, lambda: self._recorded(self.study._study_id)):
            forget_space(self.study.sampler)
        value = self._drawn_together(name, distribution, view)
        value = self._drawn_alone(name, distribution, view) if value is None else value
        if self.asked:
            return value
        unseen = self._unseen = self._unseen or self._left_open(view)
        if unseen.exhausted:
            raise CannotBeDrawn(EXHAUSTED)
        for _ in range(DRAWS):
            if unseen.leads_on(name, distribution, value):
                return value
            value = self._drawn_alone(name, distribution, view)
        still_open = unseen.open_values(name, distribution)
        return random.Random(self.number).choice(still_open) if still_open else value

    def _left_open(self, view: SpaceView) -> Unseen:
        unseen = Unseen(view.today(self._recorded(self.study._study_id)), without=self.number)
        for name, value in self.params.items():
            unseen.went(name, self.distributions[name], value)
        return unseen

    def _drawn_together(self, name: str, distribution: BaseDistribution, view: SpaceView) -> Any:
        """What the sampler has drawn together with other knobs; None where it is not among them, or does not fit."""
        drawn = self.relative_params
        if name not in drawn:
            return None
        prior = view.prior(name, distribution)
        if prior is not None and view.ranks:
            known = (self.relative_search_space or {}).get(name)
            return prior.value(drawn[name], distribution) if known == RANKS else None
        return drawn[name] if fits(drawn[name], distribution) else None

    def _drawn_alone(self, name: str, distribution: BaseDistribution, view: SpaceView) -> Any:
        prior = view.prior(name, distribution)
        if prior is None or (not view.ranks and self._is_learnt()):
            return draw_alone(self, name, distribution)
        return prior.value(draw_alone(self, name, RANKS), distribution)

    def _is_learnt(self) -> bool:
        """Whether what the sampler draws for a single knob is more than random."""
        if not isinstance(self.study.sampler, TPESampler):
            return False
        told = (TrialState.COMPLETE, TrialState.PRUNED)
        return sum(trial.state in told for trial in self._recorded(self.study._study_id)) >= STARTUP
