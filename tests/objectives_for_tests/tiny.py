"""Two clouds of points told apart: an epoch takes a few milliseconds."""

from pathlib import Path

import torch
from optuna import Trial
from torch import nn

from search import Data, Objective, split


def model(trial: Trial) -> nn.Module:
    width = trial.suggest_int("width", 4, 8)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def data(root: Path) -> Data:
    points = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    return split(points, (points.sum(1) > 0).long(), valid=0.4)


objective = Objective(
    model=model, data=data, loss=nn.CrossEntropyLoss(), metric=("accuracy", "loss"), epochs=4, trials=6
)
