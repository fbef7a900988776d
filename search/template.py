"""What `dialin init my_model.py` writes: an objective that runs as it stands, commented for its author."""

from __future__ import annotations

from pathlib import Path

from search.failures import PACKAGES
from storage.errors import UsageError

TEMPLATE = '''\
"""Breast tumours: malignant or benign, from 30 measurements each.

Replace data and model with yours, then:    dialin check my_model.py    dialin run my_model.py
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from search import Objective, split


def data(root):
    """Your data. `root` is the folder given with --data; this example needs no files."""
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)  # the inputs, one row a sample
    y = torch.tensor(y)  # the targets: a class number each, for CrossEntropyLoss
    # The search chooses by a fifth (valid) and never sees a tenth (test), which is left for your last word.
    return split(x, y, valid=0.2, test=0.1, stratify=True)


def model(trial):
    """Your network. Ask the trial for whatever is to be searched in it."""
    width = trial.suggest_int("width", 8, 128, log=True)
    depth = trial.suggest_int("depth", 1, 3)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    layers = [nn.BatchNorm1d(30, affine=False)]  # brings measurements of all sizes to one scale
    for inputs in [30] + [width] * (depth - 1):
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 2))


# Optimizer, learning rate, momentum, L2, batch size and schedule are searched without a word from you.
objective = Objective(
    model=model,
    data=data,
    loss=nn.CrossEntropyLoss(),  # called as loss(outputs, targets), a mean over the batch
    metric=("accuracy", "loss"),  # the first is searched, all are recorded
    epochs=20,  # of one full trial
    trials=40,  # of one study, unless --trials says otherwise
)
'''


def write_template(path: Path, force: bool = False) -> None:
    """Write the template.

    Args:
        path: the file to write, ending in .py, in a folder that exists.
        force: write over a file that is there.

    Raises:
        UsageError: the file exists, has an impossible name, or cannot be written.
    """
    if path.suffix != ".py":
        raise UsageError(f"{path} must end in .py, as in `dialin init my_model.py`")
    if path.stem in PACKAGES:
        raise UsageError(f"{path} would have the name of a package of dialin's; choose another")
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} into; make it first")
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(TEMPLATE.replace("my_model.py", path.name))
    except FileExistsError:
        raise UsageError(f"{path} exists already; choose another name, or write over it with --force") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
