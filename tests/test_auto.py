"""The default strategy on small made-up curves: what starts, what is promoted, what is trained out, when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.auto import Auto, Rules
from search.strategy import GoOn, Left, Seen, SeenState, Start, Verdict

EPOCHS = 16
SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
WIDE: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in "wx"}
Curve = Callable[[Mapping[str, Any], int], float]
RANKS = Rules(by_rank=1.0, first=0)


def falling(recipe: Mapping[str, Any], epoch: int) -> float:
    """Best at x = 0.3, and better with every epoch."""
    return abs(recipe["x"] - 0.3) + 1 / (1 + epoch)


def trial(number: int, values: Sequence[float], state: SeenState = SeenState.PAUSED, **more: Any) -> Seen:
    recipe = more.pop("recipe", {"x": (number * 0.381) % 1})
    return Seen(number, recipe, dict(enumerate(values, 1)), state, distributions=SPACE, **more)


def probes(count: int = 8, length: int = 2) -> list[Seen]:
    """Trials whose order is plain from the first epoch on: number 0 is the best of them."""
    return [trial(number, [1 + number - 0.1 * epoch for epoch in range(length)]) for number in range(count)]


def drive(
    strategy: Auto, curve: Curve, *, left: Left, epochs: int = EPOCHS, most: int = 2000, space: Any = SPACE
) -> list[Seen]:
    """One worker, until the strategy finds nothing worth doing or so many epochs are trained."""
    rng, seen, spent = np.random.default_rng(0), list[Seen](), 0
    while spent < most:
        now = replace(left, trials=left.trials - len(seen), epochs=left.epochs - spent)
        chosen = strategy.next(seen, now)
        if chosen is None:
            break
        if isinstance(chosen, Start):
            assert now.trials > 0
            recipe, number = chosen.recipe or {name: float(rng.random()) for name in space}, len(seen)
            seen.append(Seen(number, recipe, {}, SeenState.RUNNING, distributions=space, origin=chosen.origin))
        else:
            number = chosen.number
            assert seen[number].state is SeenState.PAUSED
        verdict = Verdict.GO_ON
        while verdict is Verdict.GO_ON and spent < most:
            spent, one = spent + 1, seen[number]
            values = {**one.values, len(one.values) + 1: curve(one.recipe, len(one.values) + 1)}
            ended = len(values) == epochs
            seen[number] = replace(one, values=values, state=SeenState.COMPLETE if ended else SeenState.RUNNING)
            if ended:
                break
            verdict = strategy.verdict(number, seen, replace(now, epochs=left.epochs - spent))
        if seen[number].state is SeenState.RUNNING:
            seen[number] = replace(seen[number], state=SeenState.PAUSED)
    return seen


def trained(seen: Sequence[Seen]) -> int:
    return sum(len(one.values) for one in seen)


def test_of_the_given_recipes_the_better_half_goes_on_first_until_one_is_trained_out() -> None:
    given = [trial(n, [4 - n, 3.5 - n], origin="won study A") for n in range(4)]
    beside = [trial(4 + n, [0.1, 0.05]) for n in range(9)]
    strategy = Auto(epochs=EPOCHS, seed=0, rules=RANKS)
    assert strategy.next([*given, *beside], Left()) == GoOn(3)
    running = [replace(one, state=SeenState.RUNNING) if one.number == 3 else one for one in given]
    assert strategy.next([*running, *beside], Left()) == GoOn(2)
    done = trial(3, [1.0 - epoch / EPOCHS for epoch in range(EPOCHS)], SeenState.COMPLETE, origin="won study A")
    chosen = strategy.next([*given[:3], done, *beside], Left())
    assert isinstance(chosen, GoOn)
    assert chosen.number >= 4


def test_the_best_third_at_a_rung_goes_on_and_else_a_new_trial_starts() -> None:
    strategy = Auto(epochs=EPOCHS, seed=0, rules=RANKS)
    seen = [*probes(9, 2)]
    assert strategy.next(seen, Left()) == GoOn(0)
    ahead = [replace(one, state=SeenState.RUNNING) if one.number < 3 else one for one in seen]
    begun = strategy.next(ahead, Left())
    assert isinstance(begun, Start)
    assert begun.origin == "neighbour"


def test_the_highest_rung_is_looked_at_first() -> None:
    """Trial 8 is the best of three that are four epochs long; trial 0 the best of all that are two."""
    longer = [trial(8 + n, [3 + n, 2.9 + n, 2.8 + n, 2.7 + n]) for n in range(3)]
    assert Auto(epochs=EPOCHS, seed=0, rules=RANKS).next([*probes(), *longer], Left()) == GoOn(8)


def test_a_trial_is_paused_at_a_rung_only_and_only_where_another_is_to_go_on() -> None:
    for length, losing in ((2, Verdict.PAUSE), (3, Verdict.GO_ON)):
        bad = trial(8, [9.0] * length, SeenState.RUNNING)
        good = trial(8, [0.5 - 0.1 * epoch for epoch in range(length)], SeenState.RUNNING)
        assert Auto(epochs=EPOCHS, seed=0, rules=RANKS).verdict(8, [*probes(), bad], Left()) is losing
        assert Auto(epochs=EPOCHS, seed=0, rules=RANKS).verdict(8, [*probes(), good], Left()) is Verdict.GO_ON


def test_in_the_second_half_of_a_training_no_trial_is_paused() -> None:
    for length, losing in ((4, Verdict.PAUSE), (8, Verdict.GO_ON)):
        bad = trial(8, [9.0] * length, SeenState.RUNNING)
        assert Auto(epochs=10, seed=0, rules=RANKS).verdict(8, [*probes(8, length), bad], Left()) is losing


def test_probes_train_on_while_the_order_of_trials_says_nothing() -> None:
    rng = np.random.default_rng(3)
    noise = rng.permutation(8)

    def late(number: int, epoch: int) -> float:
        return 5 + float(noise[number]) / 100 if epoch < 4 else 1 + number - epoch / 10

    strategy = Auto(epochs=EPOCHS, seed=0, rules=RANKS)
    for length in (1, 2, 3):
        seen = [trial(n, [late(n, e) for e in range(1, length + 1)], SeenState.RUNNING) for n in range(8)]
        assert strategy.verdict(7, seen, Left()) is Verdict.GO_ON


def test_what_the_best_are_still_to_train_is_kept_back_for_them() -> None:
    strategy = Auto(epochs=EPOCHS, seed=0, rules=Rules(by_rank=1.0, random=1.0, first=0, leaders=2))
    seen = probes(9, 4)
    needed = 2 * (EPOCHS - 4)
    assert strategy.next(seen, Left(epochs=needed)) == GoOn(0)
    running = [replace(seen[0], state=SeenState.RUNNING), *seen[1:]]
    assert strategy.next(running, Left(epochs=needed)) == GoOn(1)
    both = [replace(one, state=SeenState.RUNNING) if one.number < 2 else one for one in seen]
    assert strategy.next(both, Left(epochs=needed)) is None


def test_a_budget_of_trials_starts_them_all_trains_the_best_out_and_ends() -> None:
    seen = drive(Auto(epochs=EPOCHS, seed=0), falling, left=Left(trials=30))
    assert len(seen) == 30
    by_value = sorted(seen, key=lambda one: min(one.values.values()))
    assert [one.state for one in by_value[:3]] == [SeenState.COMPLETE] * 3
    assert 0.2 * 30 * EPOCHS < trained(seen) < 0.45 * 30 * EPOCHS


def test_a_budget_of_epochs_is_used_up_and_the_best_is_trained_out() -> None:
    seen = drive(Auto(epochs=EPOCHS, seed=0), falling, left=Left(epochs=200), most=200)
    assert 190 <= trained(seen) <= 200
    assert min(seen, key=lambda one: min(one.values.values())).state is SeenState.COMPLETE


def test_the_model_finds_what_random_recipes_do_not() -> None:
    def bowl(recipe: Mapping[str, Any], epoch: int) -> float:
        return sum((value - 0.3) ** 2 for value in recipe.values()) + 1 / (1 + epoch)

    away = []
    for rules in (Rules(), Rules(by_rank=0.0, random=1.0)):
        seen = drive(Auto(epochs=EPOCHS, seed=0, rules=rules), bowl, left=Left(), most=200, space=WIDE)
        away.append(min(bowl(one.recipe, 10**9) for one in seen))
    assert 3 * away[0] < away[1]


@pytest.mark.parametrize(
    ("by_rank", "random", "origins"), [(1.0, 0.0, {"neighbour"}), (0.0, 0.0, {"model"}), (0.0, 1.0, {"random"})]
)
def test_ranks_and_model_share_the_decisions(by_rank: float, random: float, origins: set[str]) -> None:
    rules = Rules(by_rank=by_rank, random=random, first=8)
    seen = drive(Auto(epochs=EPOCHS, seed=0, rules=rules), falling, left=Left(), most=120)
    assert {one.origin for one in seen[:8]} == {"random"}
    assert {one.origin for one in seen[8:]} == origins


def test_by_default_each_starts_trials_and_chance_the_fewest() -> None:
    seen = drive(Auto(epochs=EPOCHS, seed=0), falling, left=Left(), most=300)
    later = [one.origin for one in seen[Rules().first :]]
    assert 0 < later.count("random") < min(later.count("model"), later.count("neighbour"))


def neighbours(seen: Sequence[Seen]) -> list[Start]:
    """What each of twenty workers starts."""
    begun = [Auto(epochs=EPOCHS, seed=0, worker=worker, rules=RANKS).next(seen, Left()) for worker in range(20)]
    return [one for one in begun if isinstance(one, Start)]


@pytest.mark.parametrize("feasible", [5, 2])
def test_a_neighbour_is_near_one_of_the_five_best_that_have_a_value(feasible: int) -> None:
    """Best are those with the least x, and the good ones are far from the bad ones."""
    places = [*(0.1 + n / 100 for n in range(feasible)), *(0.8 + n / 100 for n in range(7))]
    done = [trial(n, [x, x], SeenState.COMPLETE, recipe={"x": x}) for n, x in enumerate(places)]
    seen = [replace(one, feasible=feasible == 5 or one.recipe["x"] < 0.5) for one in done]
    begun = neighbours(seen)
    assert {one.origin for one in begun} == {"neighbour"}
    assert len(begun) == 20
    assert all(one.recipe is not None and one.recipe["x"] < 0.6 for one in begun)


@pytest.mark.parametrize(("tried", "left"), [(5, [{"n": 5}]), (6, [])])
def test_a_neighbour_is_no_recipe_again_and_where_none_is_new_a_random_one_starts(
    tried: int, left: list[dict[str, int]]
) -> None:
    whole: dict[str, BaseDistribution] = {"n": IntDistribution(0, 5)}
    done = [trial(n, [n, n], SeenState.COMPLETE, recipe={"n": n}) for n in range(tried)]
    begun = neighbours([replace(one, distributions=whole) for one in done])
    assert len(begun) == 20
    assert Start(None, "random") in begun
    assert all(one.recipe in left for one in begun if one.origin == "neighbour")
    assert any(one.origin == "neighbour" for one in begun) == bool(left)


def test_the_same_record_and_seed_give_the_same_search_and_another_worker_another_recipe() -> None:
    once, again = (drive(Auto(epochs=EPOCHS, seed=4), falling, left=Left(), most=100) for _ in range(2))
    assert once == again
    rules = Rules(by_rank=0.0, random=0.0, first=0)
    seen = [replace(one, state=SeenState.RUNNING) for one in probes(20)]
    beside = [Auto(epochs=EPOCHS, seed=4, worker=worker, rules=rules).next(seen, Left()) for worker in (0, 1)]
    assert beside[0] != beside[1]


def test_the_model_proposes_no_recipe_twice() -> None:
    kinds: dict[str, BaseDistribution] = {
        "kind": CategoricalDistribution(("a", "b", "c")),
        "wide": CategoricalDistribution((1, 2)),
    }
    recipes = [{"kind": kind, "wide": wide} for kind in "abc" for wide in (1, 2)]
    rules = Rules(by_rank=0.0, random=0.0, first=0)
    seen = [
        Seen(number, recipe, {1: float(number + 1)}, SeenState.RUNNING, distributions=kinds)
        for number, recipe in enumerate(recipes[:-1])
    ]
    assert Auto(epochs=EPOCHS, seed=0, rules=rules).next(seen, Left()) == Start(recipes[-1], "model")
    full = [*seen, Seen(5, recipes[-1], {1: 9.0}, SeenState.RUNNING, distributions=kinds)]
    assert Auto(epochs=EPOCHS, seed=0, rules=rules).next(full, Left()) == Start(None, "random")


def test_of_two_equal_trials_the_one_that_costs_less_time_goes_on() -> None:
    seen = [replace(one, state=SeenState.PRUNED, seconds=4.0) for one in probes(8, 4)]
    values = [0.9, 0.8, 0.7, 0.6]
    pair = [trial(8, values, recipe={"x": 0.1}, seconds=40.0), trial(9, values, recipe={"x": 0.1}, seconds=4.0)]
    rules = Rules(by_rank=0.0, first=0, share=10.0)
    assert Auto(epochs=EPOCHS, seed=0, rules=rules).next([*seen, *pair], Left(trials=0)) == GoOn(9)


def test_where_epochs_are_what_runs_out_all_of_them_cost_the_same() -> None:
    seen = [replace(one, state=SeenState.PRUNED, seconds=4.0) for one in probes(8, 4)]
    values = [0.9, 0.8, 0.7, 0.6]
    pair = [trial(8, values, recipe={"x": 0.1}, seconds=40.0), trial(9, values, recipe={"x": 0.1}, seconds=4.0)]
    swapped = [replace(one, seconds=44.0 - one.seconds) for one in pair]
    left, rules = Left(trials=0, epochs=100), Rules(by_rank=0.0, first=0, share=10.0)
    chosen = [Auto(epochs=EPOCHS, seed=0, rules=rules).next([*seen, *two], left) for two in (pair, swapped)]
    assert chosen[0] == chosen[1]


def test_trials_that_diverged_or_failed_are_neither_promoted_nor_in_the_way() -> None:
    diverged = Seen(0, {"x": 0.5}, {1: math.nan}, SeenState.PRUNED, distributions=SPACE)
    failed = Seen(1, {"x": 0.6}, {}, SeenState.FAILED, distributions=SPACE)
    others = [replace(one, number=one.number + 2) for one in probes(9)]
    for rules in (RANKS, Rules(by_rank=0.0, random=0.0, first=0)):
        chosen = Auto(epochs=EPOCHS, seed=0, rules=rules).next([diverged, failed, *others], Left(trials=0))
        assert isinstance(chosen, GoOn)
        assert chosen.number >= 2


def test_without_a_known_length_the_first_trials_train_to_their_end() -> None:
    strategy = Auto(epochs=0, seed=0)
    running = [trial(0, [1.0, 0.9], SeenState.RUNNING)]
    assert strategy.verdict(0, running, Left()) is Verdict.GO_ON
    assert strategy.next(running, Left(trials=1)) == Start(None, "random")
    assert strategy.next(running, Left(trials=0)) is None


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_trainings_are_searched_too(epochs: int) -> None:
    seen = drive(Auto(epochs=epochs, seed=0), falling, left=Left(trials=12), epochs=epochs)
    assert len(seen) == 12
    assert sum(one.state is SeenState.COMPLETE for one in seen) >= 3
