"""The recipes that a study starts with: won elsewhere, shipped, or the defaults, fitted into what is searched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import delete, insert
from storage_places import make_study, worker_on
from torch import nn

from search.first_trials import MOST, WITH_SHIPPED, WON, first_trials, fitted
from search.objective import Objective
from search.optimizers import OPTIMIZERS
from search.portfolio import Shipped, shipped
from search.space import recipe_from_params, sample, starting_points
from search.transfer import is_recipe
from storage import studies
from storage.errors import UsageError
from storage.first_trials import ATTRIBUTE, FirstTrial, noted
from storage.history import PastStudy, PastTrial
from storage.optuna_internals import models
from storage.shared import SharedStorage, open_storage

pytest_plugins = ["storage_fixtures"]

RECIPE: Mapping[str, Any] = {
    "optimizer": "adamw",
    "lr": 0.002,
    "betas": [0.8, 0.99],
    "weight_decay": 0.03,
    "batch_size": 64,
    "schedule": "cosine",
    "cosine_final": 0.05,
    "warmup": 0.04,
}


def model(trial: optuna.Trial) -> nn.Module:
    return nn.Linear(trial.suggest_int("width", 4, 64, log=True), 2)


def objective(**changes: Any) -> Objective:
    return Objective(model=changes.pop("model", model), data=lambda root: None, loss=nn.CrossEntropyLoss(), **changes)  # type: ignore[arg-type, return-value]  # no data is loaded


def past(*recipes: Mapping[str, Any], name: str = "old-1", reference: str = "old.py", **own: Any) -> PastStudy:
    """A study of these recipes, best first."""
    trials = [PastTrial(rank, 0.9 - 0.1 * rank, rank, settings, own) for rank, settings in enumerate(recipes)]
    return PastStudy(name, reference, "accuracy", "maximize", tuple(trials))


def numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With a number each for both betas, as approx wants it."""
    flat = {name: value for name, value in settings.items() if name != "betas"}
    return flat | {f"beta{place}": value for place, value in enumerate(settings.get("betas", ()))}


class TestFitted:
    def test_a_recipe_becomes_the_parameters_of_which_it_is_made(self) -> None:
        params = fitted(RECIPE, objective())
        assert params is not None
        assert numbers(recipe_from_params(params, objective()).as_dict()) == pytest.approx(numbers(RECIPE))

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_every_optimizers_recipe_survives(self, optimizer: str) -> None:
        own = objective(optimizers=(optimizer,))
        settings = recipe_from_params(starting_points(own)[0], own).as_dict()
        params = fitted(settings, objective())
        assert params is not None
        assert numbers(recipe_from_params(params, objective()).as_dict()) == pytest.approx(numbers(settings))

    def test_a_space_in_real_rates_takes_them_as_they_are(self) -> None:
        own = objective(knobs={"lr": (1e-4, 1e-1), "weight_decay": (0.0, 0.1)})
        params = fitted(RECIPE, own)
        assert params is not None
        assert (params["lr"], params["weight_decay"]) == (0.002, 0.03)

    def test_numbers_outside_a_narrowed_range_move_to_its_end(self) -> None:
        own = objective(knobs={"lr": (1e-5, 1e-3), "batch_size": [16, 256], "warmup": 0.0})
        params = fitted(RECIPE, own)
        assert params is not None
        assert (params["lr"], params["batch_size"], "warmup" in params) == (1e-3, 16, False)

    @pytest.mark.parametrize("rows", [{"optimizers": ("sgd",)}, {"schedules": ("constant",)}])
    def test_a_recipe_of_rows_that_are_not_searched_is_left_out(self, rows: dict[str, Any]) -> None:
        assert fitted(RECIPE, objective(**rows)) is None

    @pytest.mark.parametrize("changes", [{"cosine_final": "rm"}, {"lr": "1"}, {"lr": math.inf}, {"betas": [0.9]}])
    def test_what_is_no_recipe_is_left_out(self, changes: dict[str, Any]) -> None:
        assert fitted({**RECIPE, **changes}, objective()) is None


