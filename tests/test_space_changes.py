"""A study goes on after its objective was edited: what changed is said, what fits informs on, the rest is kept."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from storage_places import an_epoch, connections_closed, optuna_study, worker_on
from studies import TINY_TEXT, Inside, assert_settled, trials
from test_dashboards_hand import Browser

from search import space
from search.loading import resolve
from storage import steering, studies
from storage.limits import Limits
from storage.optuna_internals import suggest_unless_asked
from storage.shared import open_storage
from storage.space_view import Added, SpaceView
from storage.steering import Wish

WIDTH = '    width = trial.suggest_int("width", 4, 8)\n'
LAYERS = WIDTH + '    trial.suggest_int("layers", 1, 3)\n'
KIND = WIDTH + '    trial.suggest_categorical("kind", ["relu", "tanh"])\n'
OWN_LOOP = """
from search import Objective

def train(run):
    kind = run.trial.suggest_categorical("kind", ["a", "b", "c"])
    x = run.trial.suggest_float("x", 0.0, 1.0)
    for epoch in run.epochs:
        run.report(score=len(kind) + x)

objective = Objective(train=train, metric="score", direction="maximize", epochs=2, trials=4)
"""
BARE = """
def objective(trial):
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    return trial.suggest_float("x", 0.0, 1.0) + len(kind)
"""

# A sampler sees trials through a view that does not know the database: each of both is there once.
EACH_SAMPLER = pytest.mark.parametrize(
    ("storage_url", "sampler"), [("sqlite", "tpe"), ("postgresql", "gp")], indirect=["storage_url"]
)


def written(text: str, *edits: tuple[str, str]) -> Path:
    """A module with these edits, in the test's own folder."""
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    Path("mine.py").write_text(text)
    return Path("mine.py")


def left_half_trained(url: str, file: Path, **params: Any) -> int:
    """A trial of the study with these parameters and an epoch on record, which its worker gave back; its number."""
    with connections_closed():
        storage = worker_on(url)
        trial: optuna.Trial = optuna_study(storage, studies.find(storage, "mine-1")).ask()
        objective = resolve(str(file)).objective
        suggest_unless_asked(trial, {**space.default_params(objective), **params})
        with storage.sampling(trial):
            trial.set_user_attr("settings", space.sample(trial, objective).as_dict())
            trial.set_user_attr("model", {"width": trial.suggest_int("width", 4, 8)})
        lease = storage.lease_of(trial)
        storage.record_epoch(lease, an_epoch(1))
        storage.hand_back(lease)
        return trial.number


