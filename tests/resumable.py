"""A model with dropout on data with augmentation, and a script that trains on in another process.

    python tests/resumable.py CHECKPOINT SHA256 OPTIMIZER THREADS

prints the curve and the best weights' checksum as JSON.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn
from training_helpers import Recorder, first_recipe, fit

from search import checkpoints
from search.data import Data, split
from search.objective import Objective
from search.reporting import Result


class Jitter(nn.Module):
    """Draws from Python's global generator, as third-party layers and transforms do."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * random.uniform(0.9, 1.1) if self.training else inputs


def model(trial: optuna.Trial) -> nn.Module:
    body = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.4)
    return nn.Sequential(Jitter(), *body, nn.Linear(32, 4))


def noise(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.3 * torch.randn(inputs.shape, generator=generator)


def data(root: Path) -> Data:
    inputs = torch.randn(333, 16, generator=torch.Generator().manual_seed(0))
    return split(inputs, inputs[:, :4].argmax(1), valid=0.3, augment=noise)


objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), metric=("loss", "accuracy"), epochs=6)


def trained(optimizer: str, recorder: Recorder) -> Result:
    recipe = first_recipe(objective, optimizer=optimizer, **BETAS, l2=1e-3)
    return fit(objective, recorder, recipe, seed=7)


BETAS = {"one_minus_beta1": 0.1, "one_minus_beta2": 0.01, "one_minus_momentum": 0.1}


def checksum(weights: dict[str, Any] | None) -> str:
    assert weights is not None
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights.values())).hexdigest()


if __name__ == "__main__":
    path, sha256, optimizer, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    recorder = Recorder(restored=checkpoints.load(Path(path), sha256))
    result = trained(optimizer, recorder)
    print(json.dumps([recorder.curve, result.best_epoch, checksum(result.weights)]))
