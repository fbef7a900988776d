"""A portfolio: which recipes of the past a search starts with, and in what order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.portfolio import CAP, complementary, normalised


class TestNormalised:
    def test_the_best_is_0_the_median_1_and_nothing_is_beyond_the_cap(self) -> None:
        assert normalised([2.0, 4.0, 3.0, 100.0, 2.5]).tolist() == pytest.approx([0.0, 2.0, 1.0, CAP, 0.5])

    def test_what_diverged_is_as_bad_as_can_be_and_moves_no_scale_but_the_medians(self) -> None:
        assert normalised([1.0, 2.0, math.nan, math.inf, 3.0]).tolist() == pytest.approx([0.0, 0.5, CAP, CAP, 1.0])

    def test_where_most_diverged_the_median_is_that_of_the_others(self) -> None:
        assert normalised([1.0, 3.0, math.nan, math.nan, math.nan]).tolist() == pytest.approx([0.0, 2.0, CAP, CAP, CAP])

    def test_where_half_are_as_good_as_the_best_the_others_are_typical(self) -> None:
        assert normalised([1.0, 1.0, 1.0, 9.0]).tolist() == [0.0, 0.0, 0.0, 1.0]

    def test_nothing_but_divergence_is_all_equally_bad(self) -> None:
        assert normalised([math.nan, math.inf]).tolist() == [CAP, CAP]


class TestComplementary:
    def test_the_first_is_best_on_average_and_the_next_are_good_where_it_is_not(self) -> None:
        values = [
            [0.3, 0.3, 0.9],  # good on average
            [0.2, 0.4, 0.95],  # nearly the same one
            [1.5, 1.5, 0.0],  # bad, but for the last task
        ]
        assert complementary(values, 2, reliability=1.0) == [0, 2]

    def test_each_next_one_lowers_the_mean_of_the_best_most(self) -> None:
        values = np.random.default_rng(0).random((20, 6)) * CAP
        chosen = complementary(values, 4, reliability=1.0)
        best = np.full(6, CAP)
        for index in chosen:
            means = [float(np.minimum(best, row).mean()) for row in values]
            assert means[index] == min(means)
            best = np.minimum(best, values[index])

    def test_what_is_good_everywhere_comes_before_what_is_best_somewhere_once(self) -> None:
        values = [
            [0.1, 0.1, 0.1, 0.1],
            [0.2, 0.2, 0.2, 0.2],  # a second chance on every task
            [1.9, 1.9, 1.9, 0.0],  # a little better on one, where it is that good again
        ]
        assert complementary(values, 2, reliability=1.0) == [0, 2]
        assert complementary(values, 2) == [0, 1]

    def test_what_is_expected_of_the_best_is_the_mean_over_who_does_as_before(self) -> None:
        values = np.random.default_rng(1).random((7, 3)) * CAP
        first, second = complementary(values, 2, reliability=0.7)
        best = np.minimum(values[first], values[second])
        means = 0.49 * best + 0.21 * values[first] + 0.21 * values[second] + 0.09 * CAP
        others = [
            0.49 * np.minimum(values[first], row) + 0.21 * values[first] + 0.21 * row + 0.09 * CAP for row in values
        ]
        assert second == min((one for one in range(7) if one != first), key=lambda one: float(others[one].mean()))
        assert means.mean() == pytest.approx(others[second].mean())

    def test_it_ends_where_nothing_is_gained(self) -> None:
        assert complementary([[0.0, 0.0], [0.0, 0.5], [1.0, 0.0]], 3, reliability=1.0) == [0]
        assert complementary([[0.0], [CAP]], 2) == [0]

    def test_what_is_not_known_promises_nothing(self) -> None:
        assert complementary([[math.nan, 0.5], [0.6, 0.6], [math.nan, math.nan]], 3) == [1, 0]

    def test_tasks_that_weigh_more_count_more(self) -> None:
        values = [[0.0, 1.0], [1.0, 0.1]]
        assert complementary(values, 1) == [0]
        assert complementary(values, 1, weights=[1.0, 3.0]) == [1]

    def test_of_equal_ones_the_better_on_average_comes_first_then_the_earlier(self) -> None:
        assert complementary([[0.5, 0.5], [0.5, 0.5]], 1) == [0]

    def test_no_recipes_are_no_portfolio(self) -> None:
        assert complementary(np.empty((0, 3)), 4) == []
        assert complementary(np.empty((3, 0)), 4) == []
