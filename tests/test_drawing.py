"""What a worker draws: never a recipe that another trial has had, and most where a person believes it is good."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import kstest

from search.samplers import SAMPLERS, make_sampler
from search.space_changes import LEARNING
from storage.priors import Prior
from storage.space_view import SpaceView
from storage.suggesting import CannotBeDrawn, SuggestingTrial
from storage.unseen import Unseen, is_exhausted, values_of


class Shown(InMemoryStorage):
    """Optuna's storage in memory, which shows samplers what a view says, as a worker's does."""

    def __init__(self, view: SpaceView) -> None:
        super().__init__()
        self.view = view

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        return self.view(super().get_all_trials(study_id, deepcopy, states))

    def recorded(self, study_id: int) -> list[FrozenTrial]:
        return super().get_all_trials(study_id, deepcopy=False)


def search(
    function: Callable[[optuna.Trial], float], trials: int, sampler: BaseSampler | str = "random", **view: Any
) -> list[FrozenTrial]:
    """The trials of a study, as they are on record, until there is nothing left to draw."""
    storage = Shown(SpaceView(**view))
    made = make_sampler(sampler, 1, 0) if isinstance(sampler, str) else sampler
    study = optuna.create_study(storage=storage, sampler=made)
    for _ in range(trials):
        trial = SuggestingTrial(study.ask())
        try:
            study.tell(trial, function(trial))
        except CannotBeDrawn:
            study.tell(trial, state=TrialState.PRUNED)
            break
    return storage.recorded(study._study_id)


def conditional(trial: optuna.Trial) -> float:
    """Nine recipes: a alone, b with one of two, c with one of six."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    if kind == "b":
        return float(trial.suggest_int("width", 1, 2))
    if kind == "c":
        return trial.suggest_float("rate", 0.1, 0.3, step=0.1) + trial.suggest_categorical("bias", [True, False])
    return 0.0


def rate(trial: optuna.Trial, low: float, high: float) -> float:
    return trial.suggest_float("lr", low, high, log=True)


class TestNeverTwice:
    @pytest.mark.parametrize("sampler", [*SAMPLERS])
    def test_a_small_space_is_searched_whole_and_no_recipe_twice(self, sampler: str) -> None:
        found = search(conditional, 12, sampler)
        recipes = Counter(tuple(trial.params.items()) for trial in found if trial.state == TrialState.COMPLETE)
        assert len(recipes) == 9
        assert {*recipes.values()} == {1}
        assert found[-1].state == TrialState.PRUNED, "and then nothing is left to draw"
        assert len(found) == 10
        assert is_exhausted(found[:9])
        assert not is_exhausted(found[:8])

    def test_a_running_trial_counts_once_it_has_what_others_had_in_the_end(self) -> None:
        pair = {"x": IntDistribution(0, 1), "y": IntDistribution(0, 1)}
        done = trial_with({"x": 0, "y": 0}, pair)
        half = trial_with({"x": 1}, pair, TrialState.RUNNING, number=1)
        assert Unseen([done, half]).open_values("x", pair["x"]) == [0, 1]
        whole = trial_with({"x": 1, "y": 1}, pair, TrialState.RUNNING, number=1)
        left = Unseen([done, whole])
        left.went("x", pair["x"], 1)
        assert left.open_values("y", pair["y"]) == [0]

    def test_a_recipe_that_a_mistake_kept_from_being_tried_is_drawn_again(self) -> None:
        one = {"x": CategoricalDistribution([1, 2])}
        failed = trial_with({"x": 1}, one, TrialState.FAIL, outcome="error")
        assert not Unseen([failed, trial_with({"x": 2}, one, number=1)]).exhausted
        assert Unseen([trial_with({"x": 1}, one), trial_with({"x": 2}, one, number=1)]).exhausted

    def test_what_a_person_asked_for_is_trained_again(self) -> None:
        storage = Shown(SpaceView())
        study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=1))
        for _ in range(2):
            study.enqueue_trial({"kind": "b", "width": 2})
            trial = SuggestingTrial(study.ask())
            study.tell(trial, conditional(trial))
        assert [trial.params for trial in storage.recorded(0)] == [{"kind": "b", "width": 2}] * 2

    @pytest.mark.parametrize(
        ("distribution", "values"),
        [
            (CategoricalDistribution(["a", None]), ["a", None]),
            (IntDistribution(2, 8, step=3), [2, 5, 8]),
            (FloatDistribution(0.1, 0.3, step=0.1), [0.1, 0.2, 0.3]),
            (FloatDistribution(0.5, 0.5), [0.5]),
            (FloatDistribution(0.0, 1.0), None),
        ],
    )
    def test_the_values_of_a_range(self, distribution: BaseDistribution, values: list[Any] | None) -> None:
        assert values_of(distribution) == values


