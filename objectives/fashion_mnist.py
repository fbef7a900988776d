"""Fashion-MNIST: a CNN on 70,000 images of clothes, 28x28, in ten classes.

The 60,000 official training images are split into 50,000 to train and 10,000 to validate; the official test
images are the test split. Its files are looked for with `find_dataset`; nothing is downloaded.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from optuna import Trial
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

from search import Data, DataCorrupt, Objective, find_dataset, split

GET = """python -c "import torchvision; torchvision.datasets.FashionMNIST('{cache}', download=True)\""""


def block(channels: int, width: int) -> tuple[nn.Module, ...]:
    """Half the image's side, then look again. Pooling first, before the norm too, leaves a quarter of the work."""
    halve = nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU()
    return *halve, nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()


def model(trial: Trial) -> nn.Module:
    width = trial.suggest_int("width", 8, 32, log=True)
    blocks = trial.suggest_int("blocks", 2, 3)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    widths = [1, *(width * 2**i for i in range(blocks))]
    layers = [layer for before, after in pairwise(widths) for layer in block(before, after)]
    side = 28 // 2**blocks
    head = nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1] * side * side, 10)
    # For a GPU, whose tensor cores (bfloat16, TF32) take this layout; on a CPU training lays the weights so by itself.
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every second image mirrored, by chance: a shoe points either way. Images: (N, 1, 28, 28)."""
    coins = torch.rand(len(images), 1, 1, 1, device=images.device, generator=generator)
    return torch.where(coins < 0.5, images.flip(-1), images)


def images_and_classes(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) and classes (N,). They stay bytes until they are in a batch."""
    try:
        part = FashionMNIST(root, train=train)
    except Exception as error:
        files = root / "FashionMNIST" / "raw" / ("train-*" if train else "t10k-*")
        raise DataCorrupt(f"corrupt file among {files}: {error}; delete them and get them again") from error
    return part.data.unsqueeze(1), part.targets


def data(root: Path) -> Data:
    root = find_dataset("FashionMNIST/raw", FashionMNIST.resources, root, get=GET)
    test = images_and_classes(root, train=False)
    return split(*images_and_classes(root, train=True), valid=10_000, test=test, stratify=True, augment=flip)


objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), metric="accuracy", epochs=10, trials=30)
