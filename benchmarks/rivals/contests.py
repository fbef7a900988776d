"""What the race is run on: for each contest an objective of Dialin's, and the same examples as a plain dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import dialin_objective
from network import parts
from optuna import Trial
from optuna.trial import FixedTrial
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets, transforms

from objectives import adult, digits
from search import Data, Objective

Parts = tuple[Dataset[Any], Dataset[Any]]


@dataclass(frozen=True)
class Contest:
    """`datasets` reads what trains and what validates below a folder; an item is a network's inputs and a class."""

    objective: Objective
    datasets: Callable[[Path], Parts]

    def net(self, params: Mapping[str, Any]) -> nn.Module:
        """The network of these parameters, untrained."""
        net = self.objective.model(cast(Trial, FixedTrial(dict(params))))
        assert isinstance(net, nn.Module)
        return net


def images(root: Path) -> Parts:
    """As Optuna's official PyTorch example reads them: a transform for each item."""
    whole = datasets.FashionMNIST(str(root), train=True, transform=transforms.ToTensor())
    train, valid = (Subset(whole, part) for part in parts(int(os.environ["RACE_IMAGES"])))
    return train, valid


def tensors(data: Callable[[Path], Data]) -> Callable[[Path], Parts]:
    """The tensors of a built-in objective, an item at a time."""

    def read(root: Path) -> Parts:
        both = data(root)
        assert isinstance(both.train, tuple)
        assert isinstance(both.valid, tuple)
        return TensorDataset(*both.train), TensorDataset(*both.valid)

    return read


CONTESTS = {
    "fashion": Contest(dialin_objective.objective, images),
    "digits": Contest(digits.objective, tensors(digits.data)),
    "adult": Contest(adult.objective, tensors(adult.data)),
}


@cache
def load(contest: str, root: Path) -> Parts:
    """A contest's data, read once a process: an actor of Ray's has one trial after another."""
    return CONTESTS[contest].datasets(root)
