"""One trial with all that the database knows of it, in whatever state it is; folds and unknown lengths."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState
from storage_places import DONE, adopted_by, an_epoch, fresh, make_study, optuna_study, run_trial, worker_on

from storage import queries, studies, workers
from storage.claims import Checkpoint, Settlement
from storage.errors import UsageError
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

FIRST, SECOND = Checkpoint(1, "state-1.pt", "1" * 64), Checkpoint(2, "state-2.pt", "2" * 64)
WEIGHTS = Checkpoint(2, "weights-2.pt", "3" * 64)


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


def registered(worker: SharedStorage, study: StudyRecord, slot: str) -> str:
    claimant = worker.backend.claimant
    assert claimant is not None
    workers.register(worker, claimant.worker_id, study.study_id, [workers.Place(slot, None)])
    return claimant.worker_id


# -- A trial's states


def test_a_settled_trial_is_told_with_its_curve_its_cost_and_its_owners(common_url: str, study: StudyRecord) -> None:
    one, two = worker_on(common_url), worker_on(common_url)
    ids = [registered(one, study, "cuda:0"), registered(two, study, "cuda:1")]
    trial = optuna_study(one, study).ask()
    with one.sampling(trial):
        params = {"x": trial.suggest_float("x", 0, 1), "c": trial.suggest_categorical("c", ["a", "b"])}
        trial.set_user_attr("recipe", "adam lr 0.001")
    one.record_epoch(one.lease_of(trial), an_epoch(1, 0.5, device="cuda:0", devices=2), FIRST)
    one.hand_back(one.lease_of(trial))
    mine = optuna_study(two, study)
    lease = adopted_by(two, study)
    two.record_epoch(lease, an_epoch(2, 0.75, device="cuda:1", seconds=1.0, samples=32), SECOND)
    two.settle(mine, Trial(mine, lease.trial_id), Settlement(Outcome.COMPLETE, "", 2, WEIGHTS, {"seconds": 1.25}), 0.75)

    told = queries.trial(two, study, 0)
    assert (told.number, told.trial_id, told.state, told.outcome) == (0, lease.trial_id, "complete", Outcome.COMPLETE)
    assert (told.value, told.best_epoch, told.reason, told.seconds) == (0.75, 2, "", 1.25)
    assert (told.params, told.attrs, told.enqueued) == (params, {"recipe": "adam lr 0.001", "seconds": 1.25}, {})
    first, second = told.epochs
    assert (first.epoch, first.value, first.metrics) == (1, 0.5, {"accuracy": 0.5, "loss": 1.0})
    assert (first.device, first.devices, first.seconds, first.samples) == ("cuda:0", 2, 0.25, 64)
    assert (second.epoch, second.value, second.device, second.generation) == (2, 0.75, "cuda:1", 2)
    assert [(epoch.worker_id, epoch.generation) for epoch in told.epochs] == [(ids[0], 1), (ids[1], 2)]
    owners = [(owner.worker_id, owner.generation, owner.slot, owner.epochs, owner.holds) for owner in told.owners]
    assert owners == [(ids[0], 1, "cuda:0", 1, False), (ids[1], 2, "cuda:1", 1, False)]
    assert (told.weights, told.checkpoint) == (WEIGHTS, None)
    assert told.started_at is not None
    assert told.settled_at is not None
    assert told.started_at <= told.settled_at


def test_a_running_trial_shows_who_has_it_until_it_is_handed_back(worker: SharedStorage, study: StudyRecord) -> None:
    mine = registered(worker, study, "cuda:3")
    lease = worker.lease_of(optuna_study(worker, study).ask())
    told = queries.trial(worker, study, 0)
    assert (told.state, told.outcome, told.value, told.epochs, told.settled_at) == ("running", None, None, (), None)
    worker.record_epoch(lease, an_epoch(1), FIRST)
    worker.record_epoch(lease, an_epoch(2, math.nan), SECOND)
    told = queries.trial(worker, study, 0)
    assert (told.checkpoint, told.weights, told.seconds) == (SECOND, None, 0.5)
    assert [(owner.worker_id, owner.slot, owner.epochs, owner.holds) for owner in told.owners] == [
        (mine, "cuda:3", 2, True)
    ]
    assert [str(epoch.value) for epoch in told.epochs] == ["0.5", "nan"]
    worker.hand_back(lease)
    told = queries.trial(worker, study, 0)
    assert (told.state, [owner.holds for owner in told.owners]) == ("adoptable", [False])


def test_an_enqueued_trial_shows_what_it_will_suggest(worker: SharedStorage, study: StudyRecord) -> None:
    number = studies.enqueue(worker, study, {"x": 0.25})
    told = queries.trial(worker, study, number)
    assert (told.state, told.enqueued, told.params, told.epochs, told.owners) == ("waiting", {"x": 0.25}, {}, (), ())
    assert (told.started_at, told.settled_at, told.seconds) == (None, None, 0)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.COMPLETE])
def test_a_trial_that_came_to_nothing_says_why(worker: SharedStorage, study: StudyRecord, outcome: Outcome) -> None:
    run_trial(worker, study, Settlement(outcome, "why", attrs={"traceback": "line 1"}))
    told = queries.trial(worker, study, 0)
    assert (told.state, told.outcome, told.reason, told.attrs) == (
        outcome.value,
        outcome,
        "why",
        {"traceback": "line 1"},
    )
    assert told.value == (0.5 if outcome.state == TrialState.PRUNED else None)


def test_a_trial_told_elsewhere_is_told_by_its_state(worker: SharedStorage, study: StudyRecord) -> None:
    number = optuna_study(worker, study).ask().number
    optuna_study(RDBStorage(worker.backend.url), study).tell(number, 0.125)
    told = queries.trial(worker, study, number)
    assert (told.state, told.outcome, told.value) == ("complete", Outcome.COMPLETE, 0.125)
    assert told.settled_at is not None


def test_a_trial_of_plain_optuna_has_its_values_params_and_times(worker: SharedStorage) -> None:
    theirs = optuna.create_study(study_name=f"plain-{id(worker)}", storage=RDBStorage(worker.backend.url))
    trial = theirs.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.report(0.5, 0)
    trial.report(0.25, 10)
    theirs.tell(trial, 0.25)
    told = queries.trial(worker, theirs.study_name, 0)
    assert (told.state, told.outcome, told.value, told.params) == ("complete", Outcome.COMPLETE, 0.25, {"x": x})
    assert [(line.epoch, line.value, line.metrics, line.worker_id) for line in told.epochs] == [
        (0, 0.5, {}, ""),
        (10, 0.25, {}, ""),
    ]
    assert (told.owners, told.weights, told.checkpoint, told.best_epoch) == ((), None, None, None)
    assert told.started_at is not None
    assert told.settled_at is not None
    assert told.started_at <= told.settled_at


def test_a_trial_that_is_not_there_is_said_with_those_that_are(worker: SharedStorage, study: StudyRecord) -> None:
    with pytest.raises(UsageError, match=f"study '{study.name}' has no trial 0: it has none yet"):
        queries.trial(worker, study, 0)
    run_trial(worker, study)
    with pytest.raises(UsageError, match="has no trial 1: it has only trial 0"):
        queries.trial(worker, study, 1)
    run_trial(worker, study)
    with pytest.raises(UsageError, match="has no trial -1: its trials are 0 to 1"):
        queries.trial(worker, study.name, -1)


# -- Folds, and functions that alone know how long they are


def test_within_a_fold_an_epoch_has_no_value_but_all_the_rest(worker: SharedStorage) -> None:
    study = make_study(worker, epochs=2, folds=3)
    assert (study.folds, study.length) == (3, 6)
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1, 0.5))
    worker.record_epoch(lease, an_epoch(2, value=0.25))
    worker.record_epoch(lease, an_epoch(3, value=None))
    assert worker.get_trial(lease.trial_id).intermediate_values == {1: 0.5, 2: 0.25}
    assert [epoch.value for epoch in queries.trial(worker, study, 0).epochs] == [0.5, 0.25, None]
    (running,) = queries.status(worker, fresh(worker, study)).running
    assert (running.epoch, running.now, running.best) == (3, 0.25, 0.5)
    assert worker.cost(lease) == (3, 0.75)


def test_a_trial_without_any_value_yet_shows_its_epoch(worker: SharedStorage, study: StudyRecord) -> None:
    worker.record_epoch(worker.lease_of(optuna_study(worker, study).ask()), an_epoch(1, value=None))
    (running,) = queries.status(worker, fresh(worker, study)).running
    assert (running.epoch, running.now, running.best) == (1, None, None)


@pytest.mark.parametrize(("epochs", "folds", "saved"), [(5, 1, 4), (5, 3, 14), (0, 1, 0)])
def test_pruning_saves_epochs_of_all_folds_and_none_of_an_unknown_length(
    worker: SharedStorage, epochs: int, folds: int, saved: int
) -> None:
    study = make_study(worker, epochs=epochs, folds=folds)
    run_trial(worker, study, Settlement(Outcome.PRUNED))
    run_trial(worker, study, DONE)
    assert queries.status(worker, fresh(worker, study)).epochs_saved == saved
