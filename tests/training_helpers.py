"""For tests that train: a reporter that records, and one call that trains an objective as a worker does."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch

from search.objective import Objective, Task
from search.randomness import seed_everything
from search.reporting import EpochResult, Result, Verdict
from search.space import Recipe, recipe_from_params, starting_points
from search.training import train

CPU = torch.device("cpu")


@dataclass
class Recorder:
    """Keeps what is reported. `keep`: epochs to keep a state of; `stop_after`: batches.

    keep_within: (epochs reported, batches after them) to keep a state of, through a file as a checkpoint is.
    """

    verdicts: dict[int, Verdict] = field(default_factory=dict)
    keep: tuple[int, ...] = ()
    restored: dict[str, Any] | None = None
    keep_within: tuple[tuple[int, int], ...] = ()
    stop_after: int | None = None
    results: list[EpochResult] = field(default_factory=list)
    states: dict[int, dict[str, Any]] = field(default_factory=dict)
    within: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    batches: int = 0

    def restore(self) -> dict[str, Any] | None:
        return self.restored

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        self.results.append(result)
        if result.epoch in self.keep and state is not None:
            self.states[result.epoch] = state()
        return self.verdicts.get(result.epoch, Verdict.GO_ON)

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        place = (len(self.results), batch)
        if place in self.keep_within:
            file = io.BytesIO()
            torch.save(state(), file)
            file.seek(0)
            self.within[place] = torch.load(file, weights_only=True)

    def interrupted(self) -> bool:
        self.batches += 1
        return self.stop_after is not None and self.batches > self.stop_after

    @property
    def values(self) -> list[float]:
        """The value of every epoch that has one."""
        return [result.value for result in self.results if result.value is not None]

    @property
    def curve(self) -> list[tuple[float | None, ...]]:
        """Every number of every epoch, but for the time it took."""
        return [(result.value, *result.metrics.values()) for result in self.results]


def first_recipe(objective: Objective, **params: Any) -> Recipe:
    """The first starting point of an objective, with some of its parameters changed."""
    return recipe_from_params({**starting_points(objective)[0], **params}, objective)


def fit(
    objective: Objective,
    recorder: Recorder,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    **knobs: Any,
) -> Result:
    """Train the objective with its model's `knobs`."""
    seed_everything(seed)

    def new_task() -> Task:
        return objective.task(optuna.trial.FixedTrial(knobs))

    task, data = new_task(), objective.data(Path())
    recipe = recipe or first_recipe(objective)
    return train(task, data, recipe, objective, device=device, seed=seed, reporter=recorder, new_task=new_task)
