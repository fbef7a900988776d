"""What a person wishes for a knob narrows the distribution itself, in their names and in torch's units."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial
from torch import nn

from search.data import Data
from search.errors import ObjectiveError
from search.narrowing import narrow, narrowed
from search.objective import Objective
from search.settings import check_knobs, middle, middle_trial, params_of, recipe_of
from search.space import describe, recipe_from_params, sample, starting_points

pytestmark = pytest.mark.filterwarnings("error")


def model(trial: BaseTrial) -> nn.Module:
    width = trial.suggest_int("width", 4, 32, log=True)
    trial.suggest_float("dropout", 0.0, 0.5)
    trial.suggest_categorical("activation", ["relu", "gelu", "tanh"])
    if trial.suggest_categorical("deep", [True, False]):
        trial.suggest_int("second", 1, width)
    return nn.Linear(2, 2)


def no_data(root: Path) -> Data:
    raise AssertionError("the data were read")


def objective(knobs: dict[str, Any] | None = None, **fields: Any) -> Objective:
    return Objective(model=model, data=no_data, loss=nn.functional.cross_entropy, knobs=knobs or {}, **fields)


def new_study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))


def sampled(searched: Objective, count: int = 40) -> list[tuple[Any, optuna.Trial]]:
    found, study = [], new_study()
    for _ in range(count):
        trial = study.ask()
        found.append((sample(trial, searched), trial))
    return found


class TestTheRecipe:
    def test_a_real_range_of_rates_is_one_parameter_for_all_optimizers(self) -> None:
        optimizers = set()
        for recipe, trial in sampled(objective({"lr": (1e-4, 1e-2)})):
            assert trial.distributions["lr"] == FloatDistribution(1e-4, 1e-2, log=True)
            assert "lr_multiple" not in trial.params
            assert recipe.lr == trial.params["lr"]
            optimizers.add(recipe.optimizer.name)
        assert len(optimizers) > 5

    def test_a_fixed_rate_is_the_rate_and_no_parameter(self) -> None:
        for recipe, trial in sampled(objective({"lr": 0.01})):
            assert recipe.lr == 0.01
            assert not {"lr", "lr_multiple"} & {*trial.params}

    def test_weight_decay_is_what_torch_gets_whatever_the_optimizer(self) -> None:
        for recipe, trial in sampled(objective({"weight_decay": (1e-5, 1e-1)})):
            assert recipe.weight_decay == trial.params["weight_decay"]
            assert "l2" not in trial.params
        for recipe, _ in sampled(objective({"weight_decay": 0, "optimizer": ["adam", "adamw"]})):
            assert recipe.weight_decay == 0

    def test_l2_narrows_the_coefficient_that_a_decoupled_decay_multiplies(self) -> None:
        [(recipe, trial)] = sampled(objective({"l2": (1e-4, 1e-3), "optimizer": "adamw"}), 1)
        assert trial.distributions["l2"] == FloatDistribution(1e-4, 1e-3, log=True)
        assert recipe.weight_decay == 100 * trial.params["l2"]

    def test_momentum_and_betas_are_meant_and_one_minus_them_is_sampled(self) -> None:
        wishes = {"momentum": (0.8, 0.95), "beta1": 0.9, "beta2": [0.99, 0.999]}
        for recipe, trial in sampled(objective(wishes), 80):
            if recipe.momentum is not None:
                assert trial.distributions["one_minus_momentum"] == FloatDistribution(0.05, 0.2, log=True)
                assert 0.8 <= recipe.momentum <= 0.95
            if recipe.betas is not None:
                assert recipe.betas[0] == 0.9
                assert recipe.betas[1] in (1 - 0.01, 1 - 0.001)
                assert "one_minus_beta1" not in trial.params

    def test_optimizers_schedules_and_batch_sizes_are_chosen_among(self) -> None:
        wishes = {"optimizer": ["adam", "adamw"], "schedule": "cosine", "batch_size": (32, 64)}
        searched = objective(wishes)
        seen = {(r.optimizer.name, r.schedule.name, r.batch_size) for r, _ in sampled(searched)}
        assert seen == {(name, "cosine", size) for name in ("adam", "adamw") for size in (32, 64)}
        assert searched.knobs == {}, "they are the objective's own lists now"

    def test_what_the_objective_does_not_list_is_a_persons_wish_all_the_same(self) -> None:
        searched = objective({"batch_size": 1024, "optimizer": "adagrad"}, optimizers=("sgd",))
        [(recipe, _)] = sampled(searched, 1)
        assert (recipe.batch_size, recipe.optimizer.name) == (1024, "adagrad")

    def test_warm_up_and_a_rows_own_knobs_are_narrowed(self) -> None:
        wishes = {"warmup": 0.2, "onecycle_div": (20.0, 40.0), "schedule": "onecycle"}
        for recipe, trial in sampled(objective(wishes)):
            assert recipe.warmup == 0.2
            assert trial.distributions["onecycle_div"] == FloatDistribution(20, 40, log=True)

    def test_starting_points_lie_inside(self) -> None:
        searched = objective({"lr": (2e-3, 5e-3), "momentum": (0.95, 0.99), "warmup": (0.0, 0.01), "l2": 1e-5})
        points = starting_points(searched)
        recipes = [recipe_from_params(point, searched) for point in points]
        assert [recipe.lr for recipe in recipes] == [5e-3, 2e-3, 2e-3]
        assert recipes[0].momentum == pytest.approx(0.95)
        assert [recipe.warmup for recipe in recipes] == [0.0, 0.0, 0.01]
        assert recipes[2].weight_decay == pytest.approx(1e-3)

    def test_a_study_made_otherwise_does_not_fit(self) -> None:
        with pytest.raises(ObjectiveError, match="they have no 'lr'"):
            recipe_from_params(starting_points(objective())[0], objective({"lr": (1e-3, 1e-2)}))

    def test_narrowing_twice_is_narrowing_once(self) -> None:
        once = objective({"lr": 0.01, "optimizer": ["adam", "sgd"], "width": 8})
        assert replace(once, epochs=3, batch_sizes=(7,)).optimizers == once.optimizers
        assert replace(once, knobs={**once.knobs, "optimizer": "radam"}).optimizers == ("radam",)


class TestTheModel:
    def test_its_suggestions_are_narrowed_and_nothing_else_changes(self) -> None:
        trial = new_study().ask()
        shown = narrowed(trial, {"width": (6, 9), "dropout": 0.25, "activation": ["gelu", "relu"]})
        assert isinstance(shown, optuna.Trial)
        model(shown)
        assert trial.distributions["width"] == IntDistribution(6, 9, log=True)
        assert trial.distributions["activation"] == CategoricalDistribution(("relu", "gelu"))
        assert trial.distributions["dropout"] == FloatDistribution(0.25, 0.25)
        assert trial.params["dropout"] == 0.25
        shown.set_user_attr("note", 1)
        assert (shown.number, shown.params, shown.user_attrs) == (trial.number, trial.params, {"note": 1})

    def test_optunas_old_suggestions_are_narrowed_too_and_warn(self) -> None:
        trial = new_study().ask()
        shown = narrowed(trial, {"a": (0.1, 0.2), "b": (0.1, 0.2), "c": (0.3, 0.5)})
        with pytest.warns(FutureWarning, match="suggest_uniform has been deprecated"):
            shown.suggest_uniform("a", 0.0, 1.0)
        with pytest.warns(FutureWarning, match="suggest_loguniform has been deprecated"):
            shown.suggest_loguniform("b", 0.01, 1.0)
        with pytest.warns(FutureWarning, match="suggest_discrete_uniform has been deprecated"):
            shown.suggest_discrete_uniform("c", 0.1, 0.9, 0.1)
        assert trial.distributions == {
            "a": FloatDistribution(0.1, 0.2),
            "b": FloatDistribution(0.1, 0.2, log=True),
            "c": FloatDistribution(0.3, 0.5, step=0.1),
        }

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_a_copy_is_narrowed_as_well(self, copied: Any) -> None:
        trial = optuna.trial.FixedTrial({"width": 7, "dropout": 0.25})
        again = copied(narrowed(trial, {"width": (6, 9)}))
        assert isinstance(again, optuna.trial.FixedTrial)
        assert again.suggest_int("width", 1, 32) == 7
        assert again.distributions == {"width": IntDistribution(6, 9)}

    def test_without_wishes_it_is_the_trial_itself(self) -> None:
        trial = new_study().ask()
        assert narrowed(trial, {}) is trial

    def test_choices_of_a_number_are_a_choice(self) -> None:
        assert narrow({"n": [4, 8]}, "n", IntDistribution(1, 9)) == CategoricalDistribution((4, 8))
        assert narrow({"n": (3, 8)}, "n", IntDistribution(1, 9, step=2)) == IntDistribution(3, 7, step=2)
        assert narrow({"deep": "true"}, "deep", CategoricalDistribution((True, False))).choices == (True,)  # type: ignore[attr-defined]
        assert narrow({"size": (2, 8)}, "size", CategoricalDistribution((1, 4, 8))).choices == (4, 8)  # type: ignore[attr-defined]

    def test_a_combination_of_which_nothing_is_left_is_refused(self) -> None:
        shown = narrowed(new_study().ask(), {"second": (20, 32), "width": 8, "deep": True})
        with pytest.raises(optuna.TrialPruned, match="second=20:32 leaves nothing of 1"):
            model(shown)

    def test_what_is_described_is_the_narrowed_space(self) -> None:
        knobs = {knob.name: knob for knob in describe(objective({"width": 8, "lr": (1e-3, 1e-1), "beta1": 0.9}))}
        assert knobs["width"].range == "8 .. 8 (log) (fixed)"
        assert (knobs["lr"].range, knobs["lr"].default) == ("0.001 .. 0.1 (log)", 0.1)
        assert knobs["one_minus_beta1"].fixed
        assert not {"lr_multiple", "momentum"} & {*knobs}


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"lr": (1.0, 0.1)}, "the range lr=1:0.1 is out of order: write 0.1:1"),
        ({"lr": 0}, "lr must be above 0, but got 0"),
        ({"lr": "fast"}, "lr is a number, but got 'fast'"),
        ({"lr": (1e-3, float("inf"))}, "both ends must be finite"),
        ({"momentum": (0.5, 1.0)}, "momentum must be above 0 and below 1, but got 1"),
        ({"warmup": 2}, "warmup must be at least 0 and at most 1, but got 2"),
        ({"lr": 0.1, "lr_multiple": 1.0}, "lr and lr_multiple are one knob"),
        ({"momentum": 0.9, "one_minus_momentum": 0.1}, "momentum and one_minus_momentum are one knob"),
        ({"optimizer": "adm"}, "optimizer cannot be adm: it is one of sgd, momentum"),
        ({"optimizer": []}, "optimizer has nothing to choose from"),
        ({"optimizer": ["adam", "adam"]}, "names one choice twice"),
        ({"optimizer": (1, 2)}, "optimizer=1:2 is a range, but optimizer is one of sgd"),
        ({"batch_size": (33, 63)}, "batch_size=33:63 leaves nothing of 16,32,64,128"),
        ({"batch_size": 0}, "must be an integer of at least 1, but got 0"),
        ({"batch_size": 1.5}, "batch_size is a whole number, but got 1.5"),
        ({"width": {"low": 1}}, "knobs: width must be a number or a name, a range"),
    ],
)
def test_a_wish_that_cannot_be_is_one_line_with_a_way_out(wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(ObjectiveError) as raised:
        objective(wishes)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"widht": 8}, "nothing is called 'widht' here: did you mean width?"),
        ({"momentun": 0.9}, "did you mean momentum"),
        ({"width": (33, 64)}, "width=33:64 leaves nothing of 4 .. 32 (log)"),
        ({"width": (2, 16)}, "width=2:16 goes beyond what it can be: 4 .. 32 (log)"),
        ({"onecycle_div": (1.0, 40.0)}, "onecycle_div=1:40 goes beyond what it can be: 5 .. 100 (log)"),
        ({"width": 8.5}, "width is a whole number, but got 8.5"),
        ({"width": 64}, "width cannot be 64: it is 4 .. 32 (log)"),
        ({"activation": "silu"}, "activation cannot be silu: it is one of relu, gelu, tanh"),
        ({"activation": (1, 2)}, "activation=1:2 is a range, but activation is one of relu,gelu,tanh"),
        ({"onecycle_div": 25.0, "schedule": "cosine"}, "onecycle_div is only for schedule onecycle"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum is only for optimizer momentum, nesterov"),
    ],
)
def test_wishes_that_nothing_takes_are_found_by_trying_the_model(wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(ObjectiveError) as raised:
        check_knobs(objective(wishes))
    assert said in str(raised.value)


def test_a_knob_that_only_some_models_have_is_known() -> None:
    check_knobs(objective({"second": 2, "deep": True, "lr": 0.1, "beta2": 0.99, "one_minus_beta1": 0.1}))


class TestParametersOfOneTrial:
    def test_they_are_optunas_in_the_units_that_are_sampled(self) -> None:
        settings = {"lr": 0.05, "optimizer": "momentum", "momentum": 0.9, "weight_decay": 1e-3, "width": 8}
        params = params_of(objective(), settings)
        assert params == {
            "lr_multiple": pytest.approx(5.0),
            "optimizer": "momentum",
            "one_minus_momentum": 0.1,
            "l2": 1e-3,
            "width": 8,
        }
        assert params_of(objective(), {"weight_decay": 0.01, "optimizer": "adamw"})["l2"] == pytest.approx(1e-4)
        assert params_of(objective({"lr": (1e-3, 1.0)}), {"lr": 0.5}) == {"lr": 0.5}
        assert params_of(objective({"optimizer": "adam"}), {"lr": 0.002, "optimizer": "adam"}) == {"lr_multiple": 2.0}

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"lr": 0.05}, "lr=0.05 depends on the optimizer: name it too, as in optimizer=momentum"),
            ({"lr": 50, "optimizer": "sgd"}, "lr=50 is outside what this study searches: 0.003 .. 3 for sgd"),
            (
                {"momentum": 0.9},
                "momentum is only for optimizer momentum, nesterov: choose one too, as in",
            ),
            ({"momentum": 0.9, "optimizer": "adam"}, "momentum is only for optimizer momentum, nesterov"),
            ({"momentum": 0.1, "optimizer": "momentum"}, "is outside what this study searches: 0.5 .. 0.99"),
            ({"optimizer": "adm"}, "optimizer adm is not searched here: choose among sgd, momentum"),
            ({"width": 64}, "width=64 is outside what this study searches: 4 .. 32 (log)"),
            ({"widht": 8}, "did you mean width?"),
            ({"batch_size": 8}, "batch_size=8 is outside what this study searches: 16, 32, 64, 128"),
        ],
    )
    def test_what_the_study_does_not_search_is_refused(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ObjectiveError) as raised:
            params_of(objective(), settings)
        assert said in str(raised.value)


class TestOneRecipe:
    def test_what_is_not_given_takes_its_default(self) -> None:
        recipe, fixed = recipe_of(objective(), {"lr": 0.3, "optimizer": "sgd", "width": 7, "batch_size": 5})
        assert (recipe.lr, recipe.optimizer.name, recipe.batch_size) == (0.3, "sgd", 5)
        assert (recipe.schedule.name, recipe.warmup, recipe.weight_decay) == ("onecycle", 0.0, 1e-4)
        trial = middle_trial()
        fixed.task(trial)
        assert trial.params == {"width": 7, "dropout": 0.25, "activation": "relu", "deep": True, "second": 4}

    def test_a_setting_for_another_optimizer_is_refused(self) -> None:
        with pytest.raises(ObjectiveError, match="beta1 is only for optimizer adam, adamw, nadam, radam"):
            recipe_of(objective(), {"beta1": 0.9})

    def test_the_middle_of_a_range(self) -> None:
        assert middle(FloatDistribution(1e-4, 1e-2, log=True)) == pytest.approx(1e-3)
        assert middle(IntDistribution(1, 9)) == 5
        assert middle(IntDistribution(2, 10, step=4)) == 6
        assert middle(CategoricalDistribution(("a", "b"))) == "a"


class TestOtherDoors:
    def test_a_bare_functions_names_are_its_own(self) -> None:
        def function(trial: optuna.Trial) -> float:
            return trial.suggest_float("lr", 1e-5, 1e-1, log=True) + trial.suggest_int("momentum", 1, 9)

        searched = Objective(function=function, knobs={"lr": (1e-3, 1e-2), "momentum": 5})
        check_knobs(searched)
        trial = new_study().ask()
        function(narrowed(trial, searched.knobs))
        assert trial.distributions["lr"] == FloatDistribution(1e-3, 1e-2, log=True)
        assert trial.params["momentum"] == 5


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.5), (0.25, 0.55), (0.1 * 3, 0.5)])
def test_a_range_keeps_both_ends_that_lie_on_a_knobs_steps(low: float, high: float) -> None:
    left = narrow({"dropout": (low, high)}, "dropout", FloatDistribution(0.0, 1.0, step=0.1))
    assert left == FloatDistribution(0.3, 0.5, step=0.1)


@pytest.mark.parametrize(
    ("distribution", "said"),
    [(IntDistribution(1, 9), "is a whole number, but got inf"), (FloatDistribution(0, 1, step=0.1), "cannot be inf")],
)
def test_an_infinite_value_is_refused(distribution: Any, said: str) -> None:
    with pytest.raises(ObjectiveError, match=said):
        narrow({"width": float("inf")}, "width", distribution)
    with pytest.raises(ObjectiveError, match="batch_size is a whole number, but got inf"):
        objective({"batch_size": float("inf")})
