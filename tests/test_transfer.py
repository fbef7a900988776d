"""What finished studies say about a new one: which of their recipes it starts with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from search.transfer import ALIKE, Proposal, distances, expected, is_recipe, likeness, won
from storage.history import PastStudy, PastTrial

RECIPE: Mapping[str, Any] = {
    "optimizer": "adamw",
    "lr": 0.001,
    "betas": [0.9, 0.999],
    "weight_decay": 0.01,
    "batch_size": 32,
    "schedule": "cosine",
    "cosine_final": 0.0,
    "warmup": 0.05,
}
SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4, "batch_size": 32, "schedule": "constant", "warmup": 0.0}


def recipe(**changes: Any) -> dict[str, Any]:
    return {**RECIPE, **changes}


def study(name: str, *trials: tuple[Mapping[str, Any], float], **changes: Any) -> PastStudy:
    """Its trials, best first; those with a value below 0.5 were pruned."""
    found = [
        PastTrial(number, value, number if value >= 0.5 else None, settings, {"width": 8 + number})
        for number, (settings, value) in enumerate(trials)
    ]
    given: dict[str, Any] = {"objective": "other.py", "metric": "accuracy", "direction": "maximize", **changes}
    return PastStudy(name, trials=tuple(found), **given)


def of_rates(name: str, good: float, **changes: Any) -> PastStudy:
    """Rates over four decades, good near to `good` alone."""
    rates = sorted(10 ** np.linspace(-5, -1, 17), key=lambda rate: abs(math.log10(rate / good)))
    trials = [(recipe(lr=float(rate)), 0.6 + 0.4 * math.exp(-((2 * math.log10(rate / good)) ** 2))) for rate in rates]
    return study(name, *trials, **changes)


def chosen(past: Sequence[PastStudy], most: int = 4, reference: str = "mine.py", metric: str = "accuracy") -> list[str]:
    return [proposal.origin for proposal in won(past, reference, metric, most)]


class TestWon:
    def test_no_studies_are_no_recipes(self) -> None:
        assert won([], "digits", "accuracy", 4) == []
        assert won([study("empty")], "digits", "accuracy", 4) == []

    def test_the_winner_of_the_only_study_comes_first_and_says_where_it_is_from(self) -> None:
        first, *_ = won([of_rates("digits-1", 1e-3)], "digits", "accuracy", 4)
        assert first == Proposal(recipe(lr=pytest.approx(1e-3)), "won study digits-1")

    def test_nearly_the_same_recipe_is_not_tried_twice(self) -> None:
        proposals = won([of_rates("a", 1e-3), of_rates("b", 1.1e-3)], "digits", "accuracy", 4)
        apart = distances([one.settings for one in proposals], [one.settings for one in proposals])
        assert apart[~np.eye(len(apart), dtype=bool)].min(initial=math.inf) >= ALIKE

    def test_studies_that_want_different_recipes_each_have_one_among_the_first(self) -> None:
        past = [of_rates("low", 1e-4), of_rates("high", 1e-2)]
        assert {*chosen(past, 2)} == {"won study low", "won study high"}

    def test_of_many_alike_studies_and_one_odd_the_many_come_first(self) -> None:
        past = [of_rates("odd", 1e-5), *(of_rates(f"usual-{n}", 3e-3) for n in range(4))]
        assert chosen(past)[0].startswith("won study usual")
        assert "won study odd" in chosen(past)

    def test_the_same_objective_counts_more_than_several_others(self) -> None:
        past = [*(of_rates(f"other-{n}", 1e-2) for n in range(4)), of_rates("mine-1", 1e-4, objective="/a/mine.py")]
        assert chosen(past, reference="/b/mine.py")[0] == "won study mine-1"
        assert chosen(past, reference="/b/theirs.py")[0] != "won study mine-1"

    def test_the_models_own_knobs_come_along_from_the_same_objective_only(self) -> None:
        past = [of_rates("mine-1", 1e-3, objective="/a/mine.py"), of_rates("theirs-1", 1e-5)]
        found = {one.origin: one.model for one in won(past, "/b/mine.py", "accuracy", 4)}
        assert found["won study mine-1"] == {"width": 8}
        assert found["won study theirs-1"] == {}

    def test_whichever_way_is_better(self) -> None:
        trials = [(recipe(lr=rate), error) for rate, error in ((1e-3, 0.5), (1e-5, 9.0), (1e-1, 12.0))]
        assert chosen([study("s", *trials, direction="minimize", metric="rmse")], 1) == ["won study s"]

    def test_what_diverged_speaks_against_recipes_like_it(self) -> None:
        calm = study("calm", (recipe(lr=0.1), 0.9), (recipe(lr=1e-3), 0.89), (SGD, 0.5))
        wild = study("wild", (recipe(lr=1e-3), 0.9), (SGD, 0.5), (recipe(lr=0.1), math.nan))
        assert [one.settings["lr"] for one in won([calm, wild], "x", "loss", 1)] == [1e-3]

    def test_what_is_no_recipe_is_passed_over(self) -> None:
        broken = study("s", ({"lr": "__import__('os')"}, 0.9), (recipe(lr=math.inf), 0.8), (recipe(), 0.7))
        assert [one.settings for one in won([broken], "x", "accuracy", 4)] == [recipe()]


class TestLikeness:
    def test_studies_of_the_same_objective_count_twice_as_much_as_all_others_together(self) -> None:
        past = [study(f"other-{n}", (recipe(), 0.9)) for n in range(30)]
        past += [study(f"mine-{n}", (recipe(), 0.9), objective=f"/machine/{n}/net.py") for n in range(3)]
        weights = likeness(past, "/here/net.py", "accuracy")
        assert sum(weights[30:]) == pytest.approx(2 * sum(weights[:30]))

    def test_one_of_the_same_objective_counts_more_than_one_other(self) -> None:
        past = [study("other", (recipe(), 0.9)), study("mine", (recipe(), 0.9), objective="net.py", metric="loss")]
        other, mine = likeness(past, "net.py", "accuracy")
        assert mine > other

    def test_a_study_of_the_same_metric_counts_more_than_one_of_another(self) -> None:
        past = [study("one", (recipe(), 0.9), metric="accuracy"), study("two", (recipe(), 0.9), metric="rmse")]
        one, two = likeness(past, "x", "accuracy")
        assert one > two


class TestExpected:
    def test_a_recipe_that_was_trained_is_expected_to_do_about_as_it_did(self) -> None:
        trained = [recipe(lr=1e-4), recipe(lr=1e-1)]
        assert expected(trained, trained, np.array([0.0, 2.0])) == pytest.approx([0.0, 2.0], abs=0.15)

    def test_a_recipe_like_none_that_was_trained_promises_nothing(self) -> None:
        assert expected([SGD], [recipe(lr=1e-5, batch_size=128)], np.array([0.0]))[0] > 1


class TestDistances:
    def test_a_recipe_lies_nowhere_but_where_it_is(self) -> None:
        assert distances([recipe()], [recipe()]).tolist() == [[0.0]]

    @pytest.mark.parametrize(
        ("near", "far"),
        [
            ({"lr": 0.002}, {"lr": 0.02}),
            ({"batch_size": 64}, {"batch_size": 512}),
            ({"optimizer": "adam", "weight_decay": 1e-4}, {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4}),
            ({"betas": [0.91, 0.999]}, {"betas": [0.5, 0.999]}),
            ({"schedule": "cosine"}, {"schedule": "constant"}),
            ({"weight_decay": 0.02}, {"weight_decay": 0.0}),
        ],
    )
    def test_what_differs_more_lies_farther(self, near: dict[str, Any], far: dict[str, Any]) -> None:
        row = distances([recipe()], [recipe(**near), recipe(**far)])[0]
        assert row[0] < row[1]

    def test_rates_are_compared_in_multiples_of_each_optimizers_own(self) -> None:
        base = {**SGD, "optimizer": "momentum", "momentum": 0.9, "lr": 0.01}
        alike, other = {**base, "optimizer": "nesterov"}, {**base, "optimizer": "nesterov", "lr": 0.1}
        assert distances([base], [alike])[0, 0] < distances([base], [other])[0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": 3},
        {"lr": 0.0},
        {"lr": "0.1"},
        {"lr": True},
        {"lr": math.nan},
        {"batch_size": 0},
        {"weight_decay": -1.0},
        {"betas": [0.9]},
        {"betas": [0.9, 1.0]},
        {"betas": "ab"},
        {"momentum": 1.5},
        {"warmup": None},
    ],
)
def test_what_a_database_holds_is_a_recipe_or_is_not_looked_at(changes: dict[str, Any]) -> None:
    assert is_recipe(recipe())
    assert is_recipe(SGD)
    assert not is_recipe(recipe(**changes))
    assert not is_recipe({})
