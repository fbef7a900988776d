"""What must hold of a study after any number of deaths: its budget, its owners, and every curve like its twin's.

A twin is the same recipe trained in this process, undisturbed and with no database.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from chaos import OBJECTIVE, Chaos, looking
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from studies import trials
from training_helpers import Recorder, fit

from search import checkpoints
from search.data import size
from search.objective import Objective
from search.reporting import Result
from search.space import recipe_from_params
from storage import checking
from storage.provenance import trial_seed
from storage.shared import open_storage

EPOCHS = (
    "SELECT t.number, e.epoch, e.generation, e.worker_id, e.ended_at, e.metrics FROM dialin_epochs e "
    "JOIN trials t ON t.trial_id = e.trial_id ORDER BY t.number, e.epoch"
)
OWNERS = (
    "SELECT t.number, o.generation, o.worker_id, o.began_at, o.ended_at, o.ending FROM dialin_owners o "
    "JOIN trials t ON t.trial_id = o.trial_id ORDER BY t.number, o.generation"
)
WEIGHTS = (
    "SELECT t.number, c.epoch, c.path, c.sha256 FROM dialin_checkpoints c JOIN trials t ON t.trial_id = c.trial_id "
    "WHERE c.kind = 'weights'"
)
COUNTERS = "SELECT trials, taken, returned, spent_epochs FROM dialin_studies"
# On a busy machine the clock may be read in another order than a row is written.
CLOCK_SECONDS = 1e-3


@dataclass(frozen=True)
class Lost:
    """What the deaths cost: epochs that were trained again, parts of one too, their seconds, and epochs in all."""

    epochs: float
    seconds: float
    trained: float


def complaints(chaos: Chaos) -> list[str]:
    """One line for everything that is not as it must be; none where nothing was lost."""
    found = trials(chaos.url, chaos.study.name)
    return [
        *chaos.report.failures,
        *_budget(chaos, found),
        *_owners(chaos),
        *_logs(chaos),
        *(line for line in _inconsistencies(chaos) if not _only_left_over(line)),
    ]


def files_left_over(chaos: Chaos) -> list[str]:
    """A worker that dies between its settlement and the removal of what is not needed any more leaves that behind."""
    return [line for line in _inconsistencies(chaos) if _only_left_over(line)]


def _only_left_over(line: str) -> bool:
    return "that nothing records" in line


def _rows(chaos: Chaos, statement: str) -> list[Any]:
    with looking(chaos.url) as engine, engine.connect() as connection:
        return [*connection.execute(text(statement))]


def _budget(chaos: Chaos, found: list[FrozenTrial]) -> Iterator[str]:
    plan = chaos.plan
    if [trial.number for trial in found] != [*range(plan.trials)]:
        yield f"{len(found)} trials for a budget of {plan.trials}"
    for trial in found:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            yield f"trial {trial.number} ended {trial.state.name}: {trial.user_attrs.get('reason')}"
    if leases := _rows(chaos, "SELECT trial_id, worker_id FROM dialin_leases"):
        yield f"leases are left: {leases}"
    epochs: dict[int, list[int]] = {}
    for number, epoch, *_rest in _rows(chaos, EPOCHS):
        epochs.setdefault(number, []).append(epoch)
    for trial in found:
        had = epochs.get(trial.number, [])
        if had != [*range(1, len(had) + 1)] or (trial.state is TrialState.COMPLETE and len(had) != plan.epochs):
            yield f"trial {trial.number} has the epochs {had}"
        if {*trial.intermediate_values} != {*had}:
            yield f"trial {trial.number} shows the epochs {sorted(trial.intermediate_values)}, and has {had}"
    [counters] = _rows(chaos, COUNTERS)
    due = (plan.trials, plan.trials, 0, sum(map(len, epochs.values())))
    if tuple(counters) != due:
        yield f"trials, tickets taken and returned, epochs spent are {tuple(counters)} and should be {due}"


def _owners(chaos: Chaos) -> Iterator[str]:
    """Each epoch was recorded by whoever held the lease then, and no two held one at a time."""
    owners = {(number, generation): rest for number, generation, *rest in _rows(chaos, OWNERS)}
    last: dict[int, int] = {}
    for (number, generation), (_worker, began, ended, ending) in owners.items():
        before = owners.get((number, generation - 1))
        if generation != last.get(number, 0) + 1:
            yield f"trial {number} has an owner {generation} after {last.get(number)}"
        if before is not None and (before[2] is None or before[2] > began + CLOCK_SECONDS):
            yield f"owner {generation} of trial {number} began at {began}, when the one before held it to {before[2]}"
        if ended is None or ended < began - CLOCK_SECONDS:
            yield f"owner {generation} of trial {number} held it from {began} to {ended}"
        followed = (number, generation + 1) in owners
        if (ending == "settled" and followed) or (ending not in ("settled", "paused") and not followed):
            yield f"owner {generation} of trial {number} ended {ending}"
        last[number] = generation
    for number, epoch, generation, worker, ended, _metrics in _rows(chaos, EPOCHS):
        owner = owners.get((number, generation))
        if owner is None or owner[0] != worker:
            yield f"epoch {epoch} of trial {number} is by {worker}, owner {generation} is {owner}"
        elif not owner[1] - CLOCK_SECONDS <= ended <= (owner[2] or 0.0) + CLOCK_SECONDS:
            yield f"epoch {epoch} of trial {number} was recorded at {ended}, its owner held it {owner[1:3]}"


def _inconsistencies(chaos: Chaos) -> list[str]:
    """What `dialin storage check` says."""
    storage = open_storage(chaos.url)
    try:
        return [line.what for line in checking.check(storage, chaos.files).lines]
    finally:
        storage.backend.engine.dispose()


def _logs(chaos: Chaos) -> Iterator[str]:
    for log in (*chaos.files.rglob("*.txt"), *chaos.files.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        for index, line in enumerate(lines):
            if line.startswith("Traceback"):
                yield f"{log.name}: {line} ... {lines[-1] if index + 40 > len(lines) else lines[index + 40]}"


def unlike_their_twins(chaos: Chaos) -> list[str]:
    """One line for every trial whose curve, or whose weights that are kept, are not its undisturbed twin's."""
    curves: dict[int, list[str]] = {}
    for number, _epoch, _generation, _worker, _ended, metrics in _rows(chaos, EPOCHS):
        curves.setdefault(number, []).append(metrics)
    weights = {number: (path, sha256) for number, _epoch, path, sha256 in _rows(chaos, WEIGHTS)}
    found = []
    for trial in trials(chaos.url, chaos.study.name):
        recorder, result = twin(chaos, trial)
        curve = [json.dumps(one.metrics) for one in recorder.results]
        had = curves.get(trial.number, [])
        if had != curve[: len(had)]:
            first = next(index for index, (one, other) in enumerate(zip(had, curve, strict=False), 1) if one != other)
            found.append(f"trial {trial.number} differs from its twin from epoch {first} on: {had[first - 1]}")
        if trial.number in weights:
            path, sha256 = weights[trial.number]
            kept = checkpoints.load(chaos.files / chaos.study.folder / path, sha256)
            if _digest(kept) != _digest(result.weights or {}):
                found.append(f"trial {trial.number} keeps other weights than its twin")
    return found


