"""One recipe and one objective become a learning curve: the loop is in `search.curve`.

Called by a worker, which hands in a `Reporter` to record epochs, keep checkpoints and say whether to go on;
nothing here knows a database or a file. The same recipe, seed, CPU and thread count give the same curve bit
for bit, also across an interruption: order and augmentation are functions of (seed, epoch), the rate is one
of the step, and a checkpoint holds everything else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch

from search.curve import Curve
from search.data import Data, Folds
from search.failures import line_of, out_of_memory
from search.micro_batch_size import MicroBatchSize
from search.objective import Objective, Task
from search.randomness import seed_everything
from search.reporting import Interrupted, Paused, Reporter, Result, Verdict
from search.space import Recipe
from storage.outcomes import Outcome


def train(
    task: Task,
    data: Data | Folds,
    recipe: Recipe,
    objective: Objective,
    *,
    device: torch.device,
    seed: int,
    reporter: Reporter,
    new_task: Callable[[], Task] | None = None,
    micro_batch: MicroBatchSize | None = None,
) -> Result:
    """Train to the end, a verdict or divergence. Call `seed_everything(seed)` before the task is made.

    A diverged epoch is reported with the value NaN, and its verdict is ignored. PRUNE is also ignored after
    the last epoch, when there is nothing left to save. Raises Interrupted when the reporter takes the trial
    back, Paused when it is to go on later, and whatever the objective raises, but for want of memory: that is an
    outcome, where smaller parts of a batch, as `micro_batch` knows them, are no way out.

    With Folds, `task` trains on the first and a `new_task()`, of the same knobs, on each of the others, after
    `seed_everything(fold_seed(seed, fold))`. Epochs are reported as (fold - 1) * objective.epochs + epoch. The
    last of a fold has the mean value of the folds so far, and its verdict counts; the others have None and can
    only hand the trial back. It is never paused. The result's value is the mean over all folds, its weights are
    those of each by name: "fold-1" and so on.
    """
    micro_batch = micro_batch or MicroBatchSize()
    try:
        if isinstance(data, Folds):
            assert new_task is not None, "each fold needs a network of its own"
            return _FoldedTrial(data, recipe, objective, device, seed, reporter, micro_batch).train(task, new_task)
        return _train(task, data, recipe, objective, device, seed, reporter, micro_batch)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        # Not returned from here: the exception holds the frames, and they the tensors.
        reason = f"out of memory at batch size {recipe.batch_size}: {line_of(error)}"
    return Result(Outcome.OUT_OF_MEMORY, reason=reason)


def _train(
    task: Task,
    data: Data,
    recipe: Recipe,
    objective: Objective,
    device: torch.device,
    seed: int,
    reporter: Reporter,
    micro_batch: MicroBatchSize,
) -> Result:
    curve = Curve(task, data, recipe, objective, device, seed, micro_batch)
    curve.restore(reporter.restore())
    for result in curve.epochs(reporter.interrupted, reporter.between_batches):
        verdict = reporter.report(result, curve.state)
        if result.value is None or math.isnan(result.value):
            return curve.result(Outcome.DIVERGED, curve.why_diverged(result.metrics))
        if verdict is Verdict.HAND_BACK:
            raise Interrupted
        if verdict is Verdict.PAUSE and not curve.over:
            raise Paused
        if verdict is Verdict.PRUNE and result.epoch < objective.epochs:
            return curve.result(Outcome.PRUNED, f"pruned after epoch {result.epoch} of {objective.epochs}")
    return curve.result(Outcome.COMPLETE, curve.why_over())


@dataclass
class _FoldedTrial:
    """One curve after the other, and what the finished ones came to."""

    data: Folds
    recipe: Recipe
    objective: Objective
    device: torch.device
    seed: int
    reporter: Reporter
    micro_batch: MicroBatchSize
    values: list[float] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)

    def train(self, task: Task, new_task: Callable[[], Task]) -> Result:
        kept = self.reporter.restore()
        if kept is not None:
            self.values, self.weights = list(kept["values"]), dict(kept["weights"])
        first = len(self.values) + 1
        for fold in range(first, len(self.data.folds) + 1):
            if fold > 1:
                seed_everything(fold_seed(self.seed, fold))
                task = new_task()
            ended = self._train_fold(fold, task, kept["curve"] if kept is not None and fold == first else None)
            task.net.cpu()  # its caller may hold on to it, and a device has room for one
            if ended is not None:
                return ended
        return self._result(Outcome.COMPLETE)

    def _train_fold(self, fold: int, task: Task, kept: dict[str, Any] | None) -> Result | None:
        """What ended the trial in this fold, or None when the fold is finished."""
        seed, before = fold_seed(self.seed, fold), (fold - 1) * self.objective.epochs
        part = self.data.folds[fold - 1]
        curve = Curve(task, part, self.recipe, self.objective, self.device, seed, self.micro_batch)
        curve.restore(kept)

        def whole(state: dict[str, Any]) -> dict[str, Any]:
            return {"values": list(self.values), "weights": dict(self.weights), "curve": state}

        def between(batch: int, state: Callable[[], dict[str, Any]]) -> None:
            self.reporter.between_batches(batch, lambda: whole(state()))

        for result in curve.epochs(self.reporter.interrupted, between):
            diverged = result.value is None or math.isnan(result.value)
            value = math.nan if diverged else self._mean_with(curve) if curve.over else None
            told = replace(result, epoch=before + result.epoch, value=value, resumable=False)
            verdict = self.reporter.report(told, lambda: whole(curve.state()))
            if diverged:
                return self._result(Outcome.DIVERGED, f"{curve.why_diverged(result.metrics)} of fold {fold}")
            if verdict is Verdict.HAND_BACK:
                raise Interrupted
            if verdict is Verdict.PRUNE and curve.over and fold < len(self.data.folds):
                self._finish(fold, curve)
                return self._result(Outcome.PRUNED, f"pruned after fold {fold} of {len(self.data.folds)}")
        self._finish(fold, curve)
        return None

    def _mean_with(self, curve: Curve) -> float:
        assert curve.best is not None
        return fmean([*self.values, curve.best.value])

    def _finish(self, fold: int, curve: Curve) -> None:
        assert curve.best is not None
        self.values.append(curve.best.value)
        self.weights[f"fold-{fold}"] = curve.best.weights

    def _result(self, outcome: Outcome, reason: str = "") -> Result:
        if not self.values:
            return Result(outcome, reason=reason)
        return Result(outcome, fmean(self.values), None, reason, self.weights)


def fold_seed(seed: int, fold: int) -> int:
    """The seed of a fold (from 1): the first one's is the trial's own."""
    return seed if fold == 1 else random.Random(f"fold {seed} {fold}").getrandbits(32)