class TestAStudyGoesOn:
    """Through the commands, with real workers."""

    @EACH_SAMPLER
    def test_with_a_choice_dropped_and_one_added(self, inside: Inside, storage_url: str, sampler: str) -> None:
        fewer = ("epochs=4,", 'epochs=2, optimizers=("sgd", "adam"), schedules=("cosine",),')
        common = ("--workers", 1, "--pruner", "none", "--seed", 1, "--storage", storage_url)
        assert inside("run", written(TINY_TEXT, fewer), "--trials", 12, "--sampler", sampler, *common).status == 0
        other = (fewer[0], fewer[1].replace('"sgd", "adam"', '"adam", "nadam"'))
        file = written(TINY_TEXT, other, (WIDTH, WIDTH.replace("8", "16")))
        said = inside("resume", "--trials", "+4", "--objective", file, "--workers", 1, "--storage", storage_url)
        assert said.status == 0, said.err
        assert "optimizer is now without sgd and with nadam" in said.out
        assert "width was 4 .. 8, and is now 4 .. 16" in said.out
        found = assert_settled(storage_url, "mine-1", 16)
        fit = sum(trial.params["optimizer"] == "adam" for trial in found[:12])
        assert f"{fit} of 12 trials fit and inform what is sampled; the others stay on record" in said.out
        for trial in found[12:]:
            assert trial.state == TrialState.COMPLETE
            assert trial.params["optimizer"] in ("adam", "nadam")
            assert trial.distributions["width"] == IntDistribution(4, 16)

    def test_with_a_knob_added_and_its_value_for_older_trials(self, inside: Inside, either_url: str) -> None:
        common = ("--workers", 1, "--pruner", "none", "--seed", 1, "--storage", either_url)
        assert inside("run", written(TINY_TEXT), "--trials", 3, *common).status == 0
        file = written(TINY_TEXT, (WIDTH, LAYERS))
        resume = ("resume", "--objective", file, "--workers", 1, "--storage", either_url)
        said = inside(*resume, "--trials", "+1")
        assert "layers is new: --was layers=VALUE says what it was in older trials" in said.out
        said = inside(*resume, "--trials", "+1", "--was", "layers=2")
        assert said.status == 0, said.err
        assert "layers is new: older trials count as layers=2" in said.out
        assert "4 of 4 trials fit and inform what is sampled" in said.out
        assert inside(*resume, "--was", "depth=2", "--trials", "+1").err.endswith("--was depth: no such knob\n")
        assert_settled(either_url, "mine-1", 5)

    def test_with_a_knob_removed(self, inside: Inside, either_url: str) -> None:
        common = ("--workers", 1, "--pruner", "none", "--seed", 1, "--storage", either_url)
        assert inside("run", written(TINY_TEXT, (WIDTH, LAYERS)), "--trials", 3, *common).status == 0
        file = written(TINY_TEXT)
        said = inside("resume", "--trials", "+2", "--objective", file, "--workers", 1, "--storage", either_url)
        assert said.status == 0, said.err
        assert "layers is gone\n3 of 3 trials fit and inform what is sampled" in said.out
        assert "layers" not in assert_settled(either_url, "mine-1", 5)[4].params

    def test_with_the_real_rate_in_place_of_its_multiple(self, inside: Inside, either_url: str) -> None:
        common = ("--workers", 1, "--pruner", "none", "--seed", 1, "--storage", either_url)
        assert inside("run", written(TINY_TEXT), "--trials", 3, *common).status == 0
        file = written(TINY_TEXT, ("epochs=4,", 'epochs=4, knobs={"lr": (1e-6, 10.0)},'))
        said = inside("resume", "--trials", "+2", "--objective", file, "--workers", 1, "--storage", either_url)
        assert said.status == 0, said.err
        assert "lr is new: of older trials it is on record" in said.out
        assert "3 of 3 trials fit" in said.out
        assert "lr" in assert_settled(either_url, "mine-1", 5)[4].params

    def test_with_trials_that_were_left_half_trained(self, inside: Inside, either_url: str) -> None:
        common = ("--workers", 1, "--pruner", "none", "--seed", 1, "--storage", either_url)
        file = written(TINY_TEXT)
        assert inside("run", file, "--trials", 1, *common).status == 0
        inside("resume", "--trials", "+4", "--objective", file, "--deadline", "1s", "--storage", either_url)
        with connections_closed():
            storage = worker_on(either_url)
            steering.resume(
                storage, studies.find(storage, "mine-1").study_id, Wish(more=4, limits=Limits(deadline=math.inf)), "bo"
            )
        kept = left_half_trained(either_url, file, optimizer="adam", width=5)
        dropped = left_half_trained(either_url, file, optimizer="sgd", width=5)
        edits = ("epochs=4,", 'epochs=4, optimizers=("adam", "nadam"),'), (WIDTH, LAYERS)
        resume = ("resume", "--objective", written(TINY_TEXT, *edits), "--workers", 1, "--storage", either_url)
        assert inside(*resume, "--was", "layers=2").status == 0
        found = {trial.number: trial for trial in trials(either_url, "mine-1")}
        assert found[kept].state == TrialState.COMPLETE
        assert found[kept].params["optimizer"] == "adam"
        assert found[kept].params["layers"] == 2, "what it was trained with before there was such a knob"
        assert found[dropped].state == TrialState.PRUNED
        assert found[dropped].user_attrs["reason"] == "optimizer is sgd here, which is not searched any more"

    def test_and_the_dashboard_opens_it(self, inside: Inside, either_url: str) -> None:
        common = ("--workers", 1, "--pruner", "none", "--seed", 1, "--storage", either_url)
        assert inside("run", written(TINY_TEXT, (WIDTH, KIND)), "--trials", 3, *common).status == 0
        file = written(TINY_TEXT, (WIDTH, KIND.replace('"relu"', '"gelu"')))
        said = inside("resume", "--trials", "+3", "--objective", file, "--workers", 1, "--storage", either_url)
        assert "kind is now without relu and with gelu" in said.out
        with connections_closed():
            storage = open_storage(either_url)
            study_id = studies.find(storage, "mine-1").study_id
            browse = Browser(storage)
            for path in ("/api/studies", f"/api/studies/{study_id}"):
                assert browse("GET", path) == 200
            with warnings.catch_warnings():  # of three trials nobody can tell what is important
                warnings.simplefilter("ignore")
                assert browse("GET", f"/api/studies/{study_id}/param_importances") == 200
            assert len(optuna.load_study(study_name="mine-1", storage=storage).trials_dataframe()) == 6
        assert inside("best", "--top", 6, "--storage", either_url).status == 0

    @EACH_SAMPLER
    def test_that_trains_itself(self, inside: Inside, storage_url: str, sampler: str) -> None:
        text = OWN_LOOP if sampler == "gp" else BARE
        file = written(text)
        named = file if text is OWN_LOOP else f"{file}:objective"
        common = ("--workers", 1, "--pruner", "none", "--seed", 1, "--storage", storage_url)
        assert inside("run", named, "--trials", 12, "--sampler", sampler, *common).status == 0
        written(text, ('["a", "b", "c"]', '["b", "c", "dd"]'), ("0.0, 1.0", "0.5, 2.0"))
        said = inside("resume", "--trials", "+14", "--objective", named, "--workers", 1, "--storage", storage_url)
        assert said.status == 0, said.err + said.out
        found = assert_settled(storage_url, "mine-1", 26)
        assert {trial.state for trial in found} == {TrialState.COMPLETE}
        assert {trial.params["kind"] for trial in found[12:]} <= {"b", "c", "dd"}
        assert all(0.5 <= trial.params["x"] <= 2.0 for trial in found[12:])