def twin(chaos: Chaos, trial: FrozenTrial) -> tuple[Recorder, Result]:
    """The trial's recipe and seed, trained here from beginning to end."""
    objective: Objective = replace(_chaotic().objective, epochs=chaos.plan.epochs)
    recorder, threads = Recorder(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = recipe_from_params(trial.params, objective)
        seed = trial_seed(chaos.study.seed, trial.number)
        return recorder, fit(objective, recorder, recipe, seed, width=trial.params["width"])
    finally:
        torch.set_num_threads(threads)


def lost(chaos: Chaos) -> Lost:
    """What the batches say that were trained."""
    batch_sizes = {trial.number: trial.params["batch_size"] for trial in trials(chaos.url, chaos.study.name)}
    points = size(_chaotic().objective.data(Path()).train)
    trained, again, epochs = 0.0, 0.0, Counter(number for number, *_rest in _rows(chaos, EPOCHS))
    for steps in chaos.steps.iterdir():
        number = int(steps.name)
        batches = math.ceil(points / batch_sizes[number])
        trained += steps.stat().st_size / batches
        again += steps.stat().st_size - epochs[number] * batches
    return Lost(trained - epochs.total(), again * chaos.plan.step_seconds, trained)


def _chaotic() -> Any:
    spec = importlib.util.spec_from_file_location(OBJECTIVE.stem, OBJECTIVE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _digest(weights: dict[str, Any]) -> str:
    parts = (name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(weights.items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()
