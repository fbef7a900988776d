"""The built-in objectives on tables: what is missing, what is learned from which rows, and errors in dollars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor

from objectives import adult, housing
from search.batches import EvaluationBatches
from search.data import Data
from search.datasets import DataCorrupt, DataMissing
from search.evaluation import evaluate

CPU = torch.device("cpu")
PERSON = (
    "{age}, {work}, 77516, Bachelors, 13, Never-married, Sales, Wife, White, Female, {gain}, 0, 40, {land}, {income}"
)
DISTRICT = "-122.{n},37.{n},{age}.0,880.0,{bedrooms},322.0,126.0,8.3,{price}.0,{shore}"


def person(n: int, **changed: Any) -> str:
    usual = {"age": 20 + n % 50, "work": ["Private", "State-gov"][n % 2], "gain": n % 7 * 500, "land": "Cuba"}
    return PERSON.format(**(usual | {"income": ["<=50K", ">50K"][n % 3 == 0]} | changed))


def district(n: int, **changed: Any) -> str:
    usual = {
        "n": 10 + n % 80,
        "age": 10 + n % 40,
        "bedrooms": f"{100 + n}.0",
        "price": 100_000 + 1000 * n,
        "shore": "INLAND",
    }
    return DISTRICT.format(**(usual | changed))


HEADER = (
    "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,median_income,"
    "median_house_value,ocean_proximity"
)


def write_people(root: Path, rows: list[str]) -> Path:
    path = root / "tabular" / "adult.data"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n\n")  # UCI's file ends in an empty line
    return path


def write_districts(root: Path, rows: list[str]) -> Path:
    path = root / "tabular" / "california_housing.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def tensors(part: Any) -> tuple[Tensor, ...]:
    assert isinstance(part, tuple)
    return part


PEOPLE = [person(n) for n in range(200)]
DISTRICTS = [district(n) for n in range(200)]
TRAINING = torch.arange(100)


def fixed(**knobs: Any) -> Any:
    return FixedTrial(knobs)


class TestAdult:
    def frame(self, folder: Path, rows: list[str]) -> pd.DataFrame:
        return adult.people(write_people(folder, rows))

    def column(self, name: str) -> int:
        return [*adult.CATEGORIES].index(name)

    def test_a_missing_category_is_one_of_its_own(self, tmp_path: Path) -> None:
        frame = self.frame(tmp_path, [person(0, work="?"), *PEOPLE])
        codes = adult.encoded(frame, TRAINING)[1][:, self.column("workclass")]
        assert codes[0] == 0
        assert set(codes[1:].tolist()) == {1, 2}

    def test_a_category_that_no_training_row_has_counts_as_missing(self, tmp_path: Path) -> None:
        frame = self.frame(tmp_path, [*PEOPLE, person(0, land="Laos"), person(0, land="?")])
        codes = adult.encoded(frame, TRAINING)[1][:, self.column("native-country")]
        assert codes[-2:].tolist() == [0, 0]
        assert set(codes[:-2].tolist()) == {1}

    def test_a_missing_number_is_the_mean_and_says_so(self, tmp_path: Path) -> None:
        frame = self.frame(tmp_path, [person(0, age="?"), *PEOPLE])
        numbers = adult.encoded(frame, TRAINING)[0]
        age, said = numbers[:, 0], numbers[:, len(adult.NUMBERS)]
        assert age[0] == 0
        assert age[TRAINING].mean().abs() < 1e-6
        assert said.tolist() == [1.0] + [0.0] * 200

    def test_numbers_are_standardised_by_the_training_rows(self, tmp_path: Path) -> None:
        numbers, _ = adult.encoded(self.frame(tmp_path, PEOPLE), TRAINING)
        training = numbers[TRAINING, : len(adult.NUMBERS)]
        assert training.mean(0).abs().max() < 1e-5
        spread = training.std(0, correction=0)
        varied = [adult.NUMBERS.index(name) for name in ("age", "capital-gain")]
        assert torch.allclose(spread[varied], torch.ones(2), atol=1e-5)
        assert (spread[[i for i in range(len(spread)) if i not in varied]] == 0).all()  # the others are constant here

    def test_held_out_rows_change_nothing_for_training_rows(self, tmp_path: Path) -> None:
        others = [person(n, age=90, work="Never-worked", gain=99999, land="Peru") for n in range(100)]
        one = adult.encoded(self.frame(tmp_path, PEOPLE), TRAINING)
        two = adult.encoded(self.frame(tmp_path, PEOPLE[:100] + others), TRAINING)
        for before, after in zip(one, two, strict=True):
            assert torch.equal(before[TRAINING], after[TRAINING])

    def test_the_splits_have_every_row_once_and_both_incomes_alike(self, tmp_path: Path) -> None:
        write_people(tmp_path, PEOPLE)
        data = adult.data(tmp_path)
        parts = [tensors(part) for part in (data.train, data.valid, data.test)]
        assert [len(part[2]) for part in parts] == [140, 30, 30]
        for _, _, income in parts:
            assert abs(income.double().mean() - 1 / 3) < 0.04

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda text: text[: len(text) // 2], "does not end in an income"),
            (lambda text: "", "is empty"),
            (lambda text: text.replace("77516", "many", 1), "many"),
            (
                lambda text: text.replace("State-gov", "Elsewhere{}").format(*range(200)),
                "too many kinds of .*workclass",
            ),
            (lambda text: "\x00\xff" * 999, "corrupt file"),
        ],
    )
    def test_a_damaged_file_is_said_in_one_line(self, tmp_path: Path, damage: Callable[[str], str], told: str) -> None:
        path = write_people(tmp_path, PEOPLE)
        path.write_text(damage(path.read_text()))
        with pytest.raises(DataCorrupt, match=told) as error:
            adult.data(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_real_file_has_its_rows_and_its_gaps(self, shared_data: Path) -> None:
        data = adult.data(shared_data)
        parts = [tensors(part) for part in (data.train, data.valid, data.test)]
        assert [len(part[0]) for part in parts] == [22793, 4884, 4884]
        codes = torch.cat([part[1] for part in parts])
        # adult.names: rows with an unknown value by column, as everybody counts them.
        assert int((codes[:, self.column("workclass")] == 0).sum()) == 1836
        assert int((codes[:, self.column("occupation")] == 0).sum()) == 1843
        sizes = torch.tensor([*adult.CATEGORIES.values()])
        assert (codes.max(0).values <= sizes).all()

    def test_the_network_looks_at_every_column(self) -> None:
        net = adult.model(fixed(width=64, layers=2, dropout=0.0, sigma=1.0)).eval()
        numbers, categories = torch.zeros(1, 2 * len(adult.NUMBERS)), torch.zeros(1, len(adult.CATEGORIES)).long()
        before = net(numbers, categories)
        for column in range(numbers.shape[1]):
            changed = numbers.clone()
            changed[:, column] = 1
            assert not torch.equal(net(changed, categories), before)
        for column, size in enumerate(adult.CATEGORIES.values()):
            other = categories.clone()
            other[:, column] = size
            assert not torch.equal(net(numbers, other), before)


class TestHousing:
    def inputs(self, folder: Path, rows: list[str]) -> Tensor:
        return housing.inputs_of(housing.districts(write_districts(folder, rows)), TRAINING)

    def test_a_gap_is_the_mean_and_says_so(self, tmp_path: Path) -> None:
        inputs = self.inputs(tmp_path, [district(0, bedrooms=""), *DISTRICTS])
        assert inputs.isfinite().all()
        bedrooms = housing.NUMBERS.index("total_bedrooms")
        ratio = len(housing.NUMBERS) + housing.RATIOS.index(("total_bedrooms", "total_rooms"))
        for column in (bedrooms, ratio):
            assert inputs[0, column] == 0
            assert inputs[:, housing.FEATURES + column].tolist() == [1.0] + [0.0] * 200

    def test_held_out_rows_change_nothing_for_training_rows(self, tmp_path: Path) -> None:
        others = [district(n, age=99, bedrooms=9000 + n, shore="NEAR BAY") for n in range(100)]
        one = self.inputs(tmp_path, DISTRICTS)
        two = self.inputs(tmp_path, DISTRICTS[:100] + others)
        assert torch.equal(one[TRAINING], two[TRAINING])

    def test_prices_are_learned_in_the_training_rows_unit(self, tmp_path: Path) -> None:
        write_districts(tmp_path, DISTRICTS)
        data = housing.data(tmp_path)
        _, prices, unit = tensors(data.train)
        for part in (data.train, data.valid, data.test):
            assert torch.equal(tensors(part)[2], unit[0].expand(len(tensors(part)[0]), 2))
        standardised = (prices - unit[:, 0]) / unit[:, 1]
        assert abs(float(standardised.mean())) < 1e-5
        assert abs(float(standardised.std()) - 1) < 1e-5

    @pytest.mark.parametrize("constant", [0.0, 1.5])
    def test_errors_are_in_dollars(self, tmp_path: Path, constant: float) -> None:
        write_districts(tmp_path, DISTRICTS)
        data = housing.data(tmp_path)
        task = housing.model(fixed(width=64, layers=2, dropout=0.0, sigma=0.5))
        for parameter in task.net.parameters():
            torch.nn.init.zeros_(parameter)
        *_, last = (layer for layer in task.net.modules() if isinstance(layer, torch.nn.Linear))
        torch.nn.init.constant_(last.bias, constant)
        values = evaluate(task, EvaluationBatches(data.valid, data, 64, device=CPU), housing.objective.metrics, CPU)
        train, valid = (tensors(part)[1].numpy().astype(float) for part in (data.train, data.valid))
        wrong = valid - (train.mean() + constant * train.std(ddof=1))
        assert values["rmse"] == pytest.approx(np.sqrt(np.mean(wrong**2)), rel=1e-4)
        assert values["mae"] == pytest.approx(np.abs(wrong).mean(), rel=1e-4)
        assert housing.objective.searched.direction == "minimize"

    def test_the_loss_is_of_standardised_prices(self) -> None:
        unit = torch.tensor([[200_000.0, 100_000.0]]).expand(2, 2)
        batch = (torch.zeros(2, 27), torch.tensor([300_000.0, 200_000.0]), unit)
        total, count = housing.step(lambda inputs: torch.zeros(len(inputs)), batch)  # type: ignore[arg-type]
        assert (float(total), count) == (1.0, 2)

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda text: text[: len(text) - 9], "lacks its price or ocean_proximity"),
            (lambda text: text.replace("longitude", "east"), "longitude"),
            (lambda text: HEADER, "is empty"),
            (lambda text: text.replace("880.0", "many", 1), "many"),
            (lambda text: "", "corrupt file"),
        ],
    )
    def test_a_damaged_file_is_said_in_one_line(self, tmp_path: Path, damage: Callable[[str], str], told: str) -> None:
        path = write_districts(tmp_path, DISTRICTS)
        path.write_text(damage(path.read_text()))
        with pytest.raises(DataCorrupt, match=told) as error:
            housing.data(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_real_file_has_its_rows_and_its_gaps(self, shared_data: Path) -> None:
        data = housing.data(shared_data)
        parts = [tensors(part) for part in (data.train, data.valid, data.test)]
        assert [len(part[0]) for part in parts] == [14448, 3096, 3096]
        missing = torch.cat([part[0] for part in parts])[:, housing.FEATURES + housing.NUMBERS.index("total_bedrooms")]
        assert int(missing.sum()) == 207
        assert all(tensor.isfinite().all() for part in parts for tensor in part)


@pytest.mark.parametrize(("module", "file"), [(adult, "adult.data"), (housing, "california_housing.csv")])
def test_missing_data_says_where_it_looked_and_how_to_get_it(module: Any, file: str, tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as error:
        module.data(tmp_path)
    line = str(error.value)
    assert str(tmp_path) in line
    assert f"tabular/{file}' https://" in line
    assert "\n" not in line


@pytest.mark.parametrize("module", [adult, housing])
def test_the_parts_are_the_same_every_time(module: Any, shared_data: Path) -> None:
    one: Data = module.data(shared_data)
    two: Data = module.data(shared_data)
    for before, after in ((one.train, two.train), (one.test, two.test)):
        assert all(torch.equal(x, y) for x, y in zip(tensors(before), tensors(after), strict=True))
