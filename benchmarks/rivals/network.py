"""What every system of the race trains: one network, and the same images in the same two parts."""

from __future__ import annotations

from torch import nn

SIDE = 28
CLASSES = 10
WIDTHS = (8, 32)
DROPOUTS = (0.0, 0.5)


def small_cnn(width: int, dropout: float) -> nn.Sequential:
    """Two convolutions, each with half the image's side behind it, and a linear layer. Images: (N, 1, 28, 28)."""
    first = nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    head = nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * (SIDE // 4) ** 2, CLASSES)
    return nn.Sequential(*first, *second, *head)


def parts(images: int) -> tuple[range, range]:
    """The official training images, which come in random order, that train, and a quarter as many that validate."""
    return range(images), range(images, images + images // 4)
