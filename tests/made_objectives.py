"""Objectives to break: a working one with any of its arguments changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from search.data import Data
from search.loading import LoadedObjective
from search.objective import Objective

ROOT = Path("data")


def two_classes(samples: int = 40) -> Data:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    return Data((inputs, targets), (inputs, targets))


def linear(trial: Any) -> nn.Module:
    return nn.Linear(3, 2)


def made(**changes: Any) -> LoadedObjective:
    """A working objective with these arguments changed, as if loaded from this file."""
    arguments: dict[str, Any] = {
        "model": linear,
        "data": lambda root: two_classes(),
        "loss": nn.CrossEntropyLoss(),
        "batch_sizes": (4, 8),
        "epochs": 3,
        "optimizers": ("adam", "momentum"),
        "schedules": ("constant", "onecycle"),
    }
    objective = Objective(**{**arguments, **changes})
    return LoadedObjective("made", "made", objective, "", Path(__file__).resolve())


def raising(error: BaseException) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails
