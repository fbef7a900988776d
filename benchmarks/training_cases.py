"""What benchmarks/training.py trains: each model with its data twice, as Dialin has it and as most users write it.

A case's images are the same in both, as are batch size, optimizer, rate and what is evaluated on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms
from torchvision.models import resnet18

from objectives import cifar10, fashion_mnist, shakespeare
from search import Data, Task, find_dataset, supervised

Pairs = Dataset[tuple[Any, Any]]
# Four fifths of the 1,797, as scikit-learn orders them; the others are evaluated on.
DIGITS_TO_TRAIN = 1437


@dataclass(frozen=True)
class Case:
    """`data`: Dialin's, whose `valid` both evaluate on. `train`, `test`: the same samples with per-item transforms.

    loss(net, inputs, targets) is the mean over a batch; `hits` says whether a share of right classes is evaluated,
    otherwise the loss is.
    """

    task: Callable[[], Task]
    data: Data
    train: Pairs
    test: Pairs
    optimizer: str
    rate: float
    hits: bool = True

    @property
    def counts(self) -> tuple[int, int]:
        """Samples to train on and to evaluate."""
        return len(cast(Sized, self.train)), len(cast(Sized, self.test))  # torch's Dataset declares no length

    @property
    def metric(self) -> str:
        return "accuracy" if self.hits else "loss"


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of class scores (N, C) or, of each place in a text, (N, T, C)."""
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class Items(Dataset[tuple[Any, int]]):
    """Images in an array, transformed one by one, as torchvision's datasets are."""

    def __init__(self, images: Any, classes: Any, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.classes, self.transform = images, classes, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.classes[index])


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """What to read and what follows it: from a random place of each stretch to train, from its start to evaluate."""

    def __init__(self, text: Tensor, count: int, train: bool) -> None:
        self.text, self.count, self.train = text, count, train

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * shakespeare.CONTEXT + (int(torch.randint(shakespeare.CONTEXT, ())) if self.train else 0)
        window = self.text[start : start + shakespeare.CONTEXT + 1].long()
        return window[:-1], window[1:]


def _classifier(net: Callable[[], nn.Module]) -> Callable[[], Task]:
    return lambda: supervised(net(), nn.CrossEntropyLoss())


def _mlp(inputs: int, width: int) -> Callable[[], Task]:
    """Two hidden layers: Optuna's official PyTorch example has one to three, of 4 to 128 units."""
    layers = (inputs, width), (width, width)
    return _classifier(
        lambda: nn.Sequential(
            nn.Flatten(), *(one for sizes in layers for one in (nn.Linear(*sizes), nn.ReLU())), nn.Linear(width, 10)
        )
    )


def _cnn() -> nn.Module:
    """Two convolutions and two dense layers, as in PyTorch's MNIST example, with pooling after each convolution."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Dropout(0.25), nn.Linear(128, 10)),
    )


def _resnet() -> nn.Module:
    """torchvision's, with a stem for small images."""
    net = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def digits(_root: Path, count: int) -> Case:
    """scikit-learn's 1,797 images."""
    found = load_digits()
    images, classes = found.images.astype("float32") / 16, torch.tensor(found.target)
    count = min(count, DIGITS_TO_TRAIN)
    transform = transforms.ToTensor()
    parts = [slice(0, count), slice(DIGITS_TO_TRAIN, None)]
    train, test = (Items(images[part], found.target[part], transform) for part in parts)
    ours, held_out = ((torch.tensor(images[part]).unsqueeze(1), classes[part]) for part in parts)
    return Case(_mlp(64, 128), Data(ours, held_out), train, test, "momentum", 0.05)


def _clothes(task: Callable[[], Task], rate: float) -> Callable[[Path, int], Case]:
    def case(root: Path, count: int) -> Case:
        root = find_dataset("FashionMNIST/raw", datasets.FashionMNIST.resources, root, get=fashion_mnist.GET)
        held_out = max(1000, count // 6)
        several = []
        for train, some in ((True, count), (False, held_out)):
            whole = datasets.FashionMNIST(root, train=train, transform=transforms.ToTensor())
            some = min(some, len(whole))
            several.append((Subset(whole, range(some)), (whole.data[:some].unsqueeze(1), whole.targets[:some])))
        (train_items, train_tensors), (test_items, test_tensors) = several
        return Case(task, Data(train_tensors, test_tensors), train_items, test_items, "momentum", rate)

    return case


def small_images(_root: Path, count: int) -> Case:
    """Noise of CIFAR's shape: what it costs to train on does not depend on what is in it."""
    count = min(count, 1000)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count + 200, *cifar10.IMAGE), dtype=torch.uint8, generator=draw)
    classes = torch.randint(10, (count + 200,), generator=draw)
    usual = [transforms.ToTensor(), transforms.Normalize(cifar10.MEAN, cifar10.SPREAD)]
    random = [transforms.RandomCrop(32, cifar10.SHIFT, padding_mode="reflect"), transforms.RandomHorizontalFlip()]
    arrays = [transforms.functional.to_pil_image(image) for image in images]
    train = Items(arrays[:count], classes[:count], transforms.Compose([*random, *usual]))
    test = Items(arrays[count:], classes[count:], transforms.Compose(usual))
    ours, held_out = ((images[part], classes[part]) for part in (slice(count), slice(count, None)))
    data = Data(ours, held_out, scale=cifar10.normalised, augment=cifar10.crop_and_flip)
    return Case(_classifier(_resnet), data, train, test, "momentum", 0.01)


def text(root: Path, count: int) -> Case:
    """The windows of objectives/shakespeare.py."""
    whole = shakespeare.data(root)
    assert isinstance(whole.train, tuple)
    assert isinstance(whole.valid, tuple)
    (stretches,), (windows,) = whole.train, whole.valid
    count = min(count, 2000)
    held_out = min(count // 6, len(windows))
    data = Data((stretches[:count],), (windows[:held_out],), scale=whole.scale, augment=whole.augment)
    train = Windows(_joined(stretches[:count]), count, train=True)
    test = Windows(_joined(windows[:held_out]), held_out, train=False)

    def task() -> Task:
        return Task(shakespeare.Transformer(width=96, depth=2, heads=4, dropout=0.1), shakespeare.step)

    return Case(task, data, train, test, "adamw", 0.001, hits=False)


def _joined(pieces: Tensor) -> Tensor:
    """Overlapping stretches of a text, each CONTEXT further on, as the text that they were cut from."""
    context = shakespeare.CONTEXT
    return torch.cat([pieces[:, :context].flatten(), pieces[-1, context:]])


CASES: Mapping[str, Callable[[Path, int], Case]] = {
    "digits-mlp": digits,
    "fashion-mlp": _clothes(_mlp(784, 64), 0.05),
    "fashion-mlp-128": _clothes(_mlp(784, 128), 0.05),
    "fashion-cnn": _clothes(_classifier(_cnn), 0.02),
    "resnet18": small_images,
    "transformer": text,
}
