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
from search.data import Data, Folds, size
from search.devices import gpus
from search.loading import LoadedObjective
from search.memory import keep_freed
from search.micro_batch_size import MicroBatchSize
from search.narrowing import model_wishes, narrowed
from search.objective import Objective, Task
from search.preflight import Placement
from search.preview import blamed, load_data
from search.printing import number
from search.randomness import seed_everything
from search.reporting import EpochResult, Reporter, Result, Verdict
from search.settings import middle_trial, narrowed_by, recipe_of
from search.training import train
from storage.errors import UsageError
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


def place(device: str | None) -> torch.device:
    """Where to train, with as many CPU threads as one worker would have. `device`: a GPU by its number, or cpu.

    Raises:
        UsageError: there is no such device, or it is busy.
    """
    if device is not None and device.removeprefix("cuda:") != "cpu" and not device.removeprefix("cuda:").isdecimal():
        raise UsageError(f"--device is cpu or the number of a GPU, but got {device!r}")
    named = device.removeprefix("cuda:") if device is not None else None
    plan = Placement(1, named, None).plan(gpus() if named != "cpu" else [])
    torch.set_num_threads(plan.threads)
    keep_freed()
    return torch.device(plan.slots[0].devices[0])


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


def train_trial(
    order: Order,
    trial: optuna.Trial,
    reporter: Reporter,
    built: Callable[[Task, Data | Folds], None] = lambda _task, _data: None,
    micro_batch: MicroBatchSize | None = None,
) -> Result:
    """Train what a trial in memory suggests as a worker would, through whichever door the objective has.

    `built`: called with the model and its data before training, where Dialin's own loop trains.

    Raises:
        As `train_here`, and what `reporter` and `built` raise.
    """
    loaded, objective = order.loaded, order.loaded.objective
    seed_everything(order.seed)
    if objective.trains_itself:
        if order.device.type == "cuda":
            torch.cuda.set_device(order.device)
        with blamed("", loaded):
            if objective.function is None:
                return _own_loop(order, trial, reporter)
            function, knobs = objective.function, objective.knobs
            return bare.play(trial, lambda shown: function(narrowed(shown, knobs)), reporter)
    data = load_data(loaded, order.data)
    recipe = space.sample(trial, objective)
    seed_everything(order.seed)
    with blamed("model()", loaded):
        task = objective.task(trial)
    built(task, data)
    with blamed("", loaded):
        return train(
            task,
            data,
            recipe,
            objective,
            device=order.device,
            seed=order.seed,
            reporter=reporter,
            new_task=lambda: objective.task(trial),
            micro_batch=micro_batch,
        )


def _train(order: Order, trial: optuna.Trial, lines: Lines, say: Say) -> Result:
    objective = order.loaded.objective

    def built(task: Task, data: Data | Folds) -> None:
        _tell_knobs(trial, objective, say)
        parameters = sum(parameter.numel() for parameter in task.net.parameters())
        first = data.folds[0]
        folds = f" in each of {len(data.folds)} folds" if isinstance(data, Folds) else ""
        lines.folds = len(data.folds)
        say(
            f"{size(first.train):,} training and {size(first.valid):,} validation samples{folds}, "
            f"{parameters:,} parameters, on {order.device}, seed {order.seed}"
        )

    result = train_trial(order, trial, lines, built)
    if objective.trains_itself:
        _tell_knobs(trial, objective, say)
    return result


def _own_loop(order: Order, trial: optuna.Trial, reporter: Reporter) -> Result:
    with tempfile.TemporaryDirectory(prefix="dialin-train-") as folder:
        run = loop.Run(
            trial,
            order.loaded.objective,
            device=order.device,
            seed=order.seed,
            data=order.data,
            folder=lambda: Path(folder),
            reporter=reporter,
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
