"""How wishes for knobs are written: on the command line, and stored with a study."""

from __future__ import annotations

import json
from typing import Any

import pytest

from search.errors import ObjectiveError
from search.wishes import from_json, merged, parse_settings, parse_space, to_json


def test_text_becomes_what_an_objective_has() -> None:
    fix = ["lr=1e-2", "optimizer = adam", "width=8", "bias=true", "head=none"]
    ranges = ["momentum=0.8:0.95", "batch_size=32,64", "schedule=cosine,step"]
    assert parse_space(fix, ranges) == {
        "lr": 0.01,
        "optimizer": "adam",
        "width": 8,
        "bias": True,
        "head": None,
        "momentum": (0.8, 0.95),
        "batch_size": [32, 64],
        "schedule": ["cosine", "step"],
    }
    assert parse_settings(["lr=0.05", "optimizer=momentum"]) == {"lr": 0.05, "optimizer": "momentum"}


def test_what_is_stored_comes_back_the_same() -> None:
    knobs = {"lr": (1e-4, 1e-2), "width": 8, "optimizer": ["adam", "sgd"], "bias": False, "head": None}
    stored = json.loads(json.dumps(to_json(knobs)))
    assert stored["lr"] == {"low": 1e-4, "high": 1e-2}
    assert stored["optimizer"] == {"choices": ["adam", "sgd"]}
    assert stored["width"] == {"fixed": 8}
    assert from_json(stored) == knobs


@pytest.mark.parametrize(
    ("fix", "ranges", "said"),
    [
        (["lr"], [], "'lr' is not --fix NAME=VALUE: write it as --fix lr=0.05"),
        (["=3"], [], "'=3' is not --fix NAME=VALUE"),
        (["lr="], [], "is not --fix NAME=VALUE"),
        (["lr=1", "lr=2"], [], "lr is given twice"),
        (["lr=1"], ["lr=1:2"], "lr is given by --fix and by --range"),
        (["optimizer=adam,sgd"], [], "--range optimizer=adam,sgd chooses among them"),
        (["lr=1e-4:1e-2"], [], "--range lr=1e-4:1e-2 searches it"),
        ([], ["lr=0.1"], "lr=0.1 is one value: --fix lr=0.1 fixes it"),
        ([], ["lr=1:0.1"], "the range lr=1:0.1 is out of order: write 0.1:1"),
        ([], ["lr=a:b"], "lr=a:b is not a range: write two numbers"),
        ([], ["lr=1:2:3"], "lr=1:2:3 is not a range"),
        ([], ["lr=1,,2"], "has an empty choice"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(fix: list[str], ranges: list[str], said: str) -> None:
    with pytest.raises(ObjectiveError) as raised:
        parse_space(fix, ranges)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_said_later_of_the_same_knob_wins() -> None:
    first: dict[str, Any] = {"lr_multiple": 2.0, "momentum": 0.9, "width": 8}
    assert merged(first, {"lr": 0.1, "one_minus_momentum": 0.2}) == {"lr": 0.1, "one_minus_momentum": 0.2, "width": 8}
