"""The built-in objectives: real data, split as they say, and learned."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor
from training_helpers import Recorder, first_recipe, fit

from objectives import digits, fashion_mnist
from search.data import Data
from search.datasets import DataCorrupt, DataMissing, cache_folder, data_root
from search.space import describe, recipe_from_params, starting_points
from storage.outcomes import Outcome


def tensors(part: Any) -> tuple[Tensor, Tensor]:
    inputs, targets = part
    return inputs, targets


def shares(part: Any) -> Tensor:
    targets = tensors(part)[1]
    return targets.bincount() / len(targets)


def test_the_example_people_copy_is_under_30_lines() -> None:
    source = Path(digits.__file__).read_text().splitlines()
    assert len(source) < 30


def test_digits_is_split_by_class_and_always_the_same() -> None:
    data, again = digits.data(Path()), digits.data(Path("elsewhere"))
    assert [len(tensors(part)[0]) for part in (data.train, data.valid, data.test)] == [1258, 359, 180]
    assert tensors(data.train)[0].shape[1:] == (1, 8, 8)
    assert (tensors(data.train)[0] >= 0).all()
    assert (tensors(data.train)[0] <= 1).all()
    for part in (data.valid, data.test):
        assert (shares(part) - shares(data.train)).abs().max() < 0.01
    assert torch.equal(tensors(data.valid)[0], tensors(again.valid)[0])


@pytest.mark.parametrize("start", [0, 1, 2])
def test_digits_is_learned_from_every_starting_point(start: int) -> None:
    objective = digits.objective
    recipe = recipe_from_params(starting_points(objective)[start], objective)
    result = fit(replace(objective, epochs=8), Recorder(), recipe, width=16, dropout=0.2)
    assert result.outcome is Outcome.COMPLETE
    assert result.value is not None
    assert result.value >= 0.97


@pytest.mark.parametrize("module", [digits, fashion_mnist])
def test_the_models_own_knobs_are_part_of_the_space(module: Any) -> None:
    names = {knob.name for knob in describe(module.objective)}
    assert {"width", "dropout", "lr_multiple"} <= names
    assert module.objective.description


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize("width", [8, 32])
def test_the_fashion_mnist_network_fits_its_images(width: int, blocks: int) -> None:
    net = fashion_mnist.model(_fixed(width=width, blocks=blocks, dropout=0.1))
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def _fixed(**knobs: Any) -> Any:
    return optuna.trial.FixedTrial(knobs)


def test_flip_mirrors_about_half_of_the_images_by_its_generator() -> None:
    images = torch.rand(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    flipped = fashion_mnist.flip(images, torch.Generator().manual_seed(1))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 400 < int(mirrored.sum()) < 600
    assert torch.equal(flipped, fashion_mnist.flip(images, torch.Generator().manual_seed(1)))


@pytest.fixture
def fashion(shared_data: Path) -> Data:
    return fashion_mnist.data(shared_data)


def test_fashion_mnist_is_the_official_data_with_a_validation_split(fashion: Data) -> None:
    sizes = [len(tensors(part)[0]) for part in (fashion.train, fashion.valid, fashion.test)]
    assert sizes == [50_000, 10_000, 10_000]
    for part in (fashion.train, fashion.valid, fashion.test):
        assert tensors(part)[0].dtype == torch.uint8
        assert tensors(part)[0].shape[1:] == (1, 28, 28)
        assert torch.equal(shares(part), torch.full((10,), 0.1))
    # The first official test image, an ankle boot, as in torchvision's documentation of the classes.
    assert tensors(fashion.test)[1][0] == 9


def test_fashion_mnist_is_learned(fashion: Data) -> None:
    few = [
        tuple(tensor[:count] for tensor in tensors(part))
        for part, count in ((fashion.train, 4000), (fashion.valid, 1000))
    ]
    objective = replace(
        fashion_mnist.objective, data=lambda root: replace(fashion, train=few[0], valid=few[1]), epochs=2
    )
    result = fit(objective, Recorder(), first_recipe(objective), width=8, blocks=2, dropout=0.1)
    assert result.value is not None
    assert result.value > 0.7


def test_missing_fashion_mnist_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DIALIN_DATA", raising=False)
    with pytest.raises(DataMissing) as error:
        fashion_mnist.objective.data(data_root())
    line = str(error.value)
    assert "train-images-idx3-ubyte.gz" in line
    assert f"torchvision.datasets.FashionMNIST('{cache_folder()}', download=True)" in line
    assert "\n" not in line


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"\xff" * 16])
def test_a_damaged_unpacked_file_is_said_in_one_line(fashion: Data, damage: Callable[[bytes], bytes]) -> None:
    path = cache_folder() / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataCorrupt, match=r"corrupt file among .*FashionMNIST/raw/train-\*") as error:
        fashion_mnist.objective.data(Path(os.environ["DIALIN_DATA"]))
    assert "\n" not in str(error.value)
