"""One recipe and one objective become a learning curve: the loop is `_train`, top to bottom.

Called by a worker, which hands in a `Reporter` to record epochs, keep checkpoints and say whether to go on;
nothing here knows a database or a file. The same recipe, seed, CPU and thread count give the same curve bit
for bit, also across an interruption: order and augmentation are functions of (seed, epoch), the rate is one
of the step, and a checkpoint holds everything else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from search.batches import EvaluationBatches, TrainingBatches
from search.data import Data
from search.failures import first_line
from search.metrics import Mean, NamedMetric
from search.objective import Objective, Task
from search.optimizers import build_for, set_rate
from search.randomness import random_state, restore_random_state
from search.reporting import EpochResult, Interrupted, Reporter, Result, Verdict
from search.snapshots import copied
from search.space import Recipe
from storage.outcomes import Outcome

# On an accelerator each look at the loss waits for the device, so there it is looked at every so many
# steps. Nothing is missed: what is looked at is the sum, in which NaN and infinity stay.
LOOK_EVERY = 16


def train(
    task: Task,
    data: Data,
    recipe: Recipe,
    objective: Objective,
    *,
    device: torch.device,
    seed: int,
    reporter: Reporter,
) -> Result:
    """Train to the end, a verdict or divergence. Call `seed_everything(seed)` before the task is made.

    A diverged epoch is reported with the value NaN, and its verdict is ignored. PRUNE is also ignored after
    the last epoch, when there is nothing left to save. Raises Interrupted when the reporter takes the trial
    back, and whatever the objective raises, but for want of memory: that is an outcome.
    """
    try:
        return _train(task, data, recipe, objective, device, seed, reporter)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        # Not returned from here: the exception holds the frames, and they the tensors.
        reason = f"out of memory at batch size {recipe.batch_size}: {first_line(error) or type(error).__name__}"
    return Result(Outcome.OUT_OF_MEMORY, reason=reason)


def _train(
    task: Task,
    data: Data,
    recipe: Recipe,
    objective: Objective,
    device: torch.device,
    seed: int,
    reporter: Reporter,
) -> Result:
    net, metrics = task.net.to(device), objective.metrics
    optimizer = build_for(task, recipe)
    batches = TrainingBatches(data, task.augment, recipe.batch_size, seed=seed, device=device)
    held_out = EvaluationBatches(data.valid, data, recipe.batch_size, device=device)
    rates = (recipe.lr * recipe.factors(objective.epochs * batches.steps)).tolist()
    run = _Run(net, optimizer, device, metrics[0])
    run.restore(reporter.restore())
    while run.epoch < objective.epochs and not run.out_of_patience(objective.patience):
        started = time.perf_counter()
        run.epoch += 1
        losses = _train_epoch(run, task, _unless_interrupted(batches.epoch(run.epoch), reporter), rates)
        values = {
            run.metric.name: math.nan,
            "train_loss": losses.compute(),
            "lr": rates[max(0, run.step - 1)],
        }
        if losses.finite():
            values |= evaluate(task, _unless_interrupted(held_out, reporter), metrics, device)
        value = run.judge(values)
        seconds = time.perf_counter() - started
        verdict = reporter.report(EpochResult(run.epoch, value, values, seconds, batches.samples), run.state)
        if math.isnan(value):
            return run.result(Outcome.DIVERGED, _what_diverged(run, values))
        if verdict is Verdict.HAND_BACK:
            raise Interrupted
        if verdict is Verdict.PRUNE and run.epoch < objective.epochs:
            return run.result(Outcome.PRUNED, f"pruned after epoch {run.epoch} of {objective.epochs}")
    return run.result(Outcome.COMPLETE, run.why_complete(objective))


def _train_epoch(run: _Run, task: Task, batches: Iterable[Any], rates: Sequence[float]) -> Mean:
    """One epoch, or as much of it as has a finite loss; returns the mean training loss."""
    losses = Mean()
    run.net.train()
    for batch in batches:
        set_rate(run.optimizer, rates[run.step])
        total, weight = task.step(run.net, batch)
        losses.update(total, weight)
        if run.time_to_look() and not losses.finite():
            break
        run.optimizer.zero_grad()
        (total / weight).backward()
        run.optimizer.step()
        run.step += 1
    return losses


def _unless_interrupted(batches: Iterable[Any], reporter: Reporter) -> Iterator[Any]:
    """The batches, with Interrupted raised before the first that the reporter does not want any more."""
    for batch in batches:
        if reporter.interrupted():
            raise Interrupted
        yield batch


@torch.inference_mode()
def evaluate(
    task: Task, batches: Iterable[Any], metrics: Sequence[NamedMetric], device: torch.device
) -> dict[str, float]:
    """Every metric by name, over all batches. The metrics are reset first; the network is left in eval mode.

    The metric "loss" is fed by the task's own step, the others by its predict.
    ObjectiveError: a metric computed something that is no number.
    """
    task.net.eval()
    for named in metrics:
        named.metric.reset()
        if callable(move := getattr(named.metric, "to", None)):
            move(device)
    predicted = [named.metric for named in metrics if not isinstance(named.metric, Mean)]
    means = [named.metric for named in metrics if isinstance(named.metric, Mean)]
    for batch in batches:
        if predicted and task.predict is not None:
            outputs, targets = task.predict(task.net, batch)
            for metric in predicted:
                metric.update(outputs, targets)
        for mean in means:
            mean.update(*task.step(task.net, batch))
    return {named.name: named.value() for named in metrics}


@dataclass
class _Best:
    value: float
    epoch: int
    weights: dict[str, Any]


class _Run:
    """What changes while one trial trains, as far as a checkpoint must hold it."""

    def __init__(
        self, net: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, metric: NamedMetric
    ) -> None:
        self.net, self.optimizer, self.device, self.metric = net, optimizer, device, metric
        self.epoch = self.step = 0
        self.best: _Best | None = None

    def judge(self, values: dict[str, float]) -> float:
        """The epoch's value, NaN if it is not finite. The weights are copied when it is the best so far."""
        value = values[self.metric.name]
        if not math.isfinite(value):
            return math.nan
        if self.best is None or self.metric.better(value, than=self.best.value):
            self.best = _Best(value, self.epoch, copied(self.net.state_dict()))
        return value

    def time_to_look(self) -> bool:
        return self.device.type == "cpu" or self.step % LOOK_EVERY == 0

    def out_of_patience(self, patience: int | None) -> bool:
        return patience is not None and self.best is not None and self.epoch - self.best.epoch >= patience

    def why_complete(self, objective: Objective) -> str:
        if self.epoch == objective.epochs or self.best is None:
            return ""
        return f"no better than in epoch {self.best.epoch} for {objective.patience} epochs"

    def state(self) -> dict[str, Any]:
        """Everything training goes on from: CPU copies that later training does not change; see `restore`."""
        best = self.best
        current = best is not None and best.epoch == self.epoch
        return {
            "epoch": self.epoch,
            "step": self.step,
            "model": best.weights if best and current else copied(self.net.state_dict()),
            "optimizer": copied(self.optimizer.state_dict()),
            "best": best and {"value": best.value, "epoch": best.epoch, "weights": best.weights},
            "random": random_state(self.device),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self.epoch, self.step = state["epoch"], state["step"]
        self.net.load_state_dict(state["model"])
        # torch takes an optimizer's tensors as they are and would then train in the caller's state.
        self.optimizer.load_state_dict(copied(state["optimizer"]))
        self.best = _Best(**state["best"]) if state["best"] else None
        restore_random_state(state["random"], self.device)

    def result(self, outcome: Outcome, reason: str) -> Result:
        if self.best is None:
            return Result(outcome, reason=reason)
        return Result(outcome, self.best.value, self.best.epoch, reason, self.best.weights)


def _what_diverged(run: _Run, values: dict[str, float]) -> str:
    lost = run.metric.name if math.isfinite(values["train_loss"]) else "train_loss"
    return f"{lost} is {values[lost]} in epoch {run.epoch}"


def _out_of_memory(error: BaseException) -> bool:
    """torch has an exception of its own for accelerators; the CPU's allocator raises a bare RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
