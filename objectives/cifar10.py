"""CIFAR-10: torchvision's ResNet-18 with a stem for small images, on 60,000 images, 32x32, in ten classes.

It reads the "binary version" of the data set, in which nothing has to be unpickled: files of 10,000 records, each a
class (one byte) and an image (3,072 bytes: red, green, blue, row by row). 45,000 of the official training images
train and 5,000 validate; the official test images are the test split. Such a network, cropped and flipped, reaches
about 95% on a GPU in 200 epochs (github.com/kuangliu/pytorch-cifar).
"""

from __future__ import annotations

from pathlib import Path

import torch
from optuna import Trial
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models import resnet18

from search import Data, DataCorrupt, Objective, find_dataset, split

SITE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
GET = f"mkdir -p '{{cache}}' && curl --fail {SITE} | tar xz -C '{{cache}}'"
FOLDER, TEST = "cifar-10-batches-bin", "test_batch.bin"
TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
RECORDS, IMAGE = 10_000, (3, 32, 32)
# Mean and standard deviation of the 50,000 training images' pixels by channel, from 0 to 1 (kuangliu/pytorch-cifar
# and airbench give the same, but for the last digit).
MEAN, SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SHIFT = 4  # pixels on each side, as He et al. 2016


def model(trial: Trial) -> nn.Module:
    """ResNet-18 whose stem keeps the 32x32 pixels: ImageNet's would leave 8x8 of them (He et al. 2016, section 4.2)."""
    dropout = trial.suggest_float("dropout", 0.0, 0.3)
    net = resnet18(num_classes=10, zero_init_residual=trial.suggest_categorical("zero_init_residual", [False, True]))
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    net.fc = nn.Sequential(nn.Dropout(dropout), net.fc)
    # For a GPU, whose tensor cores (bfloat16, TF32) take this layout; on a CPU training lays the weights so by itself.
    return net.to(memory_format=torch.channels_last)


def normalised(images: Tensor) -> Tensor:
    """Bytes (N, 3, 32, 32) to floats of mean 0 and spread 1 by channel."""
    mean, spread = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, SPREAD))
    return (images / 255 - mean) / spread


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (C, H, W) shifted by up to four pixels, mirrored into the gap, and every second one flipped."""
    count, _, height, width = images.shape

    def random(high: int) -> Tensor:
        return torch.randint(high, (count, 1), device=images.device, generator=generator)

    rows = random(2 * SHIFT + 1) + torch.arange(height, device=images.device)
    columns = random(2 * SHIFT + 1) + torch.arange(width, device=images.device)
    columns = torch.where(random(2) == 1, columns.flip(1), columns)
    padded = pad(images, (SHIFT,) * 4, mode="reflect").permute(0, 2, 3, 1)
    number = torch.arange(count, device=images.device)
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def images_and_classes(path: Path, records: int = RECORDS) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), uint8, and classes (N,) of one file. DataCorrupt: its size or a class is wrong."""
    content, length = path.read_bytes(), 1 + torch.Size(IMAGE).numel()
    if len(content) != records * length:
        wrong = f"{len(content)} bytes, not {records * length}"
    else:
        table = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(records, length)
        if table[:, 0].max() < 10:
            return table[:, 1:].reshape(-1, *IMAGE), table[:, 0].long()
        wrong = f"a class is {table[:, 0].max()}, not 0 to 9"
    raise DataCorrupt(f"corrupt file {path}: {wrong}; delete it and get it again")


def data(root: Path) -> Data:
    folder = find_dataset(FOLDER, [(name, None) for name in (*TRAIN, TEST)], root, get=GET) / FOLDER
    images, classes = map(torch.cat, zip(*(images_and_classes(folder / name) for name in TRAIN), strict=True))
    test = images_and_classes(folder / TEST)
    return split(images, classes, valid=5000, test=test, stratify=True, scale=normalised, augment=crop_and_flip)


objective = Objective(
    model=model,
    data=data,
    loss=nn.CrossEntropyLoss(),
    metric=("accuracy", "loss"),
    batch_sizes=(64, 128, 256),
    epochs=30,
)
