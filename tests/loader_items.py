"""Datasets that a DataLoader's worker processes can import: each item tells what was drawn where."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info


def drawn() -> Tensor:
    """A number from each of the three generators that transforms draw from: shape (3,)."""
    numbers = [torch.rand(()).item(), float(np.random.rand()), random.random()]
    return torch.tensor(numbers, dtype=torch.float64)


class Drawing(Dataset[Any]):
    """Items of (index, three random numbers, the process)."""

    def __init__(self, count: int = 24) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        return index, drawn(), os.getpid()


class Noisy(Dataset[Any]):
    """Samples with noise of the global generators on them."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index] + 0.1 * float(drawn().sum()), self.labels[index]


class Flow(IterableDataset[Any]):
    """The same samples as a stream, in an order that each pass draws; each process has its share."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        rows = [*range(first, len(self.images), step)]
        random.shuffle(rows)
        for row in rows:
            yield self.images[row] + 0.1 * float(drawn().sum()), self.labels[row]


def as_dict(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A collate function."""
    return {"images": torch.stack([image for image, _ in items]), "labels": torch.stack([label for _, label in items])}
