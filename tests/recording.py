"""For tests of recorded steps: small objectives and their curves; see also recording_fixture.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tape import Tape
from torch import nn
from training_helpers import Recorder, fit

from search.data import Data
from search.objective import Objective, Task
from search.optimizers import OPTIMIZERS
from search.preview import default_recipe
from search.space import Recipe
from storage.outcomes import Outcome

POINTS = torch.randn(103, 6, generator=torch.Generator().manual_seed(0))
SIDES = (POINTS.sum(1) > 0).long()
EPOCHS, WHOLE = 4, 10  # and a batch of three in each
STEPS = EPOCHS * WHOLE
WARM_UP = 3


def with_everything(trial: Any = None) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def made(model: Callable[[Any], nn.Module | Task] = with_everything, **arguments: Any) -> Objective:
    given: dict[str, Any] = {
        "data": lambda root: Data((POINTS, SIDES), (POINTS[:41], SIDES[:41])),
        "metric": ("loss", "accuracy"),
        "epochs": EPOCHS,
        "batch_sizes": (10,),
        "schedules": ("linear",),
    }
    loss = {} if "loss" in arguments else {"loss": nn.CrossEntropyLoss()}
    return Objective(model=model, **given | loss | arguments)


def of(objective: Objective, row: str = "momentum") -> Recipe:
    return replace(default_recipe(objective, 10, OPTIMIZERS[row]), weight_decay=1e-3)


Recorders = Callable[..., Tape]


CUDA = torch.device("cuda")


def curve(objective: Objective, row: str = "momentum", **options: Any) -> list[tuple[float | None, ...]]:
    recorder = Recorder(**options)
    assert fit(objective, recorder, of(objective, row), seed=3).outcome is Outcome.COMPLETE
    return recorder.curve


def assert_close(one: list[tuple[float | None, ...]], other: list[tuple[float | None, ...]]) -> None:
    """Values, losses and rates, but for rounding: Adam makes much of a little where gradients are small."""
    for left, right in zip(one, other, strict=True):
        assert left[:4] == pytest.approx(right[:4], rel=5e-3)
