"""One recipe and one objective become a learning curve: the loop is in `search.curve`.

Called by a worker, which hands in a `Reporter` to record epochs, keep checkpoints and say whether to go on;
nothing here knows a database or a file. The same recipe, seed, CPU and thread count give the same curve bit
for bit, also across an interruption: order and augmentation are functions of (seed, epoch), the rate is one
of the step, and a checkpoint holds everything else.
"""

from __future__ import annotations

import math

import torch

from search.curve import Curve
from search.data import Data
from search.failures import first_line, out_of_memory
from search.objective import Objective, Task
from search.reporting import Interrupted, Reporter, Result, Verdict
from search.space import Recipe
from storage.outcomes import Outcome


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
        if not out_of_memory(error):
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
    curve = Curve(task, data, recipe, objective, device, seed)
    curve.restore(reporter.restore())
    for result in curve.epochs(reporter.interrupted):
        verdict = reporter.report(result, curve.state)
        if result.value is not None and math.isnan(result.value):
            return curve.result(Outcome.DIVERGED, curve.why_diverged(result.metrics))
        if verdict is Verdict.HAND_BACK:
            raise Interrupted
        if verdict is Verdict.PRUNE and result.epoch < objective.epochs:
            return curve.result(Outcome.PRUNED, f"pruned after epoch {result.epoch} of {objective.epochs}")
    return curve.result(Outcome.COMPLETE, curve.why_over())
