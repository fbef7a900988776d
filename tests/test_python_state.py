"""What a recorded step would freeze is found in whatever a step's code keeps, and such a step is trained eagerly."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from recording import CUDA, Recorders, assert_close, curve, made
from torch import Tensor, nn

from search.objective import Task, supervised
from search.python_state import changed, kept

pytest_plugins = ["recording_fixture"]


class Waits(nn.Linear):
    """Looks at a number that is on the device."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (2.0 if float(inputs.mean()) > 0 else 1.0)


class Draws(nn.Linear):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(6, 2)
        self.draw = draw

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (self.draw() if self.training else 1.0)


class Counts(nn.Linear):
    """Trains on less and less of the loss."""

    steps = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.steps += self.training
        return super().forward(inputs) * (1.0 + self.steps / 10)


class Rebinds(nn.Linear):
    """Has another tensor in a buffer's place after each step."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(6, 2)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        return super().forward(inputs - self.mean)


def in_a_closure() -> Task:
    task, steps = supervised(nn.Linear(6, 2), nn.CrossEntropyLoss()), [0]

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        steps[0] += net.training
        total, weight = task.step(net, batch)
        return total * (1 + steps[0] / 10), weight

    return replace(task, step=step)


def of_its_own() -> nn.Module:
    return Draws(np.random.default_rng(0).random)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda trial: Waits(6, 2), "called a synchronizing CUDA operation"),
        (lambda trial: Draws(random.random), "Python's random is another"),
        (lambda trial: Draws(np.random.rand), "NumPy's random is another"),
        (lambda trial: of_its_own(), "Draws.draw.__self__ is another"),
        (lambda trial: Counts(6, 2), "Counts.steps is another"),
        (lambda trial: Rebinds(), "Rebinds.mean is another"),
        (lambda trial: in_a_closure(), "steps[0] is another"),
    ],
)
def test_what_a_recording_would_freeze_is_trained_eagerly(
    model: Any, why: str, recording: Recorders, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"loss": None} if why.startswith("steps") else {}
    plain = curve(made(model, **options))
    tape = recording()
    assert_close(plain, curve(made(model, **options)))
    assert tape.plays == []
    [said] = [record.getMessage() for record in caplog.records]
    assert why in said


class Holds:
    """An object of a person's own."""

    def __init__(self, value: Any) -> None:
        self.value = value


LEVEL = [0]


def of_the_module() -> int:
    LEVEL[0] += 1
    return LEVEL[0]


def counted(holder: Holds, by: int = 1) -> None:
    holder.value += by


@pytest.mark.parametrize(
    ("root", "step", "where"),
    [
        (holder := Holds(0), functools.partial(counted, holder), "Holds.value"),
        (deep := Holds({"a": [1, (2, Holds(3))]}), lambda: deep.value["a"].append(4), "Holds.value['a'].length"),
        (of_the_module, of_the_module, "of_the_module: LEVEL[0]"),
        (partial := functools.partial(counted, Holds(1)), partial, "partial.args[0].value"),
        (dice := Holds(random.Random(0)), lambda: dice.value.random(), "Holds.value"),
        (small := Holds(np.zeros(3)), lambda: small.value.fill(1), "Holds.value"),
        (written := Holds(torch.zeros(2)), lambda: written.value.add_(1), "Holds.value"),
        (Holds(None), torch.rand(1).new_empty(1).uniform_, "torch's random of the CPU"),
    ],
)
def test_a_change_is_named_by_the_path_to_it(root: Any, step: Callable[[], Any], where: str) -> None:
    before = kept(CUDA, root)
    assert changed(before, kept(CUDA, root)) is None
    step()
    assert changed(before, kept(CUDA, root)) == where


def test_what_is_written_into_tensors_on_the_device_is_no_change() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = kept(torch.device("cpu"), net)
    net(torch.rand(4, 2)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert changed(before, kept(torch.device("cpu"), net)) is None
    net[1].running_mean = torch.zeros(2)
    assert changed(before, kept(torch.device("cpu"), net)) == "Sequential.1.running_mean"


def test_what_leads_to_itself_has_an_end() -> None:
    holder = Holds(None)
    holder.value = [holder, {"again": holder}]
    assert changed(kept(CUDA, holder), kept(CUDA, holder)) is None


def test_what_refuses_to_be_looked_at_is_passed_over() -> None:
    class Shy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    holder = Holds((Shy(), 1))
    before = kept(CUDA, holder)
    holder.value = (holder.value[0], 2)
    assert changed(before, kept(CUDA, holder)) is not None
