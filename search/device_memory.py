"""What a worker takes of a GPU's memory, from a step at the largest batch size. Not measured on a GPU.

`search.preflight` asks before it says how many workers a GPU gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch

from search.batches import EvaluationBatches, TrainingBatches
from search.data import Data
from search.evaluation import evaluate
from search.graphed import possible
from search.loading import LoadedObjective
from search.objective import Objective, Task
from search.optimizers import Momentum, Optimizer, build_for, resolve_all
from search.preview import default_recipe
from search.steps import Stepper

# What a process takes to open a GPU, before it has asked for any memory: a few hundred MB, which differ from card to
# card and from driver to driver.
CONTEXT_BYTES = 512 * 2**20
# The second step has the optimizer's state beside its activations.
STEPS = 2


@dataclass(frozen=True)
class Measured:
    """In bytes.

    reserved: the most that torch had of the device. passing: what of it a step gave back, such as activations.
    libraries: what the process has besides, less CONTEXT_BYTES.
    """

    reserved: int
    passing: int
    libraries: int

    def needed(self, recorded: bool) -> int:
        """Of a worker. `recorded`: a CUDA graph has its activations to itself, eager batches have others."""
        return CONTEXT_BYTES + max(0, self.libraries) + self.reserved + (self.passing if recorded else 0)


def bytes_each(loaded: LoadedObjective, data: Data, task: Task, device: torch.device, free_before: int) -> int | None:
    """What one worker takes; None where that cannot be told, as of a step that fails: trials will tell why.

    Args:
        free_before: of the device, as another process saw it which had opened it and done nothing.
    """
    try:
        measured = _measure(loaded.objective, data, task, device, free_before)
    except Exception:
        return None
    return measured.needed(possible(loaded.objective, task.net, device))


def _measure(objective: Objective, data: Data, task: Task, device: torch.device, free_before: int) -> Measured:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    size = max(objective.batch_sizes)
    batches = TrainingBatches(data, task.augment, size, seed=0, device=device, epoch_batches=objective.epoch_batches)
    held_out = EvaluationBatches(data.valid, data, size, device=device)
    recipe = default_recipe(objective, size, _with_most_state(objective))
    stepper = Stepper(task, build_for(task, recipe), objective, device)
    stepper.start_epoch()
    for batch in islice(batches.epoch(1), STEPS):
        total, weight = stepper.loss(batch)
        stepper.add(total, weight)
        stepper.step()
    del batch, total, weight
    evaluate(task, islice(held_out, 1), objective.metrics, device, objective.precision)
    torch.cuda.synchronize(device)
    free, _ = torch.cuda.mem_get_info(device)
    resting = torch.cuda.memory_allocated(device)
    return Measured(
        reserved=torch.cuda.max_memory_reserved(device),
        passing=torch.cuda.max_memory_allocated(device) - resting,
        libraries=free_before - free - torch.cuda.memory_reserved(device),
    )


def _with_most_state(objective: Objective) -> Optimizer:
    rows = [*resolve_all(objective.optimizers).values()]
    return next((row for row in rows if row.momentum is Momentum.BETAS), rows[0])
