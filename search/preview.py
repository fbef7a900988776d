"""One training step and a small evaluation before any trial is spent: an objective's mistakes, a line each.

Called by `dialin run` before a study is made, and first of all by `dialin check`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from search import space
from search.batches import EvaluationBatches, TrainingBatches
from search.data import Data, Folds, Split, size
from search.errors import ObjectiveError
from search.evaluation import evaluate
from search.failures import RaisedError, failure
from search.loading import LoadedObjective
from search.metrics import NamedMetric
from search.objective import Objective, Task
from search.optimizers import Optimizer, build_for
from search.randomness import seed_everything
from search.settings import check_knobs
from search.space import Recipe
from search.steps import Stepper, autocast
from storage.errors import UsageError

# Enough for a metric to be a number, few enough to take no time.
SAMPLES = 256


@dataclass(frozen=True)
class Preview:
    """What one step showed: samples in the splits, parameters of the network, first loss, untrained metrics.

    Of an IterableDataset `train` is what an epoch takes. `metrics` are in the objective's order, the searched one
    first; measured on at most a few hundred samples.
    """

    train: int
    valid: int
    parameters: int
    loss: float
    metrics: dict[str, float]


def first_batch(loaded: LoadedObjective, data_root: Path, device: torch.device | str = "cpu") -> Preview:
    """Load the data, build the model of one trial in memory, train on one batch and evaluate a few samples.

    Args:
        loaded: the objective, as `search.loading.resolve` found it.
        data_root: what the objective's `data` is called with.
        device: on the CPU no GPU is touched, and a class number out of range is an ordinary error there.

    Raises:
        ObjectiveError: something of a person's does not work; RaisedError with their frames where it raised.
        UsageError: the data's files are missing or corrupt.
    """
    return try_out(loaded, load_data(loaded, data_root), build_task(loaded), torch.device(device))


def try_out(loaded: LoadedObjective, data: Data | Folds, task: Task, device: torch.device) -> Preview:
    """Do `first_batch` with data and a task at hand; the task is moved to the device and trained one step.

    Of folds, which are alike, the first is looked at.
    """
    data = data.folds[0]
    recipe = default_recipe(loaded.objective, min(loaded.objective.batch_sizes))
    with blamed("moving the model to the device", loaded):
        task.net.to(device)
    with blamed("the training batches", loaded):
        epoch_batches = loaded.objective.epoch_batches
        batches = TrainingBatches(
            data, task.augment, recipe.batch_size, seed=0, device=device, epoch_batches=epoch_batches
        )
    loss = _first_step(loaded, batches, task, recipe, device)
    values = _evaluated(loaded, data, task, device)
    parameters = sum(parameter.numel() for parameter in task.net.parameters())
    train = batches.samples(1) if isinstance(data.train, IterableDataset) else size(data.train)
    return Preview(train, size(data.valid), parameters, loss, values)


@contextmanager
def blamed(doing: str, loaded: LoadedObjective) -> Iterator[None]:
    """Whatever a person's code raises in here becomes one line that says what was being done.

    Raises:
        RaisedError: in place of anything but a UsageError about files.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        told = isinstance(error, RaisedError)
        about_files = isinstance(error, UsageError) and not isinstance(error, ObjectiveError)
        if told or about_files:
            raise
        raise failure(error, loaded.path, doing) from error


def load_data(loaded: LoadedObjective, data_root: Path) -> Data | Folds:
    """Call the objective's `data`. Raises ObjectiveError when it fails or returns something else."""
    with blamed("data()", loaded):
        seed_everything(0)
        data: Any = loaded.objective.data(data_root)
        if not isinstance(data, Data | Folds):
            raise ObjectiveError(
                f"data() must return a Data, but returned {_a(data)}: write Data(train, valid) or split(x, y)"
            )
        return data


def build_task(loaded: LoadedObjective) -> Task:
    """Call the objective's `model` on a trial in memory, the same one every time.

    Raises:
        ObjectiveError: it fails, returns neither a network nor a Task, or takes a name of the recipe's.
    """
    objective = loaded.objective
    with blamed("model()", loaded):
        check_knobs(objective)
    # A model may refuse combinations of its own knobs with TrialPruned; one that refuses all these is no model.
    for trial in space.random_trials():
        try:
            with blamed("model()", loaded):
                seed_everything(0)
                task = objective.task(trial)
        except ObjectiveError as error:
            if isinstance(error.__cause__, optuna.TrialPruned):
                continue
            raise
        space.refuse_taken_names(objective, trial.distributions)
        return task
    raise ObjectiveError(f"model() refused {space.MODELS_TRIED} random trials with TrialPruned: none is left to train")


def default_recipe(objective: Objective, batch_size: int, optimizer: Optimizer | None = None) -> Recipe:
    """Return the recipe that practice starts from, with this batch size and, when given, this optimizer."""
    rows = objective.optimizers if optimizer is None else (optimizer,)
    narrowed = replace(objective, batch_sizes=(batch_size,), optimizers=rows)
    return space.recipe_from_params(space.starting_points(narrowed)[0], narrowed)


