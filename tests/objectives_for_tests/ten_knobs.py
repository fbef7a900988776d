"""Ten parameters, three of them only for one kind, and a network that is as good after any epoch: none is pruned."""

from pathlib import Path

import torch
from optuna import Trial
from torch import nn

from search import Data, Objective, split


class Sure(nn.Module):
    """Says the same of every point, whatever it has learned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 0.0]) + 0 * self.net(points)


def model(trial: Trial) -> nn.Module:
    kind = trial.suggest_categorical("kind", ["a", "b"])
    for number in range(3):
        trial.suggest_float(f"{kind}_{number}", 0, 1)
    trial.suggest_float("common", 0, 1)
    return Sure()


def data(root: Path) -> Data:
    points = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return split(points, (points.sum(1) > 0).long(), valid=0.5)


objective = Objective(
    model=model,
    data=data,
    loss=nn.CrossEntropyLoss(),
    metric=("accuracy", "loss"),
    epochs=30,
    trials=3,
    optimizers=("momentum",),
    schedules=("constant",),
)
