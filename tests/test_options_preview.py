"""What is tried out before a study is what will be trained: the options, and the mistakes made with them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made_objectives import ROOT, made, two_classes
from options_helpers import with_norm
from torch import Tensor, nn

from search import check as check_module
from search.check import check
from search.data import Data
from search.errors import ObjectiveError
from search.failures import RaisedError
from search.preview import first_batch


class Seen(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)
        self.types: set[tuple[bool, torch.dtype]] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.types.add((self.training, outputs.dtype))
        return outputs


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_the_first_batch_and_a_check_compute_in_the_precision_asked_for(
    precision: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Seen()
    first_batch(made(model=lambda trial: net, precision=precision), ROOT)
    assert net.types == {(True, dtype), (False, dtype)}
    net.types.clear()
    monkeypatch.setattr(check_module, "MEASURED_SECONDS", 0.0)
    lines = list(check(made(model=lambda trial: net, precision=precision), ROOT, "cpu", 3))
    assert [line.what for line in lines if not line.ok] == []
    assert net.types == {(True, dtype), (False, dtype), (True, torch.float32)}, "a batch and its parts: in float32"


def test_a_check_counts_the_steps_that_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 samples at batches of 4 and 8, three epochs."""
    monkeypatch.setattr(check_module, "MEASURED_SECONDS", 0.0)

    def lines(**options: Any) -> dict[str, str]:
        return {line.what: line.detail for line in check(made(**options), ROOT, "cpu", 3)}

    plain, grouped, cut = lines(), lines(accumulate=2), lines(epoch_batches=2)
    assert plain["schedule constant"].startswith("15 steps")
    assert grouped["schedule constant"].startswith("9 steps")
    assert cut["schedule constant"].startswith("6 steps")
    assert ": 10 steps of " in plain["epoch at batch 4"]
    assert ": 2 steps of " in cut["epoch at batch 4"]


def test_norms_in_frozen_parts_are_left_alone_by_what_is_tried_out() -> None:
    nets: list[nn.Module] = []

    def model(trial: Any) -> nn.Module:
        frozen = with_norm()
        frozen.requires_grad_(False)
        nets.append(nn.Sequential(nn.Linear(3, 64), frozen, nn.Linear(10, 2)))
        return nets[-1]

    first_batch(made(model=model, clip_norm=1.0, ema=0.9), ROOT)
    assert int(nets[-1][1][1].num_batches_tracked) == 0  # type: ignore[index]


class Pairs(torch.utils.data.Dataset[Any]):
    """What NumPy gives, as it is: float64."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.full(3, index / 20), index % 2


@pytest.mark.parametrize("model", [lambda trial: nn.Linear(3, 2), lambda trial: nn.RNN(3, 2)])
def test_float64_inputs_are_said_with_what_to_write(model: Any) -> None:
    rows = two_classes().train
    assert isinstance(rows, tuple)
    doubles = (rows[0].double(), rows[1])
    for given in (Data(doubles, rows), Data(Pairs(), rows)):
        with pytest.raises(ObjectiveError, match=r"float64 \(4, 3\).*into a network of float32: write.*\.float\(\)"):
            first_batch(made(model=model, data=lambda root, given=given: given), ROOT)


def test_a_network_of_float64_takes_them() -> None:
    rows = two_classes().train
    assert isinstance(rows, tuple)
    doubles = (rows[0].double(), rows[1])
    first_batch(made(model=lambda trial: nn.Linear(3, 2).double(), data=lambda root: Data(doubles, doubles)), ROOT)


def test_another_error_of_a_network_is_its_own() -> None:
    with pytest.raises(RaisedError, match="shapes cannot be multiplied"):
        first_batch(made(model=lambda trial: nn.Linear(4, 2)), ROOT)


def test_batches_larger_than_the_training_split_are_the_whole_of_it() -> None:
    seen: set[int] = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(len(targets))
        return nn.functional.cross_entropy(outputs, targets)

    first_batch(made(batch_sizes=(4096,), loss=loss), ROOT)
    assert seen == {40}


@pytest.mark.parametrize("name", ["bach_sizes", "optimiser", "epoch", "ema_decay"])
def test_a_misspelt_argument_is_told_what_was_meant(name: str) -> None:
    with pytest.raises(ObjectiveError, match=f"Objective has no argument '{name}': did you mean '"):
        made(**{name: 3})
    with pytest.raises(ObjectiveError, match="Data has no argument 'test_split': did you mean 'test'"):
        Data(two_classes().train, two_classes().valid, test_split=None)  # type: ignore[call-arg]


def test_what_refuses_misspelt_arguments_can_be_replaced_and_copied() -> None:
    assert replace(made().objective, epochs=7).epochs == 7
    data = two_classes()
    again = copy.deepcopy(data)
    assert torch.equal(again.train[0], data.train[0])
