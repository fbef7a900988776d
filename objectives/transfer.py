"""Transfer: a ResNet-18 that was trained on ImageNet learns ten kinds of clothes from 2,000 images, its head first.

The weights are torchvision's file, looked for where torchvision itself puts it (hub/checkpoints in $TORCH_HOME,
~/.cache/torch) and in hub/checkpoints of $DIALIN_DATA; nothing is downloaded. Without them the same network is
trained from scratch, all of it at once, and a line says so. With them the backbone rests, batch norms and all, until
the new head has learned from so many batches; then it learns along at a rate of its own (Kumar et al. 2022,
Fine-Tuning can Distort Pretrained Features). Images are Fashion-MNIST's, made as large and as colourful as needed.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from optuna import Trial
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.datasets import FashionMNIST
from torchvision.models import ResNet18_Weights, resnet18

from search import Data, DataCorrupt, DataMissing, Objective, Task, data_root, find_dataset, split, supervised

GET = """python -c "import torchvision; torchvision.datasets.FashionMNIST('{cache}', download=True)\""""
URL = ResNet18_Weights.IMAGENET1K_V1.url
FILE = URL.rpartition("/")[2]
# ImageNet's, from torchvision's documentation of the weights.
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 64  # pixels; the backbone has seen 224, which takes twelve times as long
FEATURES, TRAIN, VALID = 512, 2000, 1000


class HeadFirst(nn.Module):
    """A head on a backbone that rests for the first `rest` training batches; a checkpoint holds their count."""

    batches: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Module, rest: int) -> None:
        super().__init__()
        self.backbone, self.head, self.rest = backbone, head, rest
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        resting = self.training and int(self.batches) < self.rest
        self.backbone.train(self.training and not resting)
        if self.training:
            self.batches += 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not resting):
            features = self.backbone(images)
        return self.head(features)


@cache
def pretrained(root: Path) -> Path | None:
    """The file of weights, None where there is none: then a line says so, once a process."""
    hub = Path(torch.hub.get_dir()).parent
    try:
        found = find_dataset("hub/checkpoints", [(FILE, None)], root, get="", cache=hub)
    except DataMissing:
        say = "transfer: no %s in hub/checkpoints of %s or %s: it is trained from scratch"
        logging.getLogger(__name__).warning(say, FILE, root, hub)
        return None
    return found / "hub" / "checkpoints" / FILE


def loaded(path: Path) -> nn.Module:
    """ResNet-18 with the weights of a file. DataCorrupt: they are not such a network's."""
    net = resnet18()
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise DataCorrupt(f"corrupt file {path}: it holds no ResNet-18; delete it and get {URL} again") from error
    return net


def model(trial: Trial) -> Task:
    rest, dropout = trial.suggest_int("rest", 0, 200), trial.suggest_float("dropout", 0.0, 0.5)
    scale = trial.suggest_float("backbone_lr_scale", 0.01, 1.0, log=True)
    weights = pretrained(data_root())
    backbone, rest, scale = (loaded(weights), rest, scale) if weights else (resnet18(), 0, 1.0)
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(FEATURES, 10))
    backbone.fc = nn.Identity()
    net = HeadFirst(backbone.to(memory_format=torch.channels_last), head, rest)
    spared: dict[str, Any] = {"params": [*backbone.parameters()], "lr_scale": scale}
    task = supervised(net, nn.CrossEntropyLoss())
    return replace(task, parameters=lambda _: [{"params": [*head.parameters()]}, spared])


def as_imagenet(images: Tensor) -> Tensor:
    """Bytes (N, 1, 28, 28) to what the backbone has learned from: floats (N, 3, 64, 64), normalised."""
    mean, spread = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, SPREAD))
    return (interpolate(images / 255, size=SIDE, mode="bilinear") - mean) / spread


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every second image mirrored, by chance. Images: (N, 3, 64, 64)."""
    coins = torch.rand(len(images), 1, 1, 1, device=images.device, generator=generator)
    return torch.where(coins < 0.5, images.flip(-1), images)


def clothes(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    try:
        part = FashionMNIST(root, train=train)
    except Exception as error:
        raise DataCorrupt(f"corrupt file in {root}/FashionMNIST/raw: {error}; delete it and get it again") from error
    return part.data.unsqueeze(1), part.targets


def data(root: Path) -> Data:
    root = find_dataset("FashionMNIST/raw", FashionMNIST.resources, root, get=GET)
    parts = split(*clothes(root, train=True), valid=VALID, test=TRAIN, stratify=True)
    assert parts.test is not None  # few images, with equal shares of the classes: these train
    return Data(parts.test, parts.valid, clothes(root, train=False), scale=as_imagenet, augment=flip)


objective = Objective(model=model, data=data, metric=("accuracy", "loss"), batch_sizes=(32, 64, 128), epochs=10)
