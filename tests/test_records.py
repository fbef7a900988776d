"""Every trial with its curve, and who had it when; both databases."""

from __future__ import annotations

import pytest
from optuna.trial import Trial
from storage_places import adopted_by, an_epoch, make_study, optuna_study, worker_on

from storage import records, studies, workers
from storage.claims import Checkpoint, Settlement
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

SETTINGS = {"optimizer": "adam", "lr": 0.001}


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def registered(worker: SharedStorage, study: StudyRecord, slot: str) -> None:
    assert worker.backend.claimant is not None
    workers.register(worker, worker.backend.claimant.worker_id, study.study_id, [workers.Place(slot, None)])


def test_a_trial_comes_with_recipe_curve_and_cost(worker: SharedStorage) -> None:
    study = make_study(worker)
    asked = optuna_study(worker, study)
    trial: Trial = asked.ask()
    with worker.sampling(trial):
        x = trial.suggest_float("x", 0, 1)
        for key, value in (("settings", SETTINGS), ("model", {"x": x}), ("origin", "asked for")):
            trial.set_user_attr(key, value)
    lease = worker.lease_of(trial)
    worker.record_epoch(lease, an_epoch(1, 0.5, devices=2, told={"peak_memory": 1000}))
    worker.record_epoch(lease, an_epoch(2, 0.75))
    trial.set_constraint("memory", 0.5)
    worker.settle(asked, trial, Settlement(Outcome.COMPLETE, "", 2), 0.75)
    [one] = records.trials(worker, study)
    assert (one.number, one.state, one.outcome, one.value, one.best_epoch) == (0, "complete", Outcome.COMPLETE, 0.75, 2)
    assert (one.params, one.recipe, one.model, one.origin) == ({"x": x}, SETTINGS, {"x": x}, "asked for")
    assert [*one.distributions] == ["x"]
    assert [(epoch.value, epoch.metrics["loss"]) for epoch in one.epochs] == [(0.5, 1.0), (0.75, 1.0)]
    assert (one.seconds, one.device_seconds, one.peak_memory) == (0.5, 0.75, 1000)
    assert (one.constraints, one.feasible) == ({"memory": 0.5}, False)
    assert one.started_at is not None
    assert one.settled_at is not None


def test_trials_in_every_state_are_there_and_other_studies_are_not(worker: SharedStorage) -> None:
    study, other = make_study(worker), make_study(worker)
    optuna_study(worker, other).ask()
    running: Trial = optuna_study(worker, study).ask()
    left: Trial = optuna_study(worker, study).ask()
    worker.hand_back(worker.lease_of(left))
    studies.enqueue(worker, study, {"x": 0.5})
    found = records.trials(worker, study)
    assert [(one.number, one.state, one.outcome) for one in found] == [
        (running.number, "running", None),
        (left.number, "adoptable", None),
        (2, "waiting", None),
    ]
    assert found[2].epochs == ()


def test_a_trial_without_a_recipe_has_its_params_for_one(worker: SharedStorage) -> None:
    study = make_study(worker)
    trial: Trial = optuna_study(worker, study).ask()
    x = trial.suggest_float("x", 0, 1)
    [one] = records.trials(worker, study)
    assert (one.recipe, one.model) == ({"x": x}, {})


def test_who_had_a_trial_and_when_is_told_in_order(common_url: str) -> None:
    one, two = worker_on(common_url), worker_on(common_url)
    study = make_study(one)
    registered(one, study, "cuda:0")
    trial: Trial = optuna_study(one, study).ask()
    one.record_epoch(one.lease_of(trial), an_epoch(1), Checkpoint(1, "state-1.pt", "1" * 64))
    one.hand_back(one.lease_of(trial))
    adopted_by(two, study)  # nobody has registered it
    first, second = records.spans(two, study)
    assert (first.number, first.ending) == (0, "handed_back")
    assert " cuda:0 (pid " in first.worker
    assert first.ended_at is not None
    assert first.began_at <= first.ended_at <= second.began_at
    assert (second.ended_at, second.ending) == (None, "")
    assert len(second.worker) == 8
