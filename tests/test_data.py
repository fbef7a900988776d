"""Splits: cut by share, number, class or officially; and what is no split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from search.data import Data, size, split
from search.errors import ObjectiveError

INPUTS = torch.arange(100.0)[:, None]
LABELS = torch.arange(100) % 10 // 9  # nine of class 0 to one of class 1


def rows(part: Any) -> list[int]:
    return [int(value) for value in part[0].flatten()]


def test_a_split_holds_every_sample_once() -> None:
    found = split(INPUTS, LABELS, valid=0.2, test=0.1)
    assert isinstance(found.test, tuple)
    assert [size(found.train), size(found.valid), size(found.test)] == [70, 20, 10]
    assert sorted(rows(found.train) + rows(found.valid) + rows(found.test)) == list(range(100))
    assert torch.equal(found.valid[1], LABELS[rows(found.valid)])


def test_a_split_is_a_function_of_its_seed() -> None:
    first, again, other = (split(INPUTS, seed=seed) for seed in (0, 0, 1))
    assert rows(first.valid) == rows(again.valid) != rows(other.valid)
    assert rows(first.valid) != list(range(10))


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_split_has_the_classes_in_their_shares(seed: int) -> None:
    found = split(INPUTS, LABELS, valid=0.2, test=20, stratify=True, seed=seed)
    counts = [int(part[1].sum()) for part in (found.train, found.valid, found.test)]  # type: ignore[index]
    assert counts == [6, 2, 2]


def test_an_official_test_split_is_taken_as_it_is() -> None:
    official = (torch.zeros(3, 1), torch.zeros(3))
    found = split(INPUTS, LABELS, valid=30, test=official)
    assert found.test is official
    assert [size(found.train), size(found.valid)] == [70, 30]


def test_without_a_share_there_is_no_test_split() -> None:
    assert split(INPUTS).test is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid": 1.5}, "valid must be a share below 1.0 or a number of samples, but got 1.5"),
        ({"valid": -1}, "valid must be a share below 1.0 or a number of samples, but got -1"),
        ({"valid": 60, "test": 40}, "split leaves nothing: 100 samples, valid=60, test=40"),
        ({"valid": 0}, "split leaves nothing: 100 samples, valid=0"),
    ],
)
def test_a_share_that_cannot_be_is_echoed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        split(INPUTS, LABELS, **arguments)


def test_stratify_needs_labels() -> None:
    with pytest.raises(ObjectiveError, match=r"stratify needs class labels.*got torch\.float32"):
        split(LABELS, INPUTS, stratify=True)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), "the valid split is empty"),
        (TensorDataset(torch.zeros(0)), "the valid split is empty"),
        ((), "the valid split must be a tuple of tensors or a torch Dataset, but got an empty tuple"),
        ((torch.zeros(3), torch.zeros(2)), r"tensors of the valid split must be of one length.*\[3, 2\]"),
        ((torch.zeros(3).numpy(), torch.zeros(3)), "torch.as_tensor makes them.*but got ndarray"),
        ((torch.tensor(3.0),), "but got a tensor without dimensions"),
        (torch.zeros(3), "must be a tuple of tensors or a torch Dataset, but got Tensor"),
        (Stream(), "the valid split must be a map-style Dataset.*but Stream is not"),
    ],
)
def test_a_split_that_cannot_be_trained_on_is_said_in_one_line(part: Any, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message) as error:
        Data(train=(INPUTS, LABELS), valid=part)
    assert "\n" not in str(error.value)


def test_size_counts_samples(tmp_path: Path) -> None:
    tensor: Tensor = torch.zeros(5, 2)
    assert size((tensor,)) == size(TensorDataset(tensor)) == 5
