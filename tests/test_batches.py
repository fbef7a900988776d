"""Batches: every sample once, in an order of (seed, epoch), scaled and augmented, of tensors and Datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from training_helpers import CPU, Recorder, first_recipe, fit

from search.batches import EvaluationBatches, TrainingBatches
from search.data import Data, Split
from search.errors import ObjectiveError
from search.objective import Objective

POINTS = torch.randn(103, 3, generator=torch.Generator().manual_seed(0))


def batches(part: Split, batch_size: int = 10, seed: int = 0, **shaping: Any) -> TrainingBatches:
    return TrainingBatches(Data(part, part, **shaping), None, batch_size, seed=seed, device=CPU)


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(103, 10, [10] * 10 + [3]), (5, 10, [5])])
def test_every_sample_is_drawn_once_an_epoch(count: int, batch_size: int, sizes: list[int]) -> None:
    found = batches((torch.arange(count),), batch_size)
    drawn = [batch[0] for batch in found.epoch(1)]
    assert [len(batch) for batch in drawn] == sizes
    assert sorted(torch.cat(drawn).tolist()) == list(range(count))
    assert (len(found), found.samples(1)) == (len(sizes), count)


@pytest.mark.parametrize(("count", "batch_size", "steps", "samples"), [(101, 10, 10, 100), (1, 10, 1, 1), (3, 1, 3, 3)])
def test_a_last_batch_of_a_single_sample_is_left_out_when_there_are_others(
    count: int, batch_size: int, steps: int, samples: int
) -> None:
    found = batches((torch.arange(count),), batch_size)
    assert (len(found), found.samples(1)) == (steps, samples)
    assert [sum(len(batch[0]) for batch in found.epoch(epoch)) for epoch in (1, 2)] == [samples] * 2


@pytest.mark.parametrize("part", [(torch.arange(50),), TensorDataset(torch.arange(50))])
def test_the_order_is_a_function_of_seed_and_epoch(part: Split) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(row) for batch in batches(part, seed=seed).epoch(epoch) for row in batch[0]]

    assert order(3, 2) == order(3, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_bytes_stay_bytes_until_they_are_in_a_batch() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)[:, None]
    drawn = torch.cat([batch[0] for batch in batches((pixels,)).epoch(1)])
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn.sort(0).values, pixels / 255)
    held_out = EvaluationBatches((pixels,), Data((pixels,), (pixels,)), 10, device=CPU)
    assert torch.equal(torch.cat([batch[0] for batch in held_out]), pixels / 255)


def test_scale_is_for_every_batch_and_augment_for_training_batches_after_it() -> None:
    data = Data((POINTS,), (POINTS,), scale=lambda x: x + 10, augment=lambda x, generator: -x)
    for batch in TrainingBatches(data, None, 10, seed=0, device=CPU).epoch(1):
        assert (batch[0] < -5).all()
    for batch in EvaluationBatches(data.valid, data, 10, device=CPU):
        assert (batch[0] > 5).all()


def test_augmentation_is_a_function_of_seed_and_epoch() -> None:
    def augmented(seed: int, epoch: int) -> Tensor:
        zeros = (torch.zeros(30, 2),)
        found = batches(zeros, seed=seed, augment=lambda x, g: x + torch.rand(x.shape, generator=g))
        return torch.cat([batch[0] for batch in found.epoch(epoch)])

    assert torch.equal(augmented(1, 2), augmented(1, 2))
    assert not torch.equal(augmented(1, 2), augmented(1, 3))
    assert not torch.equal(augmented(1, 2), augmented(2, 2))
    assert len(augmented(1, 2).unique()) == 60  # no two batches alike


@pytest.mark.parametrize("argument", ["scale", "augment"])
def test_shaping_batches_without_a_first_tensor_is_refused(argument: str) -> None:
    shaping: dict[str, Any] = {argument: lambda *arguments: arguments[0]}
    with pytest.raises(ObjectiveError, match=f"Data's {argument} needs batches whose first item is a tensor"):
        next(batches(Items(), **shaping).epoch(1))


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Items(Dataset[Any]):
    """Ten items of nested structure."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = torch.tensor(float(index))
        return {"pair": Pair(one, 2 * one), "list": [one, (one, index)], "name": str(index)}


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_dataset_with_items_of_any_structure_is_batched(loader_workers: int) -> None:
    drawn = list(batches(Items(), 4, loader_workers=loader_workers).epoch(1))
    assert [len(batch["name"]) for batch in drawn] == [4, 4, 2]
    for batch in drawn:
        assert isinstance(batch["pair"], Pair)
        assert torch.equal(batch["pair"].second, 2 * batch["list"][0])
        assert batch["name"] == [str(index) for index in batch["list"][1][1].tolist()]


def test_items_are_put_together_as_the_author_says() -> None:
    drawn = list(batches(Items(), 4, collate=lambda items: torch.tensor([i["list"][1][1] for i in items])).epoch(1))
    assert sorted(torch.cat(drawn).tolist()) == list(range(10))


def test_evaluation_batches_are_bounded_by_what_an_input_takes() -> None:
    def sizes(part: Split, batch_size: int) -> list[int]:
        found = EvaluationBatches(part, Data(part, part), batch_size, device=CPU)
        return [len(batch[0]) for batch in found]

    small, large = (torch.zeros(300, 1),), (torch.zeros(20, 2**14, dtype=torch.uint8),)
    assert sizes(small, 16) == [128, 128, 44]
    assert sizes(large, 4) == [8, 8, 4]
    assert sizes(large, 16) == [16, 4]
    assert sizes(Samples(50), 8) == [32, 18]


class Samples(Dataset[tuple[Tensor, int]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(2), index


def test_every_recipe_of_a_study_is_evaluated_on_the_same_batches() -> None:
    """As a loss that compares the samples of a batch with each other needs it."""
    sizes: list[list[int]] = []

    class Counting(nn.Linear):
        def forward(self, points: Tensor) -> Tensor:
            if not self.training:
                sizes[-1].append(len(points))
            return super().forward(points)

    points = torch.rand(300, 2000)
    data = Data((points, torch.arange(300) % 2), (points, torch.arange(300) % 2))
    objective = Objective(
        model=lambda _trial: Counting(2000, 2),
        data=lambda _root: data,
        loss=nn.CrossEntropyLoss(),
        epochs=1,
        batch_sizes=(8, 100),
    )
    for size in objective.batch_sizes:
        sizes.append([])
        fit(objective, Recorder(), replace(first_recipe(objective), batch_size=size))
    assert sizes == [[100] * 3] * 2
