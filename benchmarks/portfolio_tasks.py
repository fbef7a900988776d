"""Twelve small real tasks on which `portfolio.py` trains every recipe: a few seconds of one core each.

Built-in objectives on parts of their data, and scikit-learn's bundled sets; convolutions, attention, recurrence and
plain layers; classes, a regression in units of its own, and text.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn

from objectives import adult, digits, fashion_mnist, housing, shakespeare
from search import Data, Objective, Task, split
from search.objective import supervised

BATCHES = (16, 32, 64, 128)


@dataclass(frozen=True)
class SmallTask:
    """`model` are values of the model's own knobs, the same for every recipe; `shape` says what network it is."""

    name: str
    shape: str
    objective: Objective
    data: Callable[[Path], Data]
    model: Mapping[str, Any] = field(default_factory=dict)


class Recurrent(nn.Module):
    """Sequences (N, T, F) to what the head makes of the last state, or of all states where `everywhere`."""

    def __init__(self, inputs: nn.Module, features: int, width: int, outputs: int, everywhere: bool = False) -> None:
        super().__init__()
        self.inputs, self.everywhere = inputs, everywhere
        self.cell, self.head = nn.GRU(features, width, batch_first=True), nn.Linear(width, outputs)

    def forward(self, sequences: Tensor) -> Tensor:
        states, _ = self.cell(self.inputs(sequences))
        return self.head(states if self.everywhere else states[:, -1])


class PatchTransformer(nn.Module):
    """Images (N, 1, 28, 28) as 16 patches of 7x7 pixels, two layers of attention, ten classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, 7, stride=7)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.cut(images).flatten(2).mT + self.places).mean(1))


def plain(features: int, outputs: int, width: int = 64) -> nn.Module:
    """Two hidden layers without a norm."""
    hidden = nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, outputs))


def classes_of(net: Callable[[], nn.Module], data: Callable[[Path], Data], epochs: int, metric: str) -> Objective:
    """An objective of images or rows with classes; accuracy where there are enough rows to tell networks apart."""
    metrics = (metric, "loss" if metric == "accuracy" else "accuracy")
    return Objective(model=lambda _: net(), data=data, loss=nn.CrossEntropyLoss(), metric=metrics, epochs=epochs)


def part_of(data: Callable[[Path], Data], train: int, valid: int, root: Path) -> Data:
    """The first rows of both splits, which are in random order already."""
    whole = data(root)
    assert isinstance(whole.train, tuple)
    assert isinstance(whole.valid, tuple)
    first = tuple(tensor[:train] for tensor in whole.train), tuple(tensor[:valid] for tensor in whole.valid)
    return replace(whole, train=first[0], valid=first[1], test=None)


def rows_of(load: Callable[..., Any], valid: float, _root: Path) -> Data:
    """One of scikit-learn's tables with classes, standardised."""
    x, y = load(return_X_y=True)
    return split(torch.tensor((x - x.mean(0)) / x.std(0)).float(), torch.tensor(y).long(), valid=valid, stratify=True)


def diabetes(_root: Path) -> Data:
    """Ten standardised numbers of 442 people; the progression of their disease, standardised."""
    x, y = datasets.load_diabetes(return_X_y=True)
    both = [torch.tensor((values - values.mean(0)) / values.std(0)).float() for values in (x, y)]
    return split(*both, valid=0.4)


def digit_rows(root: Path) -> Data:
    """Digits as sequences of eight rows with eight pixels."""
    whole = digits.data(root)
    rows = [(part[0].squeeze(1), part[1]) for part in (whole.train, whole.valid) if isinstance(part, tuple)]
    return Data(rows[0], rows[1])


def clothes(train: int, valid: int, root: Path) -> Data:
    """Fashion-MNIST's first training images, read from the compressed files as they are published."""
    folder = root / "FashionMNIST" / "raw"
    pixels = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    images = torch.tensor(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28)[: train + valid].copy())
    kinds = torch.tensor(np.frombuffer(labels, np.uint8, offset=8)[: train + valid].copy()).long()
    return Data((images[:train], kinds[:train]), (images[train:], kinds[train:]))