class TestFirstTrials:
    def test_winners_come_first_then_shipped_ones_then_the_defaults(self) -> None:
        found = first_trials(objective(), "new.py", [past(RECIPE)])
        kinds = [trial.origin.split()[0].rstrip(":") for trial in found]
        assert kinds == ["won", *["shipped"] * (WITH_SHIPPED - 1), *["default"] * (MOST - WITH_SHIPPED)]
        assert found[0] == FirstTrial(fitted(RECIPE, objective()) or {}, "won study old-1")

    def test_a_new_database_starts_with_what_is_shipped(self) -> None:
        found = first_trials(objective(), "new.py", [])
        assert [trial.origin.split()[0] for trial in found[:WITH_SHIPPED]] == ["shipped:"] * WITH_SHIPPED
        assert len(found) == MOST

    def test_without_transfer_there_are_only_the_defaults(self) -> None:
        found = first_trials(objective(), "new.py", [past(RECIPE)], transfer=False)
        assert [dict(trial.params) for trial in found] == starting_points(objective())
        assert [trial.origin for trial in found] == ["default of momentum", "default of adam", "default of adamw"]

    def test_past_studies_have_a_few_of_the_first_trials_and_no_more(self) -> None:
        rates = [{**RECIPE, "lr": 10**-exponent} for exponent in range(1, 6)]
        studies = [past(*rates[n:], *rates[:n], name=f"old-{n}") for n in range(5)]
        found = first_trials(objective(), "new.py", studies)
        assert sum("study" in trial.origin for trial in found) <= WON

    @pytest.mark.parametrize(
        "narrowed",
        [
            {},
            {"optimizers": ("adamw",)},
            {"optimizers": ("sgd", "radam"), "schedules": ("step",), "batch_sizes": (256,)},
            {"knobs": {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.0, "optimizer": "momentum"}},
            {"knobs": {"lr": (0.3, 0.5), "schedule": "cyclic"}},
        ],
    )
    def test_each_is_sampled_as_it_is_and_none_twice(self, narrowed: dict[str, Any]) -> None:
        own = objective(**narrowed)
        found = first_trials(own, "new.py", [past(RECIPE)])
        study = optuna.create_study()
        for trial in found:
            study.enqueue_trial(dict(trial.params))
            asked = study.ask()
            sample(asked, own)
            assert asked.params == trial.params
        assert found
        assert len({json.dumps(dict(trial.params), sort_keys=True) for trial in found}) == len(found)

    def test_a_fixed_optimizer_is_named_all_the_same(self) -> None:
        own = objective(optimizers=("radam",))
        assert first_trials(own, "new.py", [], transfer=False)[0].origin == "default of radam"

    def test_the_model_is_as_it_was_in_a_study_of_the_same_objective(self) -> None:
        same = past(RECIPE, reference="/a/net.py", width=24, gone=3)
        assert first_trials(objective(), "/b/net.py", [same])[0].params["width"] == 24
        assert "gone" not in first_trials(objective(), "/b/net.py", [same])[0].params
        assert "width" not in first_trials(objective(), "/b/other.py", [same])[0].params

    @pytest.mark.parametrize("width", [3, 65, "8", True, 8.5, None])
    def test_a_models_knob_that_cannot_be_so_any_more_is_sampled(self, width: Any) -> None:
        same = past(RECIPE, reference="net.py", width=width)
        assert "width" not in first_trials(objective(), "net.py", [same])[0].params

    def test_a_model_that_some_knobs_break_starts_with_recipes_all_the_same(self) -> None:
        def breaks(trial: optuna.Trial) -> nn.Module:
            raise ValueError("no such network")

        same = past(RECIPE, reference="net.py", width=8)
        assert first_trials(objective(model=breaks), "net.py", [same])[0].origin == "won study old-1"

    def test_a_bare_functions_first_trials_are_the_samplers(self) -> None:
        assert (
            first_trials(Objective(function=lambda trial: 0.0, metric="value", direction="minimize"), "f.py", []) == ()
        )