def _first_step(
    loaded: LoadedObjective, batches: TrainingBatches, task: Task, recipe: Recipe, device: torch.device
) -> float:
    with blamed("the optimizer", loaded):
        stepper = Stepper(task, build_for(task, recipe), loaded.objective, device)
    stepper.start_epoch()
    with blamed("the first training batch", loaded):
        batch = next(batches.epoch(1))
    pair = _predicted(loaded, task, batch, device)
    if pair:
        _refuse_broadcast(*pair)
    told = f"outputs {shapes(pair[0])}, targets {shapes(pair[1])}" if pair else f"a batch of {shapes(batch)}"
    with blamed(f"the loss of {told}", loaded):
        with _doubles_told(task.net, batch):
            total, weight = stepper.loss(batch)
        loss = float((total / weight).detach())
    if not math.isfinite(loss):
        raise ObjectiveError(f"the first loss is {loss}: {_why_not_finite(batch, pair)}")
    with blamed("the first step", loaded):
        stepper.add(total, weight)
        stepper.step()
    return loss


def _predicted(loaded: LoadedObjective, task: Task, batch: Any, device: torch.device) -> tuple[Any, Any] | None:
    """Return (outputs, targets), apart from the loss, so that it is known which of the two fails."""
    if task.predict is None:
        return None
    with blamed(f"the model on a batch of {shapes(batch)}", loaded):
        with _doubles_told(task.net, batch), autocast(loaded.objective.precision, device):
            pair: Any = task.predict(task.net, batch)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ObjectiveError(f"predict must return (outputs, targets), but returned {_a(pair)}")
    return pair


@contextmanager
def _doubles_told(net: nn.Module, batch: Any) -> Iterator[None]:
    """What torch says of float64 against float32 depends on the layer; what to do about it does not."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        weights = {parameter.dtype for parameter in net.parameters()}
        if torch.float64 in weights or all(tensor.dtype != torch.float64 for tensor in _tensors(batch)):
            raise
        raise ObjectiveError(
            f"a batch of {shapes(batch)} goes into a network of float32: write torch.tensor(..., dtype=torch.float32) "
            "or .float() in data()"
        ) from error


def _refuse_broadcast(outputs: Any, targets: Any) -> None:
    """Outputs (N, 1) against targets (N,) give a loss over N x N pairs: torch warns and goes on."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and targets.is_floating_point()):
        return
    if outputs.shape != targets.shape and outputs.numel() == targets.numel():
        raise ObjectiveError(
            f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} would be broadcast against each "
            "other: give both one shape, as with nn.Flatten(0) at the model's end"
        )


def _evaluated(loaded: LoadedObjective, data: Data, task: Task, device: torch.device) -> dict[str, float]:
    """Evaluate a few samples; all of them when a metric cannot be told from a few that lack a class."""
    metrics = loaded.objective.metrics
    few = spread(data.valid, SAMPLES)
    try:
        return _numbers(loaded, few, data, task, device, metrics)
    except ObjectiveError:
        if few is data.valid:
            raise
    return _numbers(loaded, data.valid, data, task, device, loaded.objective.metrics)


def _numbers(
    loaded: LoadedObjective,
    part: Split,
    data: Data,
    task: Task,
    device: torch.device,
    metrics: tuple[NamedMetric, ...],
) -> dict[str, float]:
    with blamed("evaluation", loaded):
        batches = EvaluationBatches(part, data, min(loaded.objective.batch_sizes), device=device)
        values = evaluate(task, batches, metrics, device, loaded.objective.precision)
    for name, value in values.items():
        if math.isnan(value):
            raise ObjectiveError(f"metric {name!r} is no number (nan) on {size(part)} validation samples")
    return {metric.name: values[metric.name] for metric in metrics}


def spread(part: Split, samples: int) -> Split:
    """Return at most so many samples of a split, from all over it: it may be sorted by class."""
    if size(part) <= samples:
        return part
    rows = torch.linspace(0, size(part) - 1, samples, dtype=torch.float64).long()
    return tuple(tensor[rows] for tensor in part) if isinstance(part, tuple) else Subset(part, rows.tolist())


def _why_not_finite(batch: Any, pair: tuple[Any, Any] | None) -> str:
    for what, values in (("the inputs", batch), ("the network's outputs", pair[0] if pair else None)):
        if any(not bool(tensor.isfinite().all()) for tensor in _tensors(values)):
            return f"{what} already hold nan or infinity"
    return "inputs and outputs are finite, so look at the loss and the targets"


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch] if batch.is_floating_point() else []
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else []
    return [tensor for value in values for tensor in _tensors(value)]


def shapes(batch: Any) -> str:
    """Return what a batch holds, for people: "float32 (32, 1, 8, 8) and int64 (32,)"."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return ", ".join(f"{key}: {shapes(value)}" for key, value in batch.items())
    if isinstance(batch, list | tuple):
        return " and ".join(shapes(value) for value in batch)
    return type(batch).__name__


def _a(value: Any) -> str:
    return "nothing (None)" if value is None else f"a {type(value).__name__}"
