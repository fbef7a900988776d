"""As tiny.py, but the first trials each have an accident of their own. The first check is no trial of a study."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import tiny
import torch
from optuna import Trial
from torch import Tensor, nn

from search import Objective, Task, supervised

ACCIDENTS: dict[int, Callable[[], float]] = {}
# What does not fit once does not fit again.
WANTING = (3, 4)


def accident(number: int) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Let it happen in the trial of this number, after its first epoch. What it returns multiplies the loss."""

    def register(happens: Callable[[], float]) -> Callable[[], float]:
        ACCIDENTS[number] = happens
        return happens

    return register


@accident(0)
def talk() -> float:
    print("hello from print")
    os.write(1, b"hello from a descriptor\n")
    os.system("echo hello from a child")
    libc = ctypes.CDLL(None)
    libc.puts(b"hello from C")
    libc.fflush(None)
    return 1.0


@accident(1)
def mistake() -> float:
    raise ValueError("no such colour")


@accident(2)
def diverge() -> float:
    return float("nan")


@accident(3)
def fill_the_device() -> float:
    raise torch.OutOfMemoryError("tried to allocate 99 GiB")


@accident(4)
def fill_the_machine() -> float:
    raise MemoryError


def model(trial: Trial) -> Task:
    net = tiny.model(trial)
    plain = supervised(net, nn.CrossEntropyLoss())
    steps = 0
    of_a_study = "InMemory" not in type(trial.study._storage).__name__
    happens = ACCIDENTS.get(trial.number) if of_a_study else None

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        nonlocal steps
        steps += 1
        total, weight = plain.step(net, batch)
        now = steps == 8 or (steps > 8 and trial.number in WANTING)
        return total * (happens() if happens and now else 1.0), weight

    return Task(net, step, plain.predict)


# 96 points to train on are three batches: the eighth is in the third epoch.
objective = Objective(model=model, data=tiny.data, metric="accuracy", epochs=4, trials=6, batch_sizes=(32,))
