"""What a trial must keep to: who is ranked, what is said, and that samplers and models made again can live with it."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from storage_places import optuna_study, worker_on
from studies import TINY_TEXT, Inside, trials
from test_drawing import Shown

from search.errors import ObjectiveError
from search.objective import Objective
from search.samplers import make_sampler
from storage import constraints, queries, steering, studies
from storage.claims import Settlement
from storage.limits import Limits
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.space_view import SpaceView
from storage.steering import Wish
from storage.studies import StudySpec
from storage.suggesting import SuggestingTrial

pytest_plugins = ["storage_fixtures"]

SPEC = StudySpec("digits", "0" * 64, "accuracy", "maximize", epochs=5, trials=40, seed=1, sampler="tpe", pruner="none")


@pytest.fixture
def storage(common_url: str, storage_test: None) -> SharedStorage:
    return worker_on(common_url)


def study_with(storage: SharedStorage, *found: tuple[float, dict[str, float]], **spec: object) -> studies.StudyRecord:
    """A study whose complete trials have these values and constraints."""
    record = studies.create(storage, SPEC, stem="held")
    study = optuna_study(storage, record)
    for value, constraints_of in found:
        trial = study.ask()
        for name, one in constraints_of.items():
            trial.set_constraint(name, one)
        storage.settle(study, trial, Settlement(Outcome.COMPLETE), value)
    return record


class TestWhoIsRanked:
    def test_only_those_that_keep_to_all(self, storage: SharedStorage) -> None:
        record = study_with(
            storage,
            (0.9, {"size": 1e-5, "time": -1.0}),
            (0.8, {"size": 0.0, "time": float("inf")}),
            (0.7, {"size": 0.0, "time": -0.5}),
            (0.6, {"size": -2e-7, "time": -0.0}),
        )
        assert [trial.value for trial in queries.best(storage, record, 9)] == [0.7, 0.6]
        assert queries.status(storage, record).kept == constraints.Kept(4, 2, {"size": 1, "time": 1})
        line = next(line for line in queries.listing(storage) if line.name == record.name)
        assert line.best == 0.7
        assert queries.trial(storage, record, 0).constraints == {"size": 1e-5, "time": -1.0}

    def test_where_none_does_the_nearest_is_named(self, storage: SharedStorage) -> None:
        record = study_with(storage, (0.9, {"size": 0.5}), (0.8, {"size": 0.1, "time": 0.2}))
        assert queries.best(storage, record) == []
        kept = queries.status(storage, record).kept
        assert kept is not None
        assert kept.nearest is not None
        assert kept.nearest[0] == 1
        assert kept.nearest[1] == pytest.approx({"size": 0.1, "time": 0.2})

    def test_without_constraints_nothing_is_said(self, storage: SharedStorage) -> None:
        record = study_with(storage, (0.9, {}))
        assert queries.status(storage, record).kept is None
        assert len(queries.best(storage, record)) == 1

    def test_a_value_that_is_good_enough_must_keep_to_them_too(self, storage: SharedStorage) -> None:
        record = study_with(storage, (0.99, {"size": 0.5}))
        steering.resume(storage, record.study_id, Wish(limits=Limits(until=0.95)), "bo")
        study = optuna_study(storage, record)
        for size, state in ((1.0, "running"), (-1.0, "stopped")):
            trial = study.ask()
            trial.set_constraint("size", size)
            storage.settle(study, trial, Settlement(Outcome.COMPLETE), 0.96)
            assert studies.find(storage, record.name).state == state


class TestSamplers:
    @pytest.mark.parametrize("name", ["tpe", "gp"])
    def test_they_go_where_trials_keep_to_them(self, name: str) -> None:
        study = optuna.create_study(storage=Shown(SpaceView()), sampler=make_sampler(name, 1, 0))
        late = []
        for number in range(30):
            trial = SuggestingTrial(study.ask())
            x = trial.suggest_float("x", 0, 1)
            if number >= 5:  # the first were trained before there was a constraint
                trial.set_constraint("far", 0.7 - x)
            late.append(x)
            study.tell(trial, x)
        # The best that is allowed is just at the limit: without constraints all would be near 0.
        assert sum(x > 0.6 for x in late[15:]) >= 10

    def test_what_one_trial_does_not_say_is_just_kept_and_one_that_says_nothing_left_out(self) -> None:
        def held(**values: float) -> FrozenTrial:
            trial = create_trial(value=1.0, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)})
            trial.system_attrs = {f"constraints:{name}": value for name, value in values.items()}
            return trial

        shown = constraints.alike([held(), held(a=2.0), held(b=1.0, a=-1.0)])
        assert [[*trial.constraints.items()] for trial in shown] == [
            [("a", 2.0), ("b", 0.0)],
            [("a", -1.0), ("b", 1.0)],
        ]

    def test_a_model_that_is_made_again_sets_them_again(self) -> None:
        study = optuna.create_study(storage=Shown(SpaceView()))
        trial = SuggestingTrial(study.ask())
        for value in (1.0, 1.0, -2.0):
            trial.set_constraint("size", value)
        assert trial.constraints == {"size": -2.0}
        with pytest.raises(ValueError, match="no number"):
            trial.set_constraint("size", float("nan"))


class TestThroughTheCommands:
    def test_what_dialin_measures_itself(self, inside: Inside, either_url: str) -> None:
        limits = 'epochs=2, at_most={"parameters": 50, "epoch_seconds": 1e-9},'
        Path("small.py").write_text(TINY_TEXT.replace("epochs=4,", limits))
        run = ("run", Path("small.py"), "--workers", 1, "--trials", 3, "--pruner", "none", "--seed", 1)
        assert inside(*run, "--storage", either_url).status == 0
        for trial in trials(either_url, "small-1"):
            width = trial.params["width"]
            assert trial.state == TrialState.COMPLETE
            assert trial.constraints["parameters"] == pytest.approx((4 * width + width + 2 * width + 2) / 50 - 1)
            assert trial.constraints["epoch_seconds"] > 0
        said = inside("best", "--storage", either_url)
        assert said.status == 1
        assert "no complete trial keeps to its constraints: the nearest is trial" in said.err
        assert "no complete trial keeps to its constraints" in inside("status", "--storage", either_url).out
        assert "epoch_seconds violated by" in inside("show", "small-1", 0, "--storage", either_url).out
        status = json.loads(inside("status", "--json", "--storage", either_url).out)
        assert status["constraints"]["feasible"] == 0
        assert status["constraints"]["violated"]["epoch_seconds"] == 3

    def test_what_cannot_be_measured_is_refused(self) -> None:
        common = {"model": lambda trial: None, "data": lambda root: None}
        with pytest.raises(ObjectiveError, match="each name of at_most must be one of 'parameters', 'epoch_seconds'"):
            Objective(**common, at_most={"layers": 2})  # type: ignore[arg-type]
        with pytest.raises(ObjectiveError, match="at_most\\['memory'\\] must be a number above 0, but got -1"):
            Objective(**common, at_most={"memory": -1})  # type: ignore[arg-type]
        with pytest.raises(ObjectiveError, match="at_most is for Dialin's training loop"):
            Objective(train=lambda run: None, metric="x", direction="minimize", at_most={"memory": 1})
