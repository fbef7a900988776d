"""Real processes for the storage tests, and what they do in them. Forked from one that has imported all.

`Crew` starts them once. Each function below runs in every one of them, begins when all are ready (`together`),
and gives back plain values.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import halving
import optuna
from optuna.samplers import RandomSampler
from storage_places import SPEC

from search import children
from search.judge import Judge
from search.strategy import GoOn
from storage import checking, confirmations, pausing, schema, studies, workers
from storage.claims import BudgetSpent, Checkpoint, Claimant, Epoch, EpochsSpent, Lease, LeaseLost, Settlement, new_uuid
from storage.confirmations import Link
from storage.outcomes import Outcome
from storage.shared import open_storage
from storage.studies import StudySpec
from storage.tables import StudyState
from storage.urls import parse

PROCESSES = 8
READY_SECONDS = 120

_barriers: list[Barrier] = []


class Crew:
    """Calling it runs a function of this module in all processes at once and gives what each returned."""

    def __init__(self) -> None:
        children.warm_up()  # spawned, each of them would import all this again
        context = multiprocessing.get_context("forkserver")
        barrier = context.Barrier(PROCESSES)
        self._pool = ProcessPoolExecutor(PROCESSES, context, _get_ready, (barrier,))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        futures = [self._pool.submit(function, *arguments) for _ in range(PROCESSES)]
        return [future.result(READY_SECONDS) for future in futures]


def _get_ready(barrier: Any) -> None:
    os.chdir("/")  # the folder of the test that started them goes
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _barriers.append(barrier)


def together() -> None:
    """Returns in all processes at once; so no process takes two calls of one round."""
    _barriers[0].wait(READY_SECONDS)


def claim_and_settle(url: str, name: str) -> list[tuple[int, float]]:
    """Work until the budget is spent; number and `x` of each trial that this process ran."""
    storage = open_storage(url, Claimant(new_uuid()))
    study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    workers.register(storage, _worker_id(storage), studies.find(storage, name).study_id, [workers.Place("cpu 0", None)])
    ran = []
    together()
    try:
        while True:
            trial = study.ask()
            with storage.sampling(trial):
                x = trial.suggest_float("x", 0, 1000)
            storage.record_epoch(storage.lease_of(trial), Epoch(1, x, {"accuracy": x}, 0.1, 10, "cpu"))
            storage.settle(study, trial, Settlement(Outcome.COMPLETE), x)
            ran.append((trial.number, x))
    except BudgetSpent:
        return ran
    finally:
        storage.backend.engine.dispose()


def claim_among_newcomers(url: str, name: str) -> int:
    """Claim until the budget is spent, with workers registering between the claims; the number of trials."""
    storage = open_storage(url, Claimant(new_uuid()))
    study_id = studies.find(storage, name).study_id
    study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    ran = 0
    together()
    try:
        while True:
            workers.register(storage, new_uuid(), study_id, [workers.Place("cpu", None)])
            storage.settle(study, study.ask(), Settlement(Outcome.COMPLETE), 0.5)
            ran += 1
    except BudgetSpent:
        return ran
    finally:
        storage.backend.engine.dispose()


def settle_at_once(url: str, name: str, value: float) -> tuple[int, str]:
    """Claim a trial, and settle it when all have one; its number and the study's state after that."""
    storage = open_storage(url, Claimant(new_uuid()))
    study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    trial = study.ask()
    together()
    storage.settle(study, trial, Settlement(Outcome.COMPLETE), value)
    state = studies.find(storage, name).state
    storage.backend.engine.dispose()
    return trial.number, state


def train_until_stopped(url: str, name: str, devices: int) -> int:
    """Claim a trial and record epochs until one is answered or refused by the study's end, then hand it back.

    The number of epochs on record in return.
    """
    storage = open_storage(url, Claimant(new_uuid()))
    lease = storage.lease_of(optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler()).ask())
    together()
    epoch, state = 0, StudyState.RUNNING
    with suppress(EpochsSpent):
        while state is StudyState.RUNNING:
            state = storage.record_epoch(lease, Epoch(epoch + 1, 0.5, {}, 0.25, 10, "cpu", devices))
            epoch += 1
    storage.hand_back(lease)
    storage.backend.engine.dispose()
    return epoch


def train_several_at_a_time(url: str, name: str) -> int:
    """As `train_until_stopped`, three epochs in a transaction; the number on record in return."""
    storage = open_storage(url, Claimant(new_uuid()))
    lease = storage.lease_of(optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler()).ask())
    together()
    with suppress(EpochsSpent):
        for first in itertools.count(1, 3):
            several = [Epoch(first + more, 0.5, {}, 0.25, 10, "cpu") for more in range(3)]
            if storage.record_epochs(lease, several).state is not StudyState.RUNNING:
                break
    recorded, _seconds = storage.cost(lease)
    storage.hand_back(lease)
    storage.backend.engine.dispose()
    return recorded


def train_until_lost(url: str, name: str) -> str:
    """Claim a trial and record epochs until it is lost; whoever claimed the first deletes the study meanwhile."""
    storage = open_storage(url, Claimant(new_uuid()))
    record = studies.find(storage, name)
    trial = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler()).ask()
    lease = storage.lease_of(trial)
    storage.record_epoch(lease, Epoch(1, 0.5, {}, 0.25, 10, "cpu"))
    together()
    try:
        if trial.number == 0:
            studies.delete(storage, record)
            return "deleted"
        for epoch in itertools.count(2):
            storage.record_epoch(lease, Epoch(epoch, 0.5, {}, 0.25, 10, "cpu"))
    except LeaseLost:
        return "lost"
    finally:
        storage.backend.engine.dispose()
    raise AssertionError


