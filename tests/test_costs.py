"""What a study's trials have cost, by outcome, and what stopping some early has saved; both databases."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import Trial
from storage_places import an_epoch, make_study, optuna_study, worker_on

from storage import costs, studies
from storage.claims import Checkpoint, Settlement
from storage.costs import Cost, Saved
from storage.outcomes import Outcome
from storage.overview import overview
from storage.pausing import pause
from storage.shared import SharedStorage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

MIB = 2**20


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def begun(worker: SharedStorage, study: StudyRecord, epochs: int, **changes: Any) -> Trial:
    """A trial with so many epochs on record."""
    trial: Trial = optuna_study(worker, study).ask()
    for number in range(1, epochs + 1):
        worker.record_epoch(worker.lease_of(trial), an_epoch(number, number / 10, **changes))
    return trial


def ended(worker: SharedStorage, study: StudyRecord, epochs: int, outcome: Outcome, **changes: Any) -> Trial:
    """A settled trial; its best epoch is its first."""
    trial = begun(worker, study, epochs, **changes)
    value = 0.1 if outcome is Outcome.COMPLETE else None
    worker.settle(optuna_study(worker, study), trial, Settlement(outcome, "", 1 if epochs else None), value)
    return trial


def test_costs_are_summed_by_outcome(worker: SharedStorage) -> None:
    study = make_study(worker, trials=9)  # of five epochs
    ended(worker, study, 5, Outcome.COMPLETE, seconds=1.0, samples=100, devices=2, told={"peak_memory": 7 * MIB})
    ended(worker, study, 3, Outcome.COMPLETE, seconds=2.0, samples=100)
    ended(worker, study, 1, Outcome.PRUNED, seconds=0.5, samples=50, told={"peak_memory": 9 * MIB})
    ended(worker, study, 0, Outcome.PRUNED)  # refused by its model
    ended(worker, study, 0, Outcome.ERROR)
    begun(worker, study, 2, seconds=0.25, samples=10)
    found = costs.of_study(worker, study)
    assert found.by_state == {
        "complete": (2, Cost(8, 11.0, 16.0, 800, 7 * MIB)),
        "pruned": (2, Cost(1, 0.5, 0.5, 50, 9 * MIB)),
        "error": (1, Cost()),
        "running": (1, Cost(2, 0.5, 0.5, 20)),
    }
    assert [*found.by_state] == ["complete", "pruned", "error", "running"]
    assert found.total == Cost(11, 12.0, 17.0, 870, 9 * MIB)
    # Four epochs that the pruned one had left, two that the one out of patience had.
    assert (found.pruning, found.patience) == (Saved(4, 2.0), Saved(2, 4.0))


def test_a_paused_trial_and_one_to_adopt_have_cost_what_they_have(worker: SharedStorage) -> None:
    study = make_study(worker)
    paused = begun(worker, study, 1, seconds=1.0)
    lease = worker.lease_of(paused)
    worker.record_epoch(lease, an_epoch(2, 0.2, seconds=1.0), Checkpoint(2, "state-2.pt", "2" * 64))
    assert pause(worker, lease)
    left = begun(worker, study, 1, seconds=1.0)
    worker.hand_back(worker.lease_of(left))
    found = costs.of_study(worker, study).by_state
    assert {state: (trials, cost.epochs) for state, (trials, cost) in found.items()} == {
        "adoptable": (1, 1),
        "paused": (1, 2),
    }


def test_a_study_without_trials_has_cost_nothing(worker: SharedStorage) -> None:
    study = make_study(worker, first=2)
    found = costs.of_study(worker, study)
    assert (found.by_state, found.total) == ({}, Cost())
    assert (found.pruning, found.patience) == (Saved(), Saved())


def test_only_whole_bytes_are_a_peak_of_memory(worker: SharedStorage) -> None:
    study = make_study(worker)
    trial = begun(worker, study, 1, told={"peak_memory": "3 GB, says my own loop"})
    assert costs.of_study(worker, study).total.peak_memory is None
    worker.record_epoch(worker.lease_of(trial), an_epoch(2, told={"peak_memory": 5 * MIB}))
    assert costs.of_study(worker, study).total.peak_memory == 5 * MIB


def test_every_trial_has_its_line_with_cost_times_and_the_best_epochs_metrics(worker: SharedStorage) -> None:
    study = make_study(worker, trials=9)
    ended(worker, study, 2, Outcome.COMPLETE, seconds=1.0, device="cuda:1", devices=2)
    begun(worker, study, 2)
    studies.enqueue(worker, study, {"x": 0.5})
    ended_one, running, waiting = overview(worker, study)
    assert ended_one.cost == Cost(2, 2.0, 4.0, 128, None, "cuda:1")
    assert ended_one.metrics == {"accuracy": 0.1, "loss": 1.0}  # of epoch 1, its best
    assert ended_one.started_at is not None
    assert ended_one.settled_at is not None
    assert ended_one.started_at <= ended_one.settled_at
    assert (running.metrics["accuracy"], running.settled_at) == (0.2, None)  # of its last
    assert (waiting.cost, waiting.metrics, waiting.started_at) == (Cost(), {}, None)
