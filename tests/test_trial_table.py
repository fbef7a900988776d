"""All trials as a table, as CSV, JSON and a data frame: the same columns everywhere."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas
from studies import TINY, Inside, engines_disposed

import search
from search.trial_table import COLUMNS, as_csv, as_records, frame
from storage.costs import Cost
from storage.overview import TrialLine

ADAM = {"optimizer": "adam", "lr": 0.001, "betas": [0.9, 0.999], "batch_size": 32}
MOMENTUM = {"optimizer": "momentum", "lr": 0.01, "momentum": 0.9, "batch_size": 32}


def a_line(number: int, recipe: dict[str, Any], **changes: Any) -> TrialLine:
    values: dict[str, Any] = {
        "number": number,
        "state": "complete",
        "value": 0.5,
        "best_epoch": 2,
        "cost": Cost(4, 2.0, 4.0, 400, 3 * 2**20, "cuda:0"),
        "recipe": recipe,
        "model": {},
        "summary": "",
        "metrics": {"accuracy": 0.5, "train_loss": 0.1},
        "started_at": 1.7e9,
        "settled_at": 1.7e9 + 2.5,
    }
    return TrialLine(**(values | changes))


WAITING = a_line(
    2,
    {},
    state="waiting",
    value=None,
    best_epoch=None,
    cost=Cost(),
    metrics={},
    started_at=None,
    settled_at=None,
)


def read(text: str) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(text))]


def test_columns_come_in_one_order_and_a_knob_that_a_trial_has_not_is_empty() -> None:
    lines = [a_line(0, ADAM, model={"width": 8}), a_line(1, MOMENTUM), WAITING]
    rows = read(as_csv(lines))
    knobs = ["optimizer", "lr", "beta1", "beta2", "batch_size", "width", "momentum"]
    assert [*rows[0]] == [*COLUMNS, *knobs, "metrics.accuracy", "metrics.train_loss"]
    assert (rows[0]["beta1"], rows[0]["beta2"], rows[0]["momentum"]) == ("0.9", "0.999", "")
    assert (rows[1]["momentum"], rows[1]["width"]) == ("0.9", "")
    first = {name: rows[0][name] for name in COLUMNS}
    assert first == {
        "number": "0",
        "outcome": "complete",
        "value": "0.5",
        "best_epoch": "2",
        "epochs": "4",
        "seconds": "2.0",
        "device_seconds": "4.0",
        "samples": "400",
        "peak_memory": "3145728",
        "device": "cuda:0",
        "started_at": "2023-11-14T22:13:20.000+00:00",
        "settled_at": "2023-11-14T22:13:22.500+00:00",
    }
    assert rows[2]["outcome"] == "waiting"
    assert {rows[2][name] for name in COLUMNS if name not in ("number", "outcome")} == {"", "0", "0.0"}


def test_names_that_are_taken_are_told_apart() -> None:
    own_loop = {"seconds": 3, "optimizer": "mine"}
    [row] = read(as_csv([a_line(0, own_loop, model={"optimizer": "theirs", "epochs": 9})]))
    assert (row["seconds"], row["recipe.seconds"]) == ("2.0", "3")
    assert (row["optimizer"], row["model.optimizer"]) == ("mine", "theirs")
    assert (row["epochs"], row["model.epochs"]) == ("4", "9")


def test_no_cell_of_the_csv_is_a_formula_for_a_spreadsheet() -> None:
    [row] = read(as_csv([a_line(0, {"name": "=cmd()", "lr": -0.5, "other": "plain, with a comma", "@x": 1})]))
    assert (row["name"], row["lr"], row["other"], row["'@x"]) == ("'=cmd()", "-0.5", "plain, with a comma", "1")


def test_a_frame_has_a_type_for_each_column_also_without_trials() -> None:
    for lines in ([], [WAITING], [a_line(0, ADAM)]):
        found = frame(lines)
        kinds = {name: str(found[name].dtype) for name in COLUMNS}
        assert kinds["number"] == kinds["samples"] == "int64"
        assert kinds["best_epoch"] == kinds["peak_memory"] == "Int64"
        assert kinds["value"] == kinds["device_seconds"] == "float64"
        assert "datetime64" in kinds["started_at"]
        assert "UTC" in kinds["settled_at"]
    assert frame([a_line(0, ADAM)]).settled_at[0] == pandas.Timestamp(datetime.fromtimestamp(1.7e9 + 2.5, UTC))


def test_records_have_every_column() -> None:
    first, waiting = as_records([a_line(0, ADAM), WAITING])
    assert [*first] == [*waiting]
    assert (waiting["lr"], waiting["metrics.accuracy"], waiting["started_at"]) == (None, None, None)


class TestTheCommand:
    def test_it_gives_the_same_trials_in_each_form(self, inside: Inside, either_url: str, tmp_path: Path) -> None:
        searched(either_url, tmp_path)
        at = ("--storage", either_url)
        rows = read(inside("trials", "tiny-1", "--format", "csv", *at).out)
        assert [row["number"] for row in rows] == ["0", "1", "2"]
        assert all(float(row["seconds"]) > 0 and int(row["samples"]) == 4 * 96 for row in rows)
        assert all(int(row["peak_memory"]) > 50 * 2**20 for row in rows)
        records = json.loads(inside("trials", "--format", "json", *at).out)
        assert json.loads(inside("trials", "--json", *at).out) == records
        assert [str(record["value"]) for record in records] == [row["value"] for row in rows]
        table = inside("trials", *at).out.splitlines()
        assert table[0].split()[:3] == ["trial", "outcome", "accuracy"]
        with engines_disposed():
            found = search.load("tiny-1", storage=either_url).trials()
        assert [*found.columns] == [*rows[0]]
        assert [str(value) for value in found.value] == [row["value"] for row in rows]

    def test_a_file_is_written_as_its_name_says(self, inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
        searched(sqlite_url, tmp_path)
        at = ("--storage", sqlite_url)
        for name in ("t.csv", "t.json", "t.txt"):
            assert inside("trials", "-o", tmp_path / name, *at).out == f"3 trials of tiny-1 in {tmp_path / name}\n"
        assert len(read((tmp_path / "t.csv").read_text())) == 3
        assert len(json.loads((tmp_path / "t.json").read_text())) == 3
        assert (tmp_path / "t.txt").read_text().startswith("trial")
        for place in (tmp_path, tmp_path / "missing" / "t.csv"):
            said = inside("trials", "-o", place, *at)
            assert (said.status, said.out) == (2, "")
            assert said.err.startswith(f"dialin: cannot write {place}: ")
            assert said.err.count("\n") == 1


def searched(url: str, folder: Path) -> None:
    """A study of three trials."""
    with engines_disposed():
        search.run(TINY, storage=url, files=folder / "f", trials=3, workers=1, pruner="none", quiet=True)
