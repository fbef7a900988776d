"""Intervals of means and of differences of means: against tables, against scipy.stats, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from search.intervals import Interval, of_difference, of_mean, resolution, seeds_to_tell

ONE, OTHER = (0.981, 0.975, 0.986, 0.979, 0.990), (0.961, 0.969, 0.974, 0.955)


def test_a_means_interval_is_students() -> None:
    # t with 4 degrees of freedom is 2.776 (Student 1908's table), the values' deviation the root of 2.5.
    found = of_mean([1, 2, 3, 4, 5])
    assert found.estimate == 3
    assert (found.high - 3, 3 - found.low) == pytest.approx([2.776 * math.sqrt(2.5 / 5)] * 2, rel=1e-3)
    low, high = stats.t.interval(0.9, len(ONE) - 1, np.mean(ONE), stats.sem(ONE))
    assert (of_mean(ONE, level=0.9).low, of_mean(ONE, level=0.9).high) == pytest.approx((low, high))


def test_one_value_says_nothing_of_the_spread_and_equal_ones_have_none() -> None:
    assert of_mean([0.5]) == Interval(0.5, -math.inf, math.inf)
    assert of_mean([0.1] * 3) == Interval(0.1, 0.1, 0.1)
    assert of_difference([0.3, 0.3], [0.2, 0.2]).holds(0.0) is False


def test_values_vary_by_no_less_than_their_rounding_hides() -> None:
    accuracies = [340 / 359, 341 / 359, 343 / 359, 341 / 359 + 1e-9]
    assert resolution(accuracies) == pytest.approx(1 / 359)
    assert (resolution([0.5, 0.5]), resolution([])) == (0, 0)
    assert resolution([0.25, 0.375, 4.5, 1e30]) == 0.125, "one epoch that explodes says nothing of the others"
    coarse = of_mean([0.98, 0.98], resolution=0.1)
    assert coarse.high - 0.98 == pytest.approx(12.706 * 0.1 / math.sqrt(12 * 2), rel=1e-3)
    assert of_mean(ONE, resolution=0.001) == of_mean(ONE), "what varies more is taken as it is"
    assert of_difference([0.98] * 3, [0.95] * 3, resolution=0.1).holds(0.0)


def test_values_beyond_what_a_square_can_be_are_told_from_nothing() -> None:
    huge = [1e200, 3e200]
    assert of_mean(huge) == Interval(2e200, -math.inf, math.inf)
    assert of_difference(huge, [1.0, 2.0]).holds(0.0)


@pytest.mark.parametrize("comparisons", [1, 4])
def test_a_differences_interval_is_welchs_corrected_by_bonferroni(comparisons: int) -> None:
    found = of_difference(ONE, OTHER, comparisons)
    welch = stats.ttest_ind(ONE, OTHER, equal_var=False).confidence_interval(1 - 0.05 / comparisons)
    assert found.estimate == pytest.approx(np.mean(ONE) - np.mean(OTHER))
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))


def test_a_recipe_as_good_as_the_best_is_seldom_told_from_it() -> None:
    """Of five equal recipes, as far as seeds can tell: the first is among those that tie in 19 of 20 confirmations."""
    random, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        drawn = [[*map(float, values)] for values in random.normal(0.98, 0.005, (5, 5))]
        best = max(drawn, key=np.mean)
        wrong += best is not drawn[0] and not of_difference(best, drawn[0], comparisons=4).holds(0.0)
    assert wrong <= 0.05 * 400


@pytest.mark.parametrize("comparisons", [1, 4])
def test_with_the_seeds_that_are_advised_a_difference_is_told_four_times_in_five(comparisons: int) -> None:
    random, told = np.random.default_rng(0), 0
    wanted = seeds_to_tell([0.900, 0.905, 0.910], [0.890, 0.895, 0.900], 3, comparisons)
    assert wanted is not None
    for _ in range(400):
        one, other = random.normal(0.905, 0.005, wanted), random.normal(0.895, 0.005, wanted)
        told += of_difference([*map(float, one)], [*map(float, other)], comparisons).low > 0
    assert 0.75 <= told / 400 <= 0.9