def drawn(params: dict[str, Any], distributions: dict[str, Any], **attrs: Any) -> optuna.trial.FrozenTrial:
    trial = create_trial(value=0.5, params=params, distributions=distributions, user_attrs=attrs)
    trial._trial_id = trial.number = len(params)
    return trial


class TestWhatSamplersSee:
    RATES = FloatDistribution(1e-4, 1e-1, log=True)

    def test_a_study_whose_space_is_as_it_was_shows_its_trials_themselves(self) -> None:
        found = [drawn({"x": 0.5}, {"x": FloatDistribution(0, 1)})]
        assert SpaceView()(found) is found
        assert SpaceView({"x": FloatDistribution(0, 1)})(found)[0] is found[0]

    def test_what_fits_is_of_todays_distributions_and_what_does_not_is_left_out(self) -> None:
        old = CategoricalDistribution(["a", "b", "c"])
        view = SpaceView({"kind": (new := CategoricalDistribution(["d", "c", "b"])), "lr": self.RATES})
        wider = FloatDistribution(1e-6, 1e-1, log=True)
        [shown] = view(
            [
                drawn({"kind": "a", "lr": 1e-2}, {"kind": old, "lr": wider}),
                drawn({"kind": "b", "lr": 1e-5}, {"kind": old, "lr": wider}),
                drawn({"kind": "c", "lr": 1e-3}, {"kind": old, "lr": wider}),
            ]
        )
        assert (shown.params, shown.distributions) == ({"kind": "c", "lr": 1e-3}, {"kind": new, "lr": self.RATES})

    def test_a_knob_that_was_added_has_the_value_of_the_trials_record_else_the_one_that_is_said(self) -> None:
        ranges = {"lr": self.RATES, "one_minus_momentum": FloatDistribution(0.01, 0.5), "layers": IntDistribution(1, 4)}
        added = {
            "lr": Added(1e-3),
            "one_minus_momentum": Added(0.2, only=("optimizer", ("momentum",))),
            "layers": Added(2, told=True),
        }
        view = SpaceView(ranges, added)
        kind = {"optimizer": CategoricalDistribution(["momentum", "adam"])}
        settings = {"optimizer": "momentum", "lr": 0.02, "momentum": 0.9}
        [shown] = view([drawn({"optimizer": "momentum"}, kind, settings=settings)])
        assert shown.params == {"optimizer": "momentum", "lr": 0.02, "one_minus_momentum": 0.1, "layers": 2}
        [shown] = view([drawn({"optimizer": "adam"}, kind, settings={"optimizer": "adam"})])
        assert shown.params == {"optimizer": "adam", "lr": 1e-3, "layers": 2}
        assert shown.distributions["layers"] == IntDistribution(1, 4)

    def test_what_is_gone_goes_and_with_it_what_samplers_noted(self) -> None:
        view = SpaceView({"x": FloatDistribution(0, 1)}, gone=frozenset(["y"]))
        trial = drawn({"x": 0.5, "y": 1.0}, {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
        trial.system_attrs = {"cma:generation": 3, "constraints:size": 1.0}
        [shown] = view([trial])
        assert shown.params == {"x": 0.5}
        assert shown.system_attrs == {"constraints:size": 1.0}
        assert trial.params == {"x": 0.5, "y": 1.0}

    def test_ranges_that_depend_on_other_knobs_are_no_change(self) -> None:
        view = SpaceView(learns=True)
        old = [drawn({"x": 0.5}, {"x": FloatDistribution(0, 1)})]
        assert view.learn("x", FloatDistribution(0, 2), lambda: old), "it seems to have moved"
        assert view.learn("x", FloatDistribution(0, 3), lambda: old), "but it only depends on something"
        assert view(old) == old
        assert not view.learn("x", FloatDistribution(0, 4), lambda: old)
