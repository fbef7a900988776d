"""Which recipe a confirmation prefers, and in which words: recipes with made-up seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean

import pytest
from storage_places import SPEC

from search import confirmation_page
from search.cli_confirm import going_on
from search.confirmation import Confirmation, Confirmed, apart_by, mean_on_test, rank
from search.intervals import of_mean
from storage.confirmed import Opened
from storage.queries import RankedTrial
from storage.studies import StudyRecord
from storage.tables import StudyState

STUDY = StudyRecord(
    **vars(SPEC),
    study_id=1,
    name="digits-1",
    uid="0" * 32,
    taken=40,
    returned=0,
    state=StudyState.RUNNING,
    reason="",
    created_at=0.0,
)
GOOD, FAIR, POOR = (0.990, 0.988, 0.991), (0.989, 0.991, 0.987), (0.950, 0.948, 0.952)
UNSTEADY = (0.99, 0.70, 0.95)


def seeds(
    trial: int,
    *values: float,
    seconds: float | tuple[float, ...] = 5.0,
    seen: float = 0.99,
    ended: Mapping[str, int] | None = None,
    violating: int = 0,
) -> Confirmed:
    """A recipe of which these values came."""
    times = seconds if isinstance(seconds, tuple) else (seconds,) * len(values)
    found = RankedTrial(trial, seen, 3, 5, 5.0, {"recipe": f"recipe {trial}", "settings": {"lr": trial / 10}})
    of = of_mean(values) if values else Confirmed(found, {}).mean
    return Confirmed(found, dict(enumerate(values)), times, ended or {}, violating=violating, mean=of)


def answer(*recipes: Confirmed, direction: str = "maximize", **changes: object) -> Confirmation:
    apart = changes.get("resolution", 0.0)
    assert isinstance(apart, float)
    ranked = rank(recipes, direction, apart)
    made = Confirmation("digits-1", "digits-1-confirm", "accuracy", direction, len(recipes), 3, ranked)
    return replace(made, **changes)  # type: ignore[arg-type]  # of any field


def said(found: Confirmation) -> str:
    return "\n".join(confirmation_page.lines(found, STUDY, 40))


def order(found: Confirmation) -> list[int]:
    return [one.trial for one in found.recipes]


class TestWhoIsPreferred:
    def test_the_best_mean_where_it_can_be_told_whatever_it_costs(self) -> None:
        found = answer(seeds(1, *POOR, seconds=1), seeds(2, *GOOD, seconds=9))
        assert (order(found), found.ties) == ([2, 1], ())
        assert found.winner is found.best
        assert "trial 2 is better than every other: trial 1 is behind by 0.04 (95% interval 0.036 to 0.044)" in said(
            found
        )
        assert "preferred" not in said(found)

    def test_lower_is_better_where_the_search_minimizes(self) -> None:
        found = answer(seeds(1, *POOR), seeds(2, *GOOD), direction="minimize")
        assert order(found) == [1, 2]
        assert found.best_seed == 1, "the seed with 0.948"

    def test_the_cheaper_one_where_they_cannot_be_told_apart(self) -> None:
        found = answer(seeds(1, *GOOD, seconds=9), seeds(2, *FAIR, seconds=4), seeds(3, *POOR, seconds=1))
        assert order(found) == [2, 1, 3]
        assert found.best is not None
        assert (found.best.trial, [one.trial for one in found.ties]) == (1, [2])
        assert "trial 1 has the best mean, but cannot be told from trial 2: trial 2 is behind by 0.00067" in said(found)
        assert "preferred: trial 2, which is cheaper: it takes 4 s a seed, trial 1 9 s" in said(found)
        assert "Welch's t, all 2 at once (Bonferroni)" in said(found)

    def test_more_seeds_are_worth_it_where_they_may_tell(self) -> None:
        tie = answer(seeds(1, 0.1148, 0.1188), seeds(2, 0.1100, 0.1112), seeds=2)
        assert tie.more_seeds == 4
        best = "dialin best digits-1 --top 5"
        assert [*going_on(STUDY, replace(tie, seeds=3), weights=False)] == [best, "dialin confirm digits-1 --seeds 4"]
        hopeless = answer(seeds(1, *GOOD), seeds(2, *FAIR))
        assert [*going_on(STUDY, hopeless, weights=True)] == [best, "dialin best digits-1 --weights best.pt"]
        assert answer(seeds(1, *GOOD), seeds(2, *GOOD[::-1])).more_seeds is None, "they are the same"
        assert answer(seeds(1, *GOOD), seeds(2, *POOR)).more_seeds is None, "nothing ties"

    def test_equal_means_are_said_to_be_equal(self) -> None:
        same = seeds(1, *GOOD), seeds(2, *GOOD[::-1])
        assert said(answer(*same)).startswith("trials 1 and 2 have the same mean\npreferred: trial 1")
        third = said(answer(*same, seeds(3, *FAIR)))
        assert third.startswith(
            "trials 1 and 2 have the same mean, and cannot be told from trial 3: trial 3 is behind by 0.00067 ("
        )

    @pytest.mark.parametrize("seconds", [4.6, 5.0, 9.0])
    def test_a_tie_with_one_that_is_not_cheaper_by_a_tenth_changes_nothing(self, seconds: float) -> None:
        found = answer(seeds(1, *GOOD), seeds(2, *FAIR, seconds=seconds))
        assert order(found) == [1, 2]
        assert "preferred: trial 1, as none of these is surely cheaper by a tenth" in said(found)

    @pytest.mark.parametrize(
        ("first", "second", "preferred"),
        [
            pytest.param((6.0, 6.6, 7.4), (1.5, 1.6, 6.4), 2, id="one seed of it had to wait"),
            pytest.param((6.0, 6.6, 7.4), (1.5, 3.9, 6.5), 2, id="and another a little"),
            pytest.param((6.0, 6.6, 7.4), (1.5, 6.4, 6.8), 1, id="two of three took as long"),
            pytest.param((1.5, 6.4, 6.5), (4.0, 4.1, 4.2), 1, id="the other is as fast now and then"),
        ],
    )
    def test_seconds_of_a_busy_machine_make_no_recipe_cheaper(
        self, first: tuple[float, ...], second: tuple[float, ...], preferred: int
    ) -> None:
        found = answer(seeds(1, *GOOD, seconds=first), seeds(2, *FAIR, seconds=second))
        assert order(found)[0] == preferred

    def test_an_unsteady_recipe_ties_with_anything_and_is_not_preferred_for_its_price(self) -> None:
        found = answer(seeds(1, *GOOD), seeds(2, *UNSTEADY, seconds=1))
        assert order(found) == [1, 2]
        assert [one.trial for one in found.ties] == [2]
        assert "preferred: trial 1, as the mean of trial 2, cheaper, is not in its interval" in said(found)

    def test_one_of_which_a_seed_failed_comes_after_those_that_train_always(self) -> None:
        found = answer(seeds(1, *GOOD, ended={"diverged": 1}), seeds(2, *POOR))
        assert order(found) == [2, 1]
        assert found.ties == ()
        assert "trial 1 has failed: of 4 seeds 1 diverged" in said(found)
        assert "trial 2 is preferred to the others, of which more seeds failed or violate a constraint" in said(found)

    def test_one_that_violates_a_constraint_comes_after_those_that_keep_to_them(self) -> None:
        found = answer(seeds(1, *GOOD, violating=1), seeds(2, *POOR))
        assert order(found) == [2, 1]
        assert "trial 1 does not keep to the constraints: of 3 seeds 1 violate one" in said(found)
        assert order(answer(seeds(1, *GOOD, violating=1), seeds(2, *FAIR, violating=1, seconds=1))) == [2, 1]

    def test_what_costs_nothing_is_not_cheaper_than_that(self) -> None:
        assert order(answer(seeds(1, *GOOD, seconds=0), seeds(2, *FAIR, seconds=0))) == [1, 2]

    def test_two_seeds_are_the_least_that_confirm(self) -> None:
        found = answer(seeds(1, 0.999), seeds(2, *POOR), seeds(3))
        assert order(found) == [2, 1, 3]
        assert [one.trial for one in found.confirmed] == [2]
        none = answer(seeds(1, 0.999), seeds(3))
        assert (none.winner, none.best, none.best_seed, none.ties) == (None, None, None, ())
        assert said(none).endswith("so nothing can be said of any: see `dialin status digits-1-confirm`")

    def test_two_seeds_that_agree_on_a_coarse_metric_do_not_tell_recipes_apart(self) -> None:
        agreeing = seeds(1, 0.994, 0.994), seeds(2, 0.991, 0.991)
        assert [one.trial for one in answer(*agreeing, resolution=0.003).ties] == [2]
        assert answer(*agreeing).ties == (), "unless a value may lie anywhere"

    def test_a_function_without_chance_tells_its_recipes_apart_however_few(self) -> None:
        assert apart_by([0.5, 0.7, 0.5, 0.7], recipes=2) == 0
        assert apart_by([0.5, 0.7, 0.5, 0.6], recipes=2) == pytest.approx(0.1)

    def test_a_single_recipe_is_compared_with_nothing(self) -> None:
        found = answer(seeds(1, *GOOD))
        assert said(found).startswith("intervals: of means Student's t over seeds\n")


class TestWhatIsSaid:
    def test_a_search_that_saw_more_than_the_mean_can_be(self) -> None:
        lucky = "the search saw 0.9980 of trial 1: the best of 40 noisy draws is partly luck"
        assert lucky in said(answer(seeds(1, *GOOD, seen=0.998)))
        assert "partly luck" not in said(answer(seeds(1, *GOOD, seen=mean(GOOD))))

    def test_seeds_that_make_no_difference(self) -> None:
        assert "gave the same value" in said(answer(seeds(1, 0.5, 0.5), seeds(2, 0.5, 0.5)))
        assert "gave the same value" not in said(answer(seeds(1, 0.5, 0.5), seeds(2, 0.5, 0.6)))

    def test_the_test_split(self) -> None:
        models = {0: {"accuracy": 0.97}, 2: {"accuracy": 0.99}}
        tests = (Opened(1, models, 180), Opened(2, None, why="what data() returns has none"))
        first, second = seeds(1, *GOOD), seeds(2, *GOOD)
        closed = "the test split is closed: dialin confirm digits-1 opens it for trial 1"
        assert closed in said(answer(first))
        assert "test split" not in said(answer(first, finished=False))
        opened = "test split, opened once, for trial 1: accuracy 0.9800, 95% interval 0.8529 to 1.1071 "
        assert f"{opened}(2 models, 180 samples)" in said(answer(first, tests=tests))
        assert "no test split to open: what data() returns has none" in said(answer(second, tests=tests))
        again = answer(first, tests=(*tests, Opened(3, models, 180)))
        assert "test split, opened for 2 recipes by now, for trial 1" in said(again)

    def test_a_metric_that_is_no_number_has_no_mean(self) -> None:
        assert mean_on_test(Opened(1, {0: {"accuracy": float("nan")}}), "accuracy") is None
        assert mean_on_test(Opened(1, None), "accuracy") is None

    def test_the_summary_says_how_far_it_has_got(self) -> None:
        whole, part = seeds(1, *GOOD), replace(seeds(2, 0.98), left=2)
        assert confirmation_page.summary(answer(whole)) == (
            "accuracy 0.9897 (0.9859 to 0.9935) over 3 seeds of trial 1: recipe 1"
        )
        assert confirmation_page.summary(answer(whole, part)).endswith("; 2 trials left in digits-1-confirm")
        assert confirmation_page.summary(answer(part)).startswith("no recipe has two seeds yet; ")
