"""A trial that goes on from within an epoch has the curve of one that nothing disturbed, bit for bit."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy
import pytest
import resumable
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from training_helpers import Recorder, fit

from search.data import Data, Folds
from search.objective import Objective, Task, supervised
from search.reporting import Interrupted, Verdict

INPUTS = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS[:, :4].argmax(1)
VALID = (INPUTS[60:], TARGETS[60:])


class Noisy(Dataset[Any]):
    """Draws from every global generator for each sample, as transforms do."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return INPUTS[index] * random.uniform(0.9, 1.1) + 0.1 * torch.randn(16), TARGETS[index]


class Flow(IterableDataset[Any]):
    """The same as a stream."""

    def __iter__(self) -> Iterator[Any]:
        return (Noisy()[index] for index in range(60))


def data(train: Any = (INPUTS[:60], TARGETS[:60]), **shaping: Any) -> Data:
    return Data(train, VALID, **shaping)


def objective(given: Data | Folds, **arguments: Any) -> Objective:
    """Dropout, batch norm and a layer that draws from Python's generator; eight batches an epoch, one of them short."""
    fixed: dict[str, Any] = {"epochs": 3, "batch_sizes": (8,), "metric": ("accuracy", "loss")}
    return replace(resumable.objective, data=lambda root: given, **fixed | arguments)


def weighed(trial: Any) -> Task:
    """Its step counts with a number that a checkpoint cannot hold."""
    count: Any = numpy.float32(0.1)
    plain = supervised(resumable.model(trial), nn.CrossEntropyLoss())

    def step(net: nn.Module, batch: Any) -> Any:
        total, weight = plain.step(net, batch)
        return total, weight * count

    return replace(plain, step=step)


CASES = {
    "tensors that are augmented": objective(data(augment=resumable.noise)),
    "accumulated gradients": objective(data(), accumulate=3),
    "an average of the weights": objective(data(), ema=0.9, clip_norm=1.0),
    "weighted samples": objective(data(weights=torch.arange(1.0, 61.0))),
    "epochs that are no pass": objective(data(augment=resumable.noise), epoch_batches=5),
    "a dataset": objective(data(Noisy())),
    "a dataset in other processes": objective(data(Noisy(), loader_workers=2), epochs=2),
    "a stream": objective(data(Flow()), epoch_batches=8),
    "a weight of numpy's": objective(data(), model=weighed, loss=None),
    "folds": objective(Folds((data(augment=resumable.noise), data())), epochs=2),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_bit_for_bit(case: str) -> None:
    per_epoch = 5 if CASES[case].epoch_batches == 5 else 8
    places = ((0, 3), (1, 1), (1, 4), (1, per_epoch), (2, 6))
    whole = Recorder(keep_within=places)
    result = fit(CASES[case], whole, seed=7)
    assert {*whole.within} >= {(1, per_epoch)}
    for (epochs, _), state in whole.within.items():
        rest = Recorder(restored=state)
        again = fit(CASES[case], rest, seed=7)
        assert rest.curve == whole.curve[epochs:]
        assert (again.value, again.best_epoch) == (result.value, result.best_epoch)
        assert checksums(again.weights) == checksums(result.weights)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Whatever ends does so by itself, and not because garbage was collected."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("ended", [{"stop_after": 3}, {"stop_after": 9}, {"verdicts": {1: Verdict.HAND_BACK}}, {}])
@pytest.mark.parametrize("dataset", [Noisy, Flow])
def test_a_datasets_processes_end_with_the_training_however_that_ends(
    dataset: Callable[[], Any], ended: dict[str, Any]
) -> None:
    """In the middle of an epoch, in its evaluation, between two epochs, and at the end."""
    before = {*multiprocessing.active_children()}
    drawn = objective(Data(dataset(), Noisy(), loader_workers=1), epochs=2, epoch_batches=8)
    with contextlib.nullcontext() if not ended else pytest.raises(Interrupted):
        fit(drawn, Recorder(**ended))
    assert {*multiprocessing.active_children()} <= before


class Called(Recorder):
    """Taken back once `asked` is there: keeps a state between two batches then, as a worker's reporter does."""

    asked = False

    def interrupted(self) -> bool:
        return self.asked

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        if self.asked:
            self.within[(len(self.results), batch)] = state()


def test_an_interruption_while_a_batch_is_drawn_loses_no_batch() -> None:
    """Where a dataset is slow most interruptions come then."""
    reporter, drawn, trained = Called(), list[int](), list[int]()

    class Slow(Dataset[Any]):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            drawn.append(index)
            reporter.asked |= len(drawn) == 20  # in the third batch of eight
            return INPUTS[index], TARGETS[index]

    def counted(trial: Any) -> Task:
        plain = supervised(resumable.model(trial), nn.CrossEntropyLoss())

        def step(net: nn.Module, batch: Any) -> Any:
            trained.append(len(batch[0]))
            return plain.step(net, batch)

        return replace(plain, step=step)

    with pytest.raises(Interrupted):
        fit(objective(data(Slow()), model=counted, loss=None), reporter)
    assert len(trained) == 3
    assert {*reporter.within} == {(0, 3)}


def checksums(weights: dict[str, Any] | None) -> list[str]:
    """Of the one network, or of each fold's."""
    assert weights is not None
    return (
        [resumable.checksum(part) for part in weights.values()]
        if "fold-1" in weights
        else [resumable.checksum(weights)]
    )
