"""The recipe: what is sampled, under which name and condition, and how it reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import BaseTrial
from torch import nn

from search.data import Data
from search.knobs import Knob, choice, floating, integer
from search.objective import Objective
from search.optimizers import OPTIMIZERS, Optimizer
from search.schedules import SCHEDULES, Schedule
from search.space import Recipe, describe, recipe_from_params, sample, starting_points

pytestmark = pytest.mark.filterwarnings("error")


def no_model(trial: BaseTrial) -> nn.Module:
    raise AssertionError("the model was built")


def no_data(root: Path) -> Data:
    raise AssertionError("the data were read")


def objective(model: Callable[[Any], nn.Module] = no_model, **narrowed: Any) -> Objective:
    return Objective(model=model, data=no_data, loss=nn.functional.cross_entropy, **narrowed)


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))


def test_every_optimizer_and_schedule_is_sampled_with_its_own_knobs_only(study: optuna.Study) -> None:
    everywhere = {"optimizer", "lr_multiple", "l2", "batch_size", "schedule", "warmup"}
    seen = set()
    for _ in range(300):
        trial = study.ask()
        recipe = sample(trial, objective())
        own = {knob.name for knob in (*recipe.optimizer.knobs, *recipe.schedule.knobs)}
        assert set(trial.params) == everywhere | own
        seen |= {recipe.optimizer.name, recipe.schedule.name, recipe.batch_size}
    assert seen == {*OPTIMIZERS, *SCHEDULES, 16, 32, 64, 128}


def test_a_recipe_holds_real_values(study: optuna.Study) -> None:
    for _ in range(100):
        trial = study.ask()
        recipe, params = sample(trial, objective()), trial.params
        assert recipe.lr == params["lr_multiple"] * recipe.optimizer.base_lr
        assert recipe.weight_decay == params["l2"] * (100 if recipe.optimizer.name == "adamw" else 1)
        assert recipe.momentum == (1 - params["one_minus_momentum"] if "one_minus_momentum" in params else None)
        assert (recipe.betas is None) == ("one_minus_beta1" not in params)
        if recipe.betas:
            assert recipe.betas == (1 - params["one_minus_beta1"], 1 - params["one_minus_beta2"])
        assert recipe.shape == {name: params[name] for name in recipe.schedule.defaults}
        assert recipe.warmup == params["warmup"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_optimizers_share_one_rate_parameter_of_one_range(name: str, study: optuna.Study) -> None:
    trial = study.ask()
    sample(trial, objective(optimizers=(name,)))
    assert trial.distributions["lr_multiple"] == optuna.distributions.FloatDistribution(0.03, 30, log=True)


def test_what_has_one_choice_is_not_suggested(study: optuna.Study) -> None:
    trial = study.ask()
    recipe = sample(trial, objective(optimizers=("sgd",), schedules=("constant",), batch_sizes=(7,)))
    assert set(trial.params) == {"lr_multiple", "l2", "warmup"}
    assert (recipe.optimizer.name, recipe.schedule.name, recipe.batch_size) == ("sgd", "constant", 7)


def test_the_same_parameters_give_the_same_recipe_without_the_model(study: optuna.Study) -> None:
    for _ in range(50):
        trial = study.ask()
        recipe = sample(trial, objective())
        assert recipe_from_params({**trial.params, "width": 64}, objective()) == recipe


def test_parameters_of_another_space_are_refused_in_one_line() -> None:
    params = starting_points(objective())[0]
    foreign = "not from this objective's space: "
    with pytest.raises(ValueError, match=f"{foreign}optimizer is 'momentum', but can only be adam, adamw"):
        recipe_from_params(params, objective(optimizers=("adam", "adamw")))
    with pytest.raises(ValueError, match=f"{foreign}optimizer is 'momentum', but can only be sgd"):
        recipe_from_params(params, objective(optimizers=("sgd",)))
    with pytest.raises(ValueError, match=f"{foreign}they have no 'l2'"):
        recipe_from_params({name: value for name, value in params.items() if name != "l2"}, objective())


def test_the_first_trials_are_momentum_adam_and_adamw_at_their_base_rates() -> None:
    recipes = [recipe_from_params(params, objective()) for params in starting_points(objective())]
    assert [recipe.summary() for recipe in recipes] == [
        "momentum lr 0.01 momentum 0.9 L2 1e-4 batch 32 onecycle",
        "adam lr 0.001 beta1 0.9 beta2 0.999 L2 1e-4 batch 32 constant",
        "adamw lr 0.001 beta1 0.9 beta2 0.999 weight decay 0.01 batch 32 cosine warm-up 5%",
    ]


@pytest.mark.parametrize(
    ("narrowed", "names"),
    [
        ({"optimizers": ("sgd", "adamw", "adam")}, ["adam", "adamw", "sgd"]),
        ({"optimizers": ("radam",)}, ["radam"]),
        ({"optimizers": ("sgd", "nadam", "radam", "rmsprop")}, ["sgd", "nadam", "radam"]),
        ({"schedules": ("step",), "batch_sizes": (256, 48)}, ["momentum", "adam", "adamw"]),
    ],
)
def test_a_narrowed_objective_starts_within_its_space(narrowed: dict[str, Any], names: list[str]) -> None:
    narrow = objective(**narrowed)
    recipes = [recipe_from_params(params, narrow) for params in starting_points(narrow)]
    assert [recipe.optimizer.name for recipe in recipes] == names
    assert ("schedule" in starting_points(narrow)[0]) == ("schedules" not in narrowed)
    assert all(recipe.lr == recipe.optimizer.base_lr for recipe in recipes)
    assert {recipe.batch_size for recipe in recipes} == {48 if "batch_sizes" in narrowed else 32}


def test_an_enqueued_starting_point_is_sampled_as_it_is(study: optuna.Study) -> None:
    for params in starting_points(objective()):
        study.enqueue_trial(params)
    for params in starting_points(objective()):
        trial = study.ask()
        sample(trial, objective())
        assert trial.params == params


def test_the_described_knobs_are_what_trials_sample(study: optuna.Study) -> None:
    described = {knob.name: knob for knob in describe(objective(lambda trial: nn.Identity()))}
    sampled: dict[str, Any] = {}
    for _ in range(300):
        trial = study.ask()
        sample(trial, objective())
        sampled |= trial.distributions
    assert {name: knob.distribution for name, knob in described.items()} == sampled


def test_a_knob_says_when_it_is_sampled_and_where_it_starts() -> None:
    knobs = {knob.name: knob for knob in describe(objective(lambda trial: nn.Identity()))}
    assert knobs["one_minus_momentum"].condition == "optimizer: momentum, nesterov"
    assert knobs["one_minus_beta2"].condition == "optimizer: adam, adamw, nadam, radam"
    assert knobs["onecycle_div"].condition == "schedule: onecycle"
    assert knobs["l2"].condition == knobs["batch_size"].condition == ""
    assert knobs["lr_multiple"].range == "0.03 .. 30 (log)"
    assert knobs["batch_size"].range == "16, 32, 64, 128"
    assert (knobs["one_minus_momentum"].default, knobs["optimizer"].default) == (0.1, "momentum")
    assert all(knob.text and knob.default is not None for knob in knobs.values())


def test_a_narrowed_space_says_what_is_fixed_and_drops_conditions_that_always_hold() -> None:
    narrow = objective(lambda trial: nn.Identity(), optimizers=("adam", "adamw"), schedules=("step",))
    knobs = {knob.name: knob for knob in describe(narrow)}
    assert "one_minus_momentum" not in knobs
    assert knobs["one_minus_beta1"].condition == knobs["step_size"].condition == ""
    assert knobs["schedule"].range == "step (fixed)"


def branching_model(trial: BaseTrial) -> nn.Module:
    width = trial.suggest_int("width", 8, 64, log=True)
    if trial.suggest_categorical("kind", ["conv", "linear"]) == "conv":
        trial.suggest_int("kernel", 1, 1 + width // 4)
    return nn.Linear(width, 2)


def test_the_models_own_knobs_are_described_the_conditional_ones_too() -> None:
    knobs = {knob.name: knob for knob in describe(objective(branching_model))}
    assert list(knobs)[-3:] == ["width", "kind", "kernel"] or set(list(knobs)[-3:]) == {
        "width",
        "kind",
        "kernel",
    }
    assert (knobs["width"].range, knobs["width"].condition) == ("8 .. 64 (log)", "")
    assert knobs["kind"].range == "conv, linear"
    assert knobs["kernel"].condition == "some models"
    assert "range depends on" in knobs["kernel"].text


def test_describing_leaves_random_numbers_and_logging_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logging.getLogger("optuna").addHandler(caplog.handler)
    state = torch.get_rng_state()
    describe(objective(branching_model))
    logging.getLogger("optuna").removeHandler(caplog.handler)
    assert caplog.records == []
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert torch.equal(torch.get_rng_state(), state)


def test_describing_builds_the_same_models_every_time() -> None:
    built: list[dict[str, Any]] = []

    def model(trial: BaseTrial) -> nn.Module:
        net = branching_model(trial)
        built.append(dict(trial.params))
        return net

    assert describe(objective(model)) == describe(objective(model))
    assert built[: len(built) // 2] == built[len(built) // 2 :]


def test_a_model_that_asks_for_nothing_is_built_once() -> None:
    built = []

    def model(trial: BaseTrial) -> nn.Module:
        built.append(trial)
        return nn.Identity()

    describe(objective(model))
    assert len(built) == 1


def test_a_model_that_refuses_a_combination_is_described_all_the_same() -> None:
    def model(trial: BaseTrial) -> nn.Module:
        trial.suggest_int("depth", 1, 9)
        raise optuna.TrialPruned

    assert describe(objective(model))[-1].name == "depth"


def test_a_model_that_takes_a_name_of_the_recipes_is_refused() -> None:
    def model(trial: BaseTrial) -> nn.Module:
        trial.suggest_int("batch_size", 1, 9)
        return nn.Identity()

    with pytest.raises(ValueError, match="the model suggests 'batch_size', a name of the recipe's own"):
        describe(objective(model))


def test_rows_of_ones_own_are_sampled_and_described(study: optuna.Study) -> None:
    alpha = floating("centered_alpha", 0.9, 0.999, 0.99, "decay of the mean square")
    mine = Optimizer("centered", torch.optim.RMSprop, 0.003, "Mine.", fixed={"centered": True}, extra=(alpha,))
    late = replace(SCHEDULES["constant"], name="late", knobs=(integer("late_by", 1, 3, 2, "how late"),))
    own = objective(lambda trial: nn.Identity(), optimizers=("sgd", mine), schedules=("cosine", late))
    conditions = {knob.name: knob.condition for knob in describe(own)}
    assert conditions["centered_alpha"] == "optimizer: centered"
    assert conditions["late_by"] == "schedule: late"
    study.enqueue_trial({"optimizer": "centered", "schedule": "late", "centered_alpha": 0.95, "late_by": 3})
    recipe = sample(study.ask(), own)
    assert (recipe.optimizer, recipe.extra) == (mine, {"centered_alpha": 0.95})
    assert (recipe.schedule, recipe.shape) == (late, {"late_by": 3})
    assert " alpha 0.95 " in recipe.summary()


def recipe(optimizer: str, **values: Any) -> Recipe:
    defaults = {"lr": 0.1, "weight_decay": 1e-4, "batch_size": 32, "schedule": SCHEDULES["cosine"]}
    return Recipe(optimizer=OPTIMIZERS[optimizer], **{**defaults, **values})


def test_a_summary_reads_well() -> None:
    adamw = recipe("adamw", lr=0.002096, weight_decay=0.01, betas=(0.9, 0.999), warmup=0.03)
    assert adamw.summary() == "adamw lr 0.0021 beta1 0.9 beta2 0.999 weight decay 0.01 batch 32 cosine warm-up 3%"
    nesterov = recipe("nesterov", lr=0.000021, weight_decay=2.34e-5, momentum=0.93412)
    assert nesterov.summary() == "nesterov lr 2.1e-5 momentum 0.934 L2 2.3e-5 batch 32 cosine"


def test_a_recipe_as_json_is_flat_with_real_values() -> None:
    values = recipe("adam", betas=(0.9, 0.99), shape={"cosine_final": 0.05}).as_dict()
    assert json.loads(json.dumps(values)) == {
        "optimizer": "adam",
        "lr": 0.1,
        "betas": [0.9, 0.99],
        "weight_decay": 1e-4,
        "batch_size": 32,
        "schedule": "cosine",
        "cosine_final": 0.05,
        "warmup": 0.0,
    }
    assert recipe("momentum", momentum=0.8).as_dict()["momentum"] == 0.8


def test_a_recipe_whose_momentum_does_not_fit_its_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer 'sgd' has no momentum"):
        recipe("sgd", momentum=0.9)
    with pytest.raises(ValueError, match="optimizer 'adam' needs betas"):
        recipe("adam")


def test_a_recipe_gives_the_table_of_its_run() -> None:
    table = recipe("sgd", shape={"cosine_final": 0.1}, warmup=0.1).factors(100)
    assert table[9].item() == pytest.approx(1, abs=0.05)
    assert table[-1].item() == pytest.approx(0.1, abs=0.01)


def test_a_knob_whose_default_lies_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"knob 'a': its default 2.0 lies outside 0 .. 1"):
        floating("a", 0, 1, 2.0, "")
    with pytest.raises(ValueError, match="knob 'b': its default 'z' lies outside x, y"):
        choice("b", ("x", "y"), "z", "")


def test_a_knob_as_json_says_everything() -> None:
    knob = Knob("l", optuna.distributions.FloatDistribution(1e-3, 1, log=True), 0.1, "text", "when")
    described = {"knob": "l", "kind": "float", "range": "0.001 .. 1 (log)", "low": 1e-3, "high": 1.0, "log": True}
    assert knob.as_dict() == described | {"condition": "when", "default": 0.1, "text": "text"}
    assert choice("c", (1, 2), 1, "").as_dict()["choices"] == [1, 2]


def test_two_schedules_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="constant"):
        objective(schedules=("constant", Schedule("constant", "Mine.", SCHEDULES["constant"].build)))
