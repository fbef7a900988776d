"""The test split, opened for the recipe that won a confirmation: all models of its seeds are evaluated on it.

In a process of its own, since the command that asks imports no torch. What it finds goes on record there and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from statistics import fmean
from typing import Any

import torch
from optuna.trial import FixedTrial

from search.assignment import Assignment
from search.batches import EvaluationBatches
from search.checkpoints import CheckpointError
from search.data import Data, Folds, size
from search.evaluation import evaluate
from search.failures import failure
from search.objective import Objective
from search.randomness import seed_everything
from search.samplers import quiet_optuna
from search.shelf import Store, open_store
from search.uncompiled import spare_the_compiler
from search.worker import Work, load_work
from storage import confirmed, queries, studies
from storage.confirmed import Opened, Seed
from storage.errors import DialinError
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord


def open_in_child(
    connection: Connection, assignment: Assignment, device: str, recipe: int, rivals: Sequence[int]
) -> None:
    """The body of the child process: sends None when all is on record, or what is wrong (message, frames, status)."""
    answer: Any = None
    try:
        open_test_split(assignment, torch.device(device), recipe, rivals)
    except DialinError as error:
        answer = (str(error), getattr(error, "frames", ""), error.exit_status)
    with suppress(BrokenPipeError):
        connection.send(answer)


def open_test_split(assignment: Assignment, device: torch.device, recipe: int, rivals: Sequence[int]) -> None:
    """Evaluate the models of a recipe, put that on record with the confirmation, and remove what lost.

    Args:
        assignment: as of a worker of the confirmation.
        recipe: number of the confirmed study's trial.
        rivals: recipes whose weights stay too.

    Raises:
        DialinErrors: the objective is not what it was, fails, or the weights are not here. Then nothing is on record.
    """
    quiet_optuna()
    spare_the_compiler()
    torch.set_num_threads(assignment.threads)
    storage = open_storage(assignment.storage)
    record = studies.find(storage, assignment.study)
    work = load_work(assignment, storage, record)
    store = open_store(assignment.checkpoints, assignment.files, record.folder)
    mine = [one for one in confirmed.seeds(storage, record) if one.recipe == recipe and one.value is not None]
    said = _why_not(work.data, recipe) or _tested(storage, record, work, store, mine, device)
    for path in confirmed.conclude(storage, record, said, rivals):
        store.remove(path)


def _why_not(data: Data | Folds | None, recipe: int) -> Opened | None:
    """There is nothing to be opened."""
    if data is None:
        return Opened(recipe, None, why="the objective trains itself, so that Dialin knows of no test split")
    if any(fold.test is None for fold in data.folds):
        return Opened(recipe, None, why="what data() returns has none")
    return None


def _tested(
    storage: SharedStorage, record: StudyRecord, work: Work, store: Store, seeds: list[Seed], device: torch.device
) -> Opened:
    """Of seeds whose weights could be written."""
    data = work.data
    assert data is not None
    models = {}
    for seed in seeds:
        kept = queries.weights_of(storage, record, seed.trial)
        if kept is None:
            continue
        try:
            weights = store.read(*kept)
        except CheckpointError as error:
            where = "name the place that the workers wrote to with --files or --checkpoints"
            raise DialinError(f"the test split stays closed: {error}; {where}") from None
        trial = FixedTrial(storage.get_trial(seed.trial_id).params, number=seed.trial)
        try:
            models[seed.trial] = _evaluated(work.objective, data, weights, trial, device)
        except Exception as error:  # whatever a person's code raises
            raise failure(error, work.path, "evaluation on the test split") from error
    if not models:
        raise DialinError("the test split stays closed: no weights of the winner's models are on record")
    part = data.folds[0].test
    assert part is not None
    return Opened(seeds[0].recipe, models, samples=size(part))


def _evaluated(
    objective: Objective, data: Data | Folds, weights: dict[str, Any], trial: FixedTrial, device: torch.device
) -> dict[str, float]:
    """Every metric of one model; of folds the mean over their models, which all see one and the same test split."""
    found = []
    for number, fold in enumerate(data.folds, start=1):
        assert fold.test is not None
        seed_everything(0)
        task = objective.task(trial)
        task.net.load_state_dict(weights[f"fold-{number}"] if isinstance(data, Folds) else weights)
        task.net.to(device)
        batches = EvaluationBatches(fold.test, fold, max(objective.batch_sizes), device=device)
        found.append(evaluate(task, batches, objective.metrics, device, objective.precision))
    return {name: fmean(one[name] for one in found) for name in found[0]}