def windows(train: int, valid: int, root: Path) -> Data:
    """Stretches of 33 characters: some of the first 90% of the text train, its last ones validate."""
    text = shakespeare.characters(root / "text" / "tinyshakespeare.txt")
    cut = text.unfold(0, 33, 33)
    order = torch.randperm(len(cut) * 9 // 10, generator=torch.Generator().manual_seed(0))[:train]
    return Data((cut[order],), (cut[-valid:],), scale=Tensor.long)


def step(net: nn.Module, batch: tuple[Tensor]) -> tuple[Tensor, int]:
    """Of characters: as Shakespeare's objective has it."""
    (windows,) = batch
    logits, following = net(windows[:, :-1]), windows[:, 1:]
    return nn.functional.cross_entropy(logits.mT, following, reduction="sum"), following.numel()


def recurrent_text(_trial: Any) -> Task:
    """A GRU on characters."""
    letters = len(shakespeare.ALPHABET)
    return Task(Recurrent(nn.Embedding(letters, 32), 32, 64, letters, everywhere=True), step)


def squared(_trial: Any) -> Task:
    """Diabetes: a network whose output has the shape of its targets."""
    return supervised(nn.Sequential(plain(10, 1), nn.Flatten(0)), nn.MSELoss())


def tasks() -> dict[str, SmallTask]:
    """All twelve by name."""
    text = replace(shakespeare.objective, optimizers=Objective.optimizers, batch_sizes=BATCHES, epochs=4)
    tables = {"wine": (datasets.load_wine, 13, 3, 100), "breast-cancer": (datasets.load_breast_cancer, 30, 2, 60)}
    small = [
        SmallTask(name, "plain layers", classes_of(partial(plain, columns, kinds), data, epochs, "loss"), data)
        for name, (load, columns, kinds, epochs) in tables.items()
        for data in [partial(rows_of, load, 0.4)]
    ]
    images, few_images = partial(clothes, 2500, 2500), partial(clothes, 2000, 2500)
    all_tasks = [
        SmallTask(
            "digits-cnn",
            "CNN",
            replace(digits.objective, metric=("accuracy", "loss")),
            digits.data,
            {"width": 16, "dropout": 0.25},
        ),
        SmallTask(
            "digits-plain", "plain layers", classes_of(partial(plain, 64, 10), digits.data, 40, "accuracy"), digits.data
        ),
        SmallTask(
            "digits-rows",
            "GRU",
            classes_of(partial(Recurrent, nn.Identity(), 8, 32, 10), digit_rows, 25, "accuracy"),
            digit_rows,
        ),
        *small,
        SmallTask(
            "diabetes",
            "plain layers, regression",
            Objective(model=squared, data=diabetes, metric="loss", epochs=40),
            diabetes,
        ),
        SmallTask(
            "adult",
            "embeddings",
            replace(adult.objective, epochs=8, metric=("accuracy", "loss"), batch_sizes=BATCHES),
            partial(part_of, adult.data, 6000, 4000),
            {"width": 64, "layers": 2, "dropout": 0.2, "sigma": 2.0},
        ),
        SmallTask(
            "housing",
            "embeddings, regression",
            replace(housing.objective, epochs=15, batch_sizes=BATCHES),
            partial(part_of, housing.data, 4000, 3000),
            {"width": 64, "layers": 2, "dropout": 0.1, "sigma": 0.5},
        ),
        SmallTask(
            "shakespeare",
            "transformer",
            text,
            partial(windows, 1000, 400),
            {"width": 64, "depth": 2, "heads": 2, "dropout": 0.0},
        ),
        SmallTask("shakespeare-gru", "GRU", replace(text, model=recurrent_text), partial(windows, 2000, 400)),
        SmallTask(
            "fashion-cnn",
            "CNN",
            replace(fashion_mnist.objective, metric=("accuracy", "loss"), epochs=4),
            images,
            {"width": 8, "blocks": 2, "dropout": 0.25},
        ),
        SmallTask(
            "fashion-patches", "transformer", classes_of(PatchTransformer, few_images, 5, "accuracy"), few_images
        ),
    ]
    return {task.name: task for task in all_tasks}
