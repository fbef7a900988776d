"""What an epoch of a recipe takes beside others."""

from __future__ import annotations

import numpy as np
import pytest

from search.epoch_cost import EpochCost


def test_it_is_learnt_from_the_recipes_on_record() -> None:
    """A network four times as wide takes four times as long; the other knob says nothing."""
    rng = np.random.default_rng(0)
    features = rng.random((20, 2))
    seconds = 3.0 * 4.0 ** features[:, 0] * np.exp(0.1 * rng.normal(size=20))
    narrow, wide, other = EpochCost.fitted(features, seconds).of(np.asarray([[0.1, 0.5], [0.9, 0.5], [0.9, 0.1]]))
    assert wide / narrow == pytest.approx(4**0.8, rel=0.15)
    assert other == pytest.approx(wide, rel=0.15)


def test_nothing_is_expected_to_take_longer_or_shorter_than_what_was_seen() -> None:
    cost = EpochCost.fitted(np.repeat([[0.4], [0.6]], 10, axis=0), np.repeat([1.0, 4.0], 10))
    shortest, longest = cost.of(np.asarray([[0.0], [1.0]]))
    assert (shortest, longest) == pytest.approx((1.0, 4.0))


@pytest.mark.parametrize("seconds", [[0.0, 0.0], [5.0, 0.0]])
def test_without_two_times_to_compare_all_take_the_same(seconds: list[float]) -> None:
    cost = EpochCost.fitted(np.asarray([[0.0], [1.0]]), np.asarray(seconds))
    assert cost.of(np.asarray([[0.0], [0.7]])) == pytest.approx(max(*seconds, 1.0))
