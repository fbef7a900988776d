"""One recipe trained here and now, for `dialin train`: in this very process, with no database and a line an epoch.

Nothing is redirected and no signal is caught, so that `breakpoint()` and Ctrl-C do what they do in any script.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch

from search import bare, loop, space
from search.data import Folds, size
from search.loading import LoadedObjective
from search.narrowing import model_wishes, narrowed
from search.objective import Objective
from search.preview import blamed, load_data
from search.printing import number
from search.randomness import seed_everything
from search.reporting import EpochResult, Result, Verdict
from search.settings import middle_trial, narrowed_by, recipe_of
from search.training import train
from storage.outcomes import Outcome

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What to train. `settings` are knobs by a person's names; `epochs` None means the objective's."""

    loaded: LoadedObjective
    settings: Mapping[str, Any]
    epochs: int | None
    device: torch.device
    seed: int
    data: Path


@dataclass(frozen=True)
class Trained:
    """How it ended. `interrupted`: by Ctrl-C, and `result` is the best until then."""

    result: Result
    interrupted: bool


class Lines:
    """Prints each epoch as it ends, and remembers the best; a `search.reporting.Reporter`."""

    def __init__(self, objective: Objective, say: Say) -> None:
        self._metric, self._length, self._say = objective.searched, objective.epochs, say
        self._order = [metric.name for metric in objective.metrics]
        self.folds = 1
        self.best = Result(Outcome.COMPLETE)

    def restore(self) -> None:
        """There is nothing to go on from."""

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        """Nothing is kept."""

    def interrupted(self) -> bool:
        """Ctrl-C raises by itself."""
        return False

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        """Print it. Nothing is ever pruned."""
        length = self._length * self.folds
        width, of = len(str(length)), f"/{length}" if length else ""
        names = [name for name in self._order if name in result.metrics]
        names += [name for name in result.metrics if name not in names]
        values = "  ".join(f"{name} {number(result.metrics[name])}" for name in names)
        self._say(f"epoch {result.epoch:>{width}}{of}  {values}  {result.seconds:.2f} s")
        value = result.value
        if value is not None and math.isfinite(value):
            before = self.best.value
            if before is None or self._metric.better(value, than=before):
                kept = (state() if state is not None else {}).get("best") or {}
                self.best = Result(Outcome.COMPLETE, value, result.epoch, weights=kept.get("weights"))
        return Verdict.GO_ON


def train_here(order: Order, say: Say) -> Trained:
    """Train the recipe to its end, or until Ctrl-C.

    Raises:
        ObjectiveError: a setting that nothing takes; RaisedError with a person's own frames where their code raised.
        UsageError: the data's files are missing or corrupt.
    """
    loaded = order.loaded
    objective = loaded.objective
    if order.epochs is not None and objective.function is None:
        objective = replace(objective, epochs=order.epochs)
    trial = middle_trial()
    if objective.function is None:
        with blamed("model()", loaded):
            recipe, objective = recipe_of(objective, order.settings)
        say(recipe.summary())
    else:
        objective = narrowed_by(objective, order.settings)
    lines = Lines(objective, say)
    try:
        return Trained(_train(replace(order, loaded=replace(loaded, objective=objective)), trial, lines, say), False)
    except KeyboardInterrupt:
        return Trained(lines.best, True)


def _train(order: Order, trial: optuna.Trial, lines: Lines, say: Say) -> Result:
    loaded, objective = order.loaded, order.loaded.objective
    seed_everything(order.seed)
    if objective.trains_itself:
        if order.device.type == "cuda":
            torch.cuda.set_device(order.device)
        with blamed("", loaded):
            if objective.function is not None:
                function, knobs = objective.function, objective.knobs
                result = bare.play(trial, lambda shown: function(narrowed(shown, knobs)), lines)
            else:
                result = _own_loop(order, trial, lines)
        _tell_knobs(trial, objective, say)
        return result
    data = load_data(loaded, order.data)
    seed_everything(order.seed)
    with blamed("model()", loaded):
        task = objective.task(trial)
    _tell_knobs(trial, objective, say)
    parameters = sum(parameter.numel() for parameter in task.net.parameters())
    first = data.folds[0] if isinstance(data, Folds) else data
    folds = f" in each of {len(data.folds)} folds" if isinstance(data, Folds) else ""
    lines.folds = len(data.folds) if isinstance(data, Folds) else 1
    say(
        f"{size(first.train):,} training and {size(first.valid):,} validation samples{folds}, "
        f"{parameters:,} parameters, on {order.device}, seed {order.seed}"
    )
    recipe = space.sample(trial, objective)
    with blamed("", loaded):
        return train(
            task,
            data,
            recipe,
            objective,
            device=order.device,
            seed=order.seed,
            reporter=lines,
            new_task=lambda: objective.task(trial),
        )


def _own_loop(order: Order, trial: optuna.Trial, lines: Lines) -> Result:
    with tempfile.TemporaryDirectory(prefix="dialin-train-") as folder:
        run = loop.Run(
            trial,
            order.loaded.objective,
            device=order.device,
            seed=order.seed,
            data=order.data,
            folder=lambda: Path(folder),
            reporter=lines,
            sample=lambda: space.sample(trial, order.loaded.objective),
        )
        return loop.play(run, order.loaded.objective)


def _tell_knobs(trial: optuna.Trial, objective: Objective, say: Say) -> None:
    """What the model suggested for itself, which of it nobody asked for, and what was asked for in vain."""
    in_vain = [name for name in model_wishes(objective) if name not in trial.params]
    if in_vain:
        say(f"nothing suggested {', '.join(in_vain)}")
    if not trial.params:
        return
    own = space.in_words(trial.params)
    left = [name for name in trial.params if name not in objective.knobs]
    those = "each" if len(left) == len(trial.params) else ", ".join(left)
    said = f" ({those} at the middle of its range)" if left else ""
    say(f"the model's own: {own}{said}")
