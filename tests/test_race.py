"""The race's rivals search Dialin's own space: the same parameters, the same optimizer, the same rate at each step."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import optuna
import pytest
import torch

from search.optimizers import OPTIMIZERS, build
from search.schedules import SCHEDULES
from search.space import recipe_from_params, sample

ROOT = Path(__file__).resolve().parents[1]
STEPS = 97


Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """A module of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "rivals")
    monkeypatch.setenv("RACE_IMAGES", "100")
    return importlib.import_module


def trials(rows: int) -> Iterator[optuna.Trial]:
    """Random trials, so many for each pair of an optimizer and a schedule."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for optimizer in OPTIMIZERS:
        for schedule in SCHEDULES:
            for _ in range(rows):
                study.enqueue_trial({"optimizer": optimizer, "schedule": schedule})
                yield study.ask()


@pytest.mark.parametrize("contest", ["fashion", "digits", "adult"])
def test_a_plain_trial_has_the_parameters_and_ranges_of_dialins(load: Load, contest: str) -> None:
    suggest, objective = load("plain_recipe").suggest, load("contests").CONTESTS[contest].objective
    for trial in trials(1):
        suggest(trial, objective)
        study = optuna.create_study()
        study.enqueue_trial(trial.params)
        ours = study.ask()
        sample(ours, objective)
        objective.model(ours)
        assert ours.params == trial.params
        assert ours.distributions == trial.distributions


@pytest.mark.parametrize("contest", ["fashion", "digits", "adult"])
def test_a_plain_trial_steps_as_dialins(load: Load, contest: str) -> None:
    recipe, run_on = load("plain_recipe"), load("contests").CONTESTS[contest]
    objective = run_on.objective
    for trial in trials(1):
        recipe.suggest(trial, objective)
        net = run_on.net(trial.params)
        theirs = recipe.make_optimizer(trial.params, net)
        schedule = recipe.make_schedule(trial.params, theirs, STEPS, objective)
        mine = recipe_from_params(trial.params, objective)
        groups = zip(build(mine, net).param_groups, theirs.param_groups, strict=True)
        for group, other in groups:
            assert [id(one) for one in group["params"]] == [id(one) for one in other["params"]]
            assert settings(group) == settings(other)
        rates = []
        for _ in range(STEPS):
            rates.append(theirs.param_groups[0]["lr"])
            theirs.step()
            schedule.step()
        torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), mine.lr * mine.factors(STEPS))


def settings(group: dict[str, object]) -> dict[str, object]:
    """Everything about a parameter group but what it steps, how far, which the rates say, and in how many kernels."""
    return {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr", "fused")}


def test_a_final_value_is_reached_when_an_epoch_is_as_good(load: Load) -> None:
    curves = load("benchmarks.race_curves")
    run = curves.Run("dialin", 0, 0.0, [2.0], [9.0], [(4.0, "0", 0.5), (6.0, "0", 0.8), (8.0, "0", 0.7)])
    assert run.best == 0.8
    assert run.first_trial == 2.0
    assert run.reached(0.8) == 6.0
    assert math.isinf(run.reached(0.81))
    assert run.best_at(5.0) == 0.5
    assert math.isnan(run.best_at(3.0))


def test_a_median_with_values_that_never_came_counts_them_as_late(load: Load) -> None:
    spread = load("benchmarks.race_curves").spread
    assert spread([3.0, math.inf, 1.0], 1) == "3.0 (1.0 to never)"
    assert spread([3.0, math.inf], 1) == "never (3.0 to never)"
    assert spread([math.inf, math.inf, 1.0], 1) == "never (1.0 to never)"
    assert spread([math.nan, 2.0, 1.0], 1) == "1.5 (1.0 to 2.0)"
    assert spread([math.nan], 1) == "none"
