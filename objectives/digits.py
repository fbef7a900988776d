"""Handwritten digits, 8x8: a small CNN on scikit-learn's 1,797 images. Copy this file to start your own."""

from pathlib import Path

import torch
from optuna import Trial
from sklearn.datasets import load_digits
from torch import nn

from search import Data, Objective, split


def model(trial: Trial) -> nn.Module:
    width = trial.suggest_int("width", 12, 32, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * 4 * 4, 10)),
    )


def data(root: Path) -> Data:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return split(images, torch.tensor(digits.target), valid=0.2, test=0.1, stratify=True)


objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), metric="accuracy", epochs=15)