def enqueue_at_once(url: str, name: str, count: int) -> list[int]:
    """Enqueue some trials; their numbers."""
    storage = open_storage(url)
    record = studies.find(storage, name)
    together()
    numbers = [studies.enqueue(storage, record, {"x": 0.5}) for _ in range(count)]
    storage.backend.engine.dispose()
    return numbers


def adopt_one(url: str, study_id: int) -> int | None:
    """Try once to adopt; the trial's id."""
    storage = open_storage(url, Claimant(new_uuid()))
    together()
    found = storage.adopt(study_id)
    storage.backend.engine.dispose()
    return found.trial_id if isinstance(found, Lease) else None


def go_on_with_one(url: str, study_id: int, number: int) -> int | None:
    """Try once to go on with a paused trial; the generation of its lease."""
    storage = open_storage(url, Claimant(new_uuid()))
    together()
    lease = pausing.go_on(storage, study_id, number, by=1)
    storage.backend.engine.dispose()
    return lease.generation if lease is not None else None


def halve(url: str, name: str) -> list[tuple[int, int]]:
    """Train a study of four epochs as `halving` says until it is over: number and epoch of each that was trained."""
    storage = open_storage(url, Claimant(new_uuid()))
    study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    judge = Judge(storage, study, halving.make)
    trained: list[tuple[int, int]] = []
    together()
    while (trial := _to_halve(storage, study, judge)) is not None:
        lease = storage.lease_of(trial)
        recorded = storage.cost(lease)[0]
        for number in range(recorded + 1, 5):
            value = trial.number / 100
            state = Checkpoint(number, f"{trial.number}/state-{number}.g{lease.generation}.pt", "1" * 64)
            storage.record_epoch(lease, Epoch(number, value, {"accuracy": value}, 0.1, 10, "cpu"), state)
            trained.append((trial.number, number))
            if number in (1, 2):
                assert pausing.pause(storage, lease)
                break
        else:
            storage.settle(study, trial, Settlement(Outcome.COMPLETE), value)
    storage.backend.engine.dispose()
    return trained


def _to_halve(storage: Any, study: Any, judge: Judge) -> Any:
    """A trial that is this process's now; None when the study is over."""
    while True:
        standing = pausing.standing(storage, study._study_id)
        assert standing is not None
        chosen = judge.next(standing)
        with suppress(BudgetSpent):
            if isinstance(chosen, GoOn):
                by = judge.paused_by(chosen.number)
                assert by is not None
                lease = pausing.go_on(storage, study._study_id, chosen.number, by)
                if lease is not None:
                    return optuna.trial.Trial(study, lease.trial_id)
            elif chosen is not None:
                return study.ask()
            elif not standing.leased and pausing.finish(storage, study._study_id, "nothing is left", standing):
                return None
        time.sleep(0.05)


def create_studies(url: str, spec: StudySpec, stem: str, count: int) -> list[str]:
    """Make some studies; their names."""
    storage = open_storage(url)
    together()
    names = [studies.create(storage, spec, stem=stem).name for _ in range(count)]
    storage.backend.engine.dispose()
    return names


def take_a_place(url: str, study_id: int, keys: list[str]) -> str | None:
    """Register as a worker on one of these places; the key of the one it got."""
    storage = open_storage(url, Claimant(new_uuid()))
    together()
    try:
        return workers.register(
            storage, _worker_id(storage), study_id, [workers.Place(f"cuda:{key}", key) for key in keys]
        ).key
    except workers.NoFreeSlot:
        return None
    finally:
        storage.backend.engine.dispose()


def confirm_at_once(url: str, name: str) -> str:
    """Have the best two recipes of a study confirmed with three seeds each; the name of what does."""
    storage = open_storage(url)
    source = studies.find(storage, name)
    link = Link(name, source.uid, 2, 3, tuple(confirmations.recipes(storage, source, 2)))
    together()
    begun = confirmations.begin(storage, replace(SPEC, trials=6), link)
    storage.backend.engine.dispose()
    return begun.name


def open_at_once(url: str) -> str:
    """Open the database with all others."""
    together()
    open_storage(url).backend.engine.dispose()
    return "opened"


def upgrade_at_once(url: str) -> int:
    """Upgrade the database with all others; the version that this process found."""
    together()
    return schema.upgrade(parse(url))


def claim_beside_mending(url: str, name: str, folder: str) -> tuple[int, list[str]]:
    """Claim and settle until the budget is spent, mending after each; the number of trials, and all that was found."""
    storage = open_storage(url, Claimant(new_uuid()))
    study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    ran, found = 0, []
    together()
    try:
        while True:
            trial = study.ask()
            storage.record_epoch(storage.lease_of(trial), Epoch(1, 0.5, {"accuracy": 0.5}, 0.1, 10, "cpu"))
            storage.settle(study, trial, Settlement(Outcome.COMPLETE), 0.5)
            found += [line.what for line in checking.check(storage, Path(folder), mend=True).lines]
            ran += 1
    except BudgetSpent:
        return ran, found
    finally:
        storage.backend.engine.dispose()


def _worker_id(storage: Any) -> str:
    worker_id: str = storage.backend.claimant.worker_id
    return worker_id
