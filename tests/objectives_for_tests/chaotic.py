"""All that a curve can hang on: dropout, batch norm, augmentation and Python's own generator, in batches of two sizes.

For `chaos.py`: with CHAOS_STEPS in the environment every batch leaves a byte in that folder's file of its trial, and
takes CHAOS_STEP_SECONDS.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from optuna import Trial
from torch import Tensor, nn

from search import Data, Objective, Task, split, supervised

EPOCHS = 12


class Jitter(nn.Module):
    """Draws from Python's global generator, as third-party layers do."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * random.uniform(0.9, 1.1) if self.training else inputs


def model(trial: Trial) -> Task:
    width = trial.suggest_int("width", 16, 32)
    body = nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.4)
    plain = supervised(nn.Sequential(Jitter(), *body, nn.Linear(width, 4)), nn.CrossEntropyLoss())

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        if net.training:  # a loss is evaluated by it too
            count(trial.number)
        return plain.step(net, batch)

    return Task(plain.net, step, plain.predict)


def count(number: int) -> None:
    """A batch of the trial of this number is trained."""
    if folder := os.environ.get("CHAOS_STEPS"):
        with (Path(folder) / str(number)).open("ab") as steps:
            steps.write(b".")
        time.sleep(float(os.environ.get("CHAOS_STEP_SECONDS", "0")))


def noise(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.3 * torch.randn(inputs.shape, generator=generator)


def data(root: Path) -> Data:
    inputs = torch.randn(360, 16, generator=torch.Generator().manual_seed(0))
    return split(inputs, inputs[:, :4].argmax(1), valid=120, augment=noise)


objective = Objective(
    model=model,
    data=data,
    metric=("loss", "accuracy"),
    epochs=EPOCHS,
    trials=40,
    batch_sizes=(32, 64),
)
