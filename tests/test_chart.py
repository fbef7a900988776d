"""A curve in characters: it fits, says where it is highest and lowest, and needs no special characters to do so."""

from __future__ import annotations

import math

import pytest

from search.chart import chart

RISING = [1 - math.exp(-epoch / 5) for epoch in range(20)]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_it_fits_the_terminal_and_uses_it(width: int, ascii_only: bool) -> None:
    lines = chart("accuracy", RISING, width=width, height=7, ascii_only=ascii_only)
    assert len(lines) == 1 + 7 + 2
    assert min(width, 100) - 1 <= max(map(len, lines)) <= min(width, 100)
    assert all(line.isascii() for line in lines) == ascii_only


def test_in_ascii_every_epoch_is_a_star_at_its_height() -> None:
    lines = chart("accuracy", [0.0, 1.0, 0.5], width=32, height=3, ascii_only=True, mark=2)
    assert lines[0] == "accuracy"
    assert [line.index("*") for line in lines[1:4]] == [20, 31, 9]
    assert [line[:9].strip() for line in lines[1:4]] == ["1.00+", "0.50+", "0.00+*"[:5]]
    assert lines[4].index("^") == lines[1].index("*"), "the mark is below the second epoch"
    assert lines[5].split() == ["1", "epoch", "3"]


def test_a_loss_that_falls_by_decades_is_drawn_on_a_log_scale() -> None:
    lines = chart("train_loss", [10.0**-epoch for epoch in range(5)], width=40, height=5, ascii_only=True)
    assert lines[0] == "train_loss (log scale)"
    assert [line.split("+")[0].strip() for line in lines[1:6] if "+" in line] == ["1", "0.01", "0.0001"]
    stars = [line.index("*") for line in lines[1:6]]
    assert stars == sorted(stars), "a straight line"


def test_what_is_not_finite_leaves_a_gap() -> None:
    gap = chart("accuracy", [0.5, math.nan, None, 0.5], width=40, height=3, ascii_only=True)
    [row] = [line for line in gap[1:4] if "*" in line]
    assert row.split("+")[1].split() == ["*", "*"]
    assert chart("accuracy", [math.nan, None], width=40, height=3) == ["accuracy", "  no finite value"]


def test_one_epoch_and_a_flat_line_have_one_label() -> None:
    for values in ([0.5], [0.5, 0.5]):
        lines = chart("accuracy", values, width=40, height=3, ascii_only=True)
        assert sum("0.50" in line for line in lines) == 1
    assert chart("value", [1.0, 2.0], width=40, height=3, ends=(10, 90))[-1].split() == ["10", "epoch", "90"]
