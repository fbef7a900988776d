"""Dialin's side of the race: `dialin run benchmarks/rivals/dialin_objective.py`, its recipe and its defaults.

The number of images comes from the environment, RACE_IMAGES.
"""

from __future__ import annotations

import os
from pathlib import Path

from network import DROPOUTS, WIDTHS, parts, small_cnn
from optuna import Trial
from torch import nn
from torchvision.datasets import FashionMNIST

from search import Data, Objective


def model(trial: Trial) -> nn.Module:
    width = trial.suggest_int("width", *WIDTHS, log=True)
    dropout = trial.suggest_float("dropout", *DROPOUTS)
    return small_cnn(width, dropout)


def data(root: Path) -> Data:
    whole = FashionMNIST(root)
    train, valid = (
        (whole.data[part.start : part.stop, None], whole.targets[part.start : part.stop])
        for part in parts(int(os.environ["RACE_IMAGES"]))
    )
    return Data(train, valid)


objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), metric="accuracy", epochs=10)
