"""The training loop that the race's other two systems run: the one of Optuna's official PyTorch example.

A dataset of items (of torchvision, with a transform for each), a DataLoader in the training process, an eager loop in
one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from contests import CONTESTS, Contest, Parts
from plain_recipe import Params, make_optimizer, make_schedule
from torch import nn
from torch.utils.data import DataLoader


def arguments(text: str | None) -> argparse.Namespace:
    """What race.py says to a script."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--contest", choices=CONTESTS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="where its data lie, unpacked")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True, help="a line of JSON for each event goes here")
    return parser.parse_args()


def note(log: Path, trial: str, event: str, **values: Any) -> None:
    """Add a line; short lines of several processes do not mix. Events are start, epoch and end."""
    with log.open("a") as file:
        file.write(json.dumps({"at": time.time(), "trial": trial, "event": event, **values}) + "\n")


def fit(params: Params, contest: Contest, data: Parts, epochs: int) -> Iterator[float]:
    """Train; the validation accuracy after each epoch."""
    train = DataLoader(data[0], batch_size=params["batch_size"], shuffle=True)
    valid = DataLoader(data[1], batch_size=256)
    net = contest.net(params)
    optimizer = make_optimizer(params, net)
    schedule = make_schedule(params, optimizer, epochs * len(train), contest.objective)
    loss = nn.CrossEntropyLoss()
    for _ in range(epochs):
        net.train()
        for *inputs, classes in train:
            optimizer.zero_grad()
            loss(net(*inputs), classes).backward()
            optimizer.step()
            schedule.step()
        yield accuracy(net, valid)


def accuracy(net: nn.Module, loader: DataLoader[Any]) -> float:
    """The share of examples whose class the network names."""
    net.eval()
    right = seen = 0
    with torch.no_grad():
        for *inputs, classes in loader:
            right += int((net(*inputs).argmax(1) == classes).sum())
            seen += len(classes)
    return right / seen
