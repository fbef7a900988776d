"""A recipe while it is drawn: what has been suggested so far, and the trials that samplers look at for it."""

from __future__ import annotations

import copy
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from storage.optuna_internals import trial_id_of


@dataclass
class RecipeDraw:
    """Kept for as long as a trial's recipe is drawn: all its parameters are drawn from the same trials.

    `trial`: as it will be. `recorded`: a study's trials, by its id. `shown`: those of them that samplers see, by state
    and by how often the view of the space has changed, which a suggestion may do.
    """

    trial: FrozenTrial
    recorded: dict[int, list[FrozenTrial]] = field(default_factory=dict)
    shown: dict[tuple[int, tuple[TrialState, ...], int], list[FrozenTrial]] = field(default_factory=dict)

    def among(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Trials in the order of their numbers, with this one as it is by now in its place, where it is among them."""
        mine = trial_id_of(self.trial)
        for place in range(len(trials) - 1, -1, -1):
            if trial_id_of(trials[place]) == mine:
                return [*trials[:place], self._by_now(), *trials[place + 1 :]]
            if trials[place].number < self.trial.number:
                break
        return [*trials]

    def _by_now(self) -> FrozenTrial:
        """The trial, which what is drawn and noted from here on does not change. Values in it are never changed."""
        trial = copy.copy(self.trial)
        for name in ("params", "distributions", "user_attrs", "system_attrs"):
            setattr(trial, name, {**getattr(trial, name)})
        return trial


def parameter_rows(trial: FrozenTrial, trial_id: int, known: Container[str]) -> list[dict[str, Any]]:
    """What a database is told of a trial's parameters, but those that it knows."""
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": trial.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(trial.distributions[name]),
        }
        for name, value in trial.params.items()
        if name not in known
    ]
