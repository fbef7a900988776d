"""Networks for which there is memory for so many samples at a time only, and objectives with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from training_helpers import CPU, Recorder, first_recipe

from search.data import Data
from search.micro_batch_size import MicroBatchSize
from search.objective import Objective, Task
from search.randomness import seed_everything
from search.reporting import Result
from search.training import train

POINTS = torch.randn(51, 3, generator=torch.Generator().manual_seed(0))
SIDES = (POINTS.sum(1) > 0).long()


class Room(nn.Module):
    """Has room for `samples`, to train on; counts what did not fit. `back`: found out on the way back."""

    def __init__(self, samples: int, back: bool = False) -> None:
        super().__init__()
        self.samples, self.back, self.refused = samples, back, 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) > self.samples:
            if not self.back:
                self.refuse()
            inputs.register_hook(lambda _gradient: self.refuse())
        return inputs

    def refuse(self) -> None:
        self.refused += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def narrow(*layers: nn.Module, samples: int = 3, back: bool = False) -> nn.Sequential:
    """A small classifier with `layers` in its middle."""
    return nn.Sequential(nn.Linear(3, 4), Room(samples, back), *layers, nn.Linear(4, 2))


def objective(make: Callable[[], nn.Module | Task], **arguments: Any) -> Objective:
    given = {"loss": nn.CrossEntropyLoss(), "epochs": 2, "batch_sizes": (10,), **arguments}
    return Objective(model=lambda trial: make(), data=lambda root: Data((POINTS, SIDES), (POINTS, SIDES)), **given)


def fitted(
    made: Objective,
    recorder: Recorder | None = None,
    micro_batch: MicroBatchSize | None = None,
    device: torch.device = CPU,
) -> Result:
    """Train it as a worker does."""
    seed_everything(0)
    task, data = made.task(None), made.data(None)  # type: ignore[arg-type]  # neither is looked at
    reporter = recorder or Recorder()
    return train(
        task,
        data,
        first_recipe(made),
        made,
        device=device,
        seed=0,
        reporter=reporter,
        micro_batch=micro_batch or MicroBatchSize(),
    )
