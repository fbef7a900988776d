"""The model of learning curves, the space that it sees, and after how many epochs ranks say something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.curve_model import CurveModel, Points
from search.curve_points import lowest_so_far
from search.grace import PROBES, grace
from search.recipe_space import RecipeSpace
from search.strategy import Seen, SeenState

MIXED: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "layers": IntDistribution(1, 5),
    "kind": CategoricalDistribution(("sgd", "adam")),
    "momentum": FloatDistribution(0.0, 0.9),
    "beta": FloatDistribution(0.5, 1.0),
}


def seen(number: int, recipe: dict[str, Any], values: dict[int, float] | None = None) -> Seen:
    distributions = {name: MIXED[name] for name in recipe}
    return Seen(number, recipe, values or {}, SeenState.PAUSED, distributions=distributions)


def conditional() -> RecipeSpace:
    """`momentum` is sgd's and `beta` adam's."""
    space = RecipeSpace()
    space.learn(
        [
            seen(0, {"lr": 0.1, "layers": 2, "kind": "sgd", "momentum": 0.5}),
            seen(1, {"lr": 0.01, "layers": 5, "kind": "adam", "beta": 0.9}),
        ]
    )
    return space


def test_it_knows_no_trial_that_is_not_among_those_it_learns_any_more() -> None:
    """A trial that was learnt at a rung has failed since."""
    space, trials = RecipeSpace(), [seen(number, {"lr": 0.1}) for number in range(3)]
    space.learn(trials)
    space.learn(trials[:2])
    assert len(space.rows) == 2


def test_what_has_one_value_keeps_it() -> None:
    fixed = FloatDistribution(0.1, 0.1)
    one = Seen(0, {"x": 0.5, "fixed": 0.1}, {}, SeenState.PAUSED, distributions={"x": MIXED["beta"], "fixed": fixed})
    space, rng = RecipeSpace(), np.random.default_rng(0)
    space.learn([one])
    before = space.rows[0, 1]
    assert {*space.random(rng, 20)[:, 1], *space.near(rng, np.repeat(space.rows, 20, axis=0), 0.1)[:, 1]} == {before}


def test_a_neighbour_with_anothers_choice_has_what_hangs_on_it_also_where_that_has_one_value() -> None:
    kind, fixed = CategoricalDistribution(("sgd", "adam")), FloatDistribution(0.9, 0.9)
    own = {"kind": kind, "momentum": fixed}
    trials = [
        Seen(0, {"kind": "sgd", "momentum": 0.9}, {}, SeenState.PAUSED, distributions=own),
        Seen(1, {"kind": "adam"}, {}, SeenState.PAUSED, distributions={"kind": kind}),
    ]
    space = RecipeSpace()
    space.learn(trials)
    found = [space.recipe(row) for row in space.near(np.random.default_rng(0), np.repeat(space.rows, 20, axis=0), 0.1)]
    assert {frozenset(one.items()) for one in found} == {frozenset(one.recipe.items()) for one in trials}


def points(rng: np.random.Generator, count: int) -> Points:
    return Points(rng.random((count, 3)), rng.random(count), rng.integers(0, count // 4, count))


def test_the_gradient_of_the_fit_is_the_slope_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    places, values = points(rng, 40), rng.normal(size=40)
    model = CurveModel(3)
    theta = model.theta + rng.normal(0, 0.3, len(model.theta))
    squares = np.moveaxis((places.recipes[:, None] - places.recipes[None]) ** 2, 2, 0)
    spans = np.abs(places.epochs[:, None] - places.epochs[None])
    same = (places.trials[:, None] == places.trials[None]).astype(np.float64)
    gradient = model._loss(theta, squares, spans, same, values)[1]
    for index, slope in enumerate(gradient):
        step = np.zeros_like(theta)
        step[index] = 1e-5
        above, below = (model._loss(theta + sign * step, squares, spans, same, values)[0] for sign in (1, -1))
        assert slope == pytest.approx((above - below) / 2e-5, rel=1e-3, abs=1e-4)


def test_it_tells_where_a_curve_goes_and_is_less_sure_of_one_not_begun() -> None:
    rng = np.random.default_rng(1)
    recipes, shares = rng.random((20, 1)), np.linspace(0, 1, 5)
    places = Points(np.repeat(recipes, 5, axis=0), np.tile(shares, 20), np.repeat(np.arange(20), 5))
    values = 2 * places.recipes[:, 0] - places.epochs
    begun = places.part(~((places.trials == 19) & (places.epochs > 0.5)))
    model = CurveModel(1)
    model.fit(begun, values[~((places.trials == 19) & (places.epochs > 0.5))], 30)
    end = Points(np.repeat(recipes[19:], 2, axis=0), np.ones(2), np.asarray([19, -1]))
    mean, deviation = model.predict(end)
    assert mean == pytest.approx([2 * recipes[19, 0] - 1] * 2, abs=0.1)
    assert deviation[0] <= deviation[1]


def test_a_recipe_comes_back_from_its_row() -> None:
    space = conditional()
    for recipe in ({"lr": 0.1, "layers": 2, "kind": "sgd", "momentum": 0.5}, {"lr": 1.0, "layers": 1, "kind": "adam"}):
        assert space.recipe(space.row(recipe)) == pytest.approx(recipe)


@pytest.mark.parametrize("how", ["random", "near"])
def test_new_recipes_have_what_belongs_together_and_stay_in_their_ranges(how: str) -> None:
    space, rng = conditional(), np.random.default_rng(0)
    rows = space.random(rng, 200) if how == "random" else space.near(rng, np.repeat(space.rows, 100, axis=0), 0.3)
    kinds = set()
    for recipe in map(space.recipe, rows):
        assert set(recipe) == {"lr", "layers", "kind", "momentum" if recipe["kind"] == "sgd" else "beta"}
        assert all(MIXED[name]._contains(MIXED[name].to_internal_repr(value)) for name, value in recipe.items())
        kinds.add(recipe["kind"])
    assert kinds == {"sgd", "adam"}
    assert len({tuple(row) for row in rows.tolist()}) > 150


def test_a_range_that_moved_is_the_newest_ones() -> None:
    space, moved = conditional(), FloatDistribution(1e-6, 1e-2, log=True)
    space.learn(
        [seen(0, {"lr": 0.1}), seen(1, {"lr": 0.01}), Seen(2, {"lr": 1e-4}, {}, SeenState.PAUSED, 0, {"lr": moved})]
    )
    assert space.distributions["lr"] == moved
    assert space.rows[:, 0] == pytest.approx([1.0, 1.0, 0.5])


def test_what_is_no_number_counts_as_the_value_before_it() -> None:
    values = {1: float("nan"), 2: 0.9, 3: float("inf"), 4: 0.5, 6: 0.7}
    assert lowest_so_far(seen(0, {"lr": 0.1}, values)).tolist() == [0.9, 0.9, 0.9, 0.5, 0.5, 0.5]
    assert len(lowest_so_far(seen(0, {"lr": 0.1}, {1: float("nan")}))) == 0


def probes(length: int, plain_from: int) -> list[Any]:
    """Runs whose order is another one before an epoch: the rank there and at the end do not correlate."""
    before = np.asarray([3, 6, 0, 5, 2, 7, 1, 4])
    return [
        np.asarray([10.0 + before[n] if epoch < plain_from else 1.0 + n for epoch in range(1, length + 1)])
        for n in range(PROBES)
    ]


def test_ranks_that_hold_from_the_first_epoch_count_from_the_second_on() -> None:
    assert grace(probes(4, 1), 32) == (2, 4)


def test_probes_train_on_until_an_earlier_epoch_ranks_them_as_the_last_one() -> None:
    assert grace(probes(4, 4), 32) == (8, 8)  # at epoch 4 the order is new: not yet known whether it stays
    assert grace(probes(8, 4), 32) == (4, 8)
    assert grace(probes(32, 99), 32)[0] == 2  # an order that never changes is plain at once


def test_too_few_probes_say_nothing() -> None:
    assert grace(probes(4, 1)[:7], 32) == (4, 4)
    assert grace([], 8) == (2, 2)