def trial_with(
    params: dict[str, Any],
    distributions: Mapping[str, BaseDistribution],
    state: TrialState = TrialState.COMPLETE,
    number: int = 0,
    **attrs: Any,
) -> FrozenTrial:
    value = 0.5 if state == TrialState.COMPLETE else None
    drawn = {name: distributions[name] for name in params}
    trial = create_trial(state=state, value=value, params=params, distributions=drawn, user_attrs=attrs)
    trial.number = trial._trial_id = number
    return trial


class TestPriors:
    RATE = Prior(1e-3, 10)

    @pytest.mark.parametrize("sampler", ["random", "qmc"])
    def test_draws_are_log_normal_with_the_factor_as_two_deviations(self, sampler: str) -> None:
        found = search(
            lambda trial: trial.suggest_float("lr", 1e-6, 1.0, log=True), 300, sampler, priors={"lr": self.RATE}
        )
        drawn = np.log10([trial.params["lr"] for trial in found])
        assert kstest(drawn, "norm", (-3, 0.5)).pvalue > 0.01
        assert np.mean(np.abs(drawn + 3) < 1) == pytest.approx(0.95, abs=0.03)
        assert all(trial.distributions["lr"] == FloatDistribution(1e-6, 1.0, log=True) for trial in found)

    def test_a_range_cuts_it_off(self) -> None:
        found = search(lambda trial: rate(trial, 1e-3, 1e-2), 200, priors={"lr": self.RATE})
        drawn = np.log10([trial.params["lr"] for trial in found])
        assert drawn.min() >= -3
        assert drawn.max() <= -2
        assert np.mean(drawn < -2.5) == pytest.approx(0.715, abs=0.08), "half a deviation has 38% of a normal, two 95%"

    def test_whole_numbers_and_steps_stay_what_they_are(self) -> None:
        def function(trial: optuna.Trial) -> float:
            return trial.suggest_int("width", 4, 256) + trial.suggest_float("dropout", 0.0, 0.9, step=0.1)

        found = search(function, 200, priors={"width": Prior(32, 2), "dropout": Prior(0.3, 2)})
        widths = [trial.params["width"] for trial in found]
        assert all(isinstance(width, int) for width in widths)
        assert np.mean([16 <= width <= 64 for width in widths]) > 0.9
        assert {trial.params["dropout"] for trial in found} <= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}

    @pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
    def test_samplers_that_learn_begin_there_and_go_where_it_is_good(self, sampler: str) -> None:
        best = -3.5 if sampler == "cmaes" else -5.0

        def function(trial: optuna.Trial) -> float:
            return (math.log10(trial.suggest_float("lr", 1e-6, 1.0, log=True)) - best) ** 2

        found = search(function, 24, sampler, priors={"lr": self.RATE}, ranks=sampler not in LEARNING)
        drawn = np.log10([trial.params["lr"] for trial in found])
        assert np.abs(drawn[:10] + 3).max() < 1.5, "three deviations, where six decades are searched"
        assert np.abs(drawn[12:] - best).min() < 0.2, "and they find what is best, four deviations away"

    def test_a_value_has_the_rank_that_gives_it_again(self) -> None:
        for distribution in (FloatDistribution(1e-6, 1.0, log=True), FloatDistribution(0.0, 1.0)):
            for value in (1e-5, 1e-3, 0.05):
                rank = self.RATE.rank(value, distribution)
                assert 0 < rank < 1
                assert self.RATE.value(rank, distribution) == pytest.approx(value, rel=1e-6)
        far = FloatDistribution(100.0, 200.0)
        assert self.RATE.value(self.RATE.rank(150.0, far), far) == pytest.approx(150.0)