class TestShipped:
    def test_every_shipped_recipe_is_one_and_fits_the_whole_space(self) -> None:
        assert len(shipped()) >= WITH_SHIPPED
        for one in shipped():
            assert is_recipe(one.settings)
            params = fitted(one.settings, objective())
            assert params is not None
            assert numbers(recipe_from_params(params, objective()).as_dict()) == pytest.approx(numbers(one.settings))

    def test_every_optimizer_has_one_for_those_who_search_only_it(self) -> None:
        assert {one.settings["optimizer"] for one in shipped()} == {*OPTIMIZERS}

    def test_others_may_take_their_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "ours.json"
        recipes: list[dict[str, Any]] = [{"best_on": "our scans", "settings": dict(shipped()[0].settings)}]
        file.write_text(json.dumps({"recipes": recipes}))
        monkeypatch.setenv("DIALIN_PORTFOLIO", str(file))
        assert shipped() == (Shipped(recipes[0]["settings"], "shipped: our scans"),)
        found = first_trials(objective(), "net.py", [])
        assert [one.origin for one in found][:2] == ["shipped: our scans", "default of momentum"]

    @pytest.mark.parametrize("text", ["", "[]", '{"recipes": [{}]}'])
    def test_what_is_no_portfolio_is_said_in_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        (tmp_path / "ours.json").write_text(text)
        monkeypatch.setenv("DIALIN_PORTFOLIO", str(tmp_path / "ours.json"))
        with pytest.raises(UsageError, match=r"DIALIN_PORTFOLIO: .*ours\.json is no portfolio"):
            shipped()


@pytest.fixture
def storage(common_url: str, storage_test: None) -> SharedStorage:
    return open_storage(common_url)


class TestOnRecord:
    FIRST = (FirstTrial({"optimizer": "adam", "lr_multiple": 1.5, "batch_size": 32}, "won study digits-3"),)

    def test_they_are_read_as_they_were_written(self, storage: SharedStorage) -> None:
        made = studies.create(storage, make_spec(), stem="noted", first=self.FIRST)
        assert noted(storage, made.study_id) == self.FIRST

    def test_each_enqueued_trial_says_where_it_is_from(self, storage: SharedStorage) -> None:
        made = studies.create(storage, make_spec(), stem="noted", first=self.FIRST)
        (trial,) = storage.get_all_trials(made.study_id)
        assert trial.user_attrs == {"origin": "won study digits-3"}
        assert trial.system_attrs["fixed_params"] == self.FIRST[0].params

    def test_what_is_not_enqueued_is_on_record_alone(self, storage: SharedStorage) -> None:
        made = studies.create(storage, make_spec(), stem="noted", first=self.FIRST, enqueue=False)
        assert storage.get_all_trials(made.study_id) == []
        assert noted(worker_on(storage.backend.url), made.study_id) == self.FIRST

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "{}",
            '["__import__"]',
            '[{"params": {"lr": [1]}, "origin": ""}]',
            '[{"params": {"lr": NaN}, "origin": ""}]',
            '[{"params": {"lr": 1}, "origin": 3}]',
            '[{"params": 1, "origin": ""}]',
        ],
    )
    def test_what_somebody_else_wrote_there_is_not_used(self, storage: SharedStorage, text: str) -> None:
        made = make_study(storage, first=1)
        attr = models.StudySystemAttributeModel
        with storage.backend.write() as session:
            session.execute(delete(attr).where(attr.study_id == made.study_id))
            session.execute(insert(attr).values(study_id=made.study_id, key=ATTRIBUTE, value_json=text))
        assert noted(storage, made.study_id) == ()

    def test_an_older_study_has_none(self, storage: SharedStorage) -> None:
        made = make_study(storage)
        with storage.backend.write() as session:
            attr = models.StudySystemAttributeModel
            session.execute(delete(attr).where(attr.study_id == made.study_id))
        assert noted(storage, made.study_id) == ()


def make_spec() -> studies.StudySpec:
    return studies.StudySpec("digits", "0" * 64, "accuracy", "maximize", 5, 4, 1, "tpe", "none")
