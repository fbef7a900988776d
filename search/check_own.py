"""What `dialin check` can say of an objective that trains itself: it is run up to its first report, in memory.

Called by search/check.py for a person's own loop and for a bare Optuna function.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch

from search import bare, loop, space
from search.check_lines import CheckLine, duration, memory_line
from search.loading import LoadedObjective
from search.narrowing import narrowed
from search.preview import blamed
from search.randomness import seed_everything
from search.reporting import EpochResult, Result, Verdict
from search.samplers import quiet_optuna
from search.space import Recipe
from storage.words import counted


class _Enough(BaseException):
    """The first report has come."""


class _FirstReport:
    """A `Reporter` that ends the training with its first report."""

    def __init__(self) -> None:
        self.result: EpochResult | None = None

    def restore(self) -> dict[str, Any] | None:
        return None

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        self.result = result
        if state is not None:
            state()  # what cannot be kept is found out here too
        raise _Enough

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        pass

    def interrupted(self) -> bool:
        return False


def check_own(
    loaded: LoadedObjective, data_root: Path, device: torch.device, trials: int, workers: int
) -> Iterator[CheckLine]:
    """Run it up to its first report; say what it suggested, what it reported and how long that took.

    Raises:
        RaisedError: what the person's code raised, with their frames.
    """
    objective, reporter, trial = loaded.objective, _FirstReport(), _trial_in_memory()
    told: list[str] = []  # the recipe, where a loop asks for one
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, blamed("train(run)" if objective.train else "", loaded):
        seed_everything(0)
        result = _run(loaded, trial, reporter, device, data_root, Path(folder), told)
    seconds = time.perf_counter() - started
    yield CheckLine("suggested", True, " ".join([*told, space.in_words(trial.params)]).strip() or "nothing", 0.0)
    first, whole = reporter.result, reporter.result is None or reporter.result.value is None
    said = result.reason if result is not None else ""
    if first is not None:
        said = ", ".join(f"{name} {value:.4g}" for name, value in first.metrics.items())
    what, numbers = ("one trial", "trial_seconds") if whole else ("first report", "epoch_seconds")
    yield CheckLine(what, True, f"{said}; after {duration(seconds)}", seconds, {numbers: seconds})
    yield memory_line(device)
    if whole or objective.epochs:
        yield _study_line(seconds, objective.epochs, trials, workers)


def _study_line(seconds: float, epochs: int, trials: int, workers: int) -> CheckLine:
    """Estimate a study. `seconds`: of an epoch, of a trial where `epochs` is 0."""
    total = seconds * max(1, epochs) * -(-trials // workers)
    each = f" of {counted(epochs, 'epoch')}" if epochs else ""
    detail = f"{trials} trials{each} on {counted(workers, 'worker')}: about {duration(total)}"
    numbers = {"study_seconds": total, "trials": trials, "workers": workers}
    return CheckLine("study", True, f"{detail}, none saved by pruning", 0.0, numbers)


def _trial_in_memory() -> optuna.Trial:
    quiet_optuna()
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()


def _run(
    loaded: LoadedObjective,
    trial: optuna.Trial,
    reporter: _FirstReport,
    device: torch.device,
    data: Path,
    folder: Path,
    told: list[str],
) -> Result | None:
    objective = loaded.objective
    try:
        if objective.function is not None:
            function = objective.function
            return bare.play(trial, lambda shown: function(narrowed(shown, objective.knobs)), reporter)

        def sample() -> Recipe:
            recipe = space.recipe_from_params(space.starting_points(objective)[0], objective)
            told.append(recipe.summary())
            return recipe

        run = loop.Run(
            trial,
            objective,
            device=device,
            seed=0,
            data=data,
            folder=lambda: folder,
            reporter=reporter,
            sample=sample,
        )
        return loop.play(run, objective)
    except _Enough:
        return None
