"""Plain Optuna's side of the race: default sampler, median pruner, one process a core on one SQLite file."""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import optuna
import torch
from contests import CONTESTS
from plain_loop import arguments, fit, note
from plain_recipe import suggest

NAME = "race"


def work(given: argparse.Namespace, worker: int) -> None:
    """One process: trials until it is ended."""
    torch.set_num_threads(1)
    seed = given.seed * given.workers + worker
    torch.manual_seed(seed)
    contest = CONTESTS[given.contest]
    data = contest.datasets(given.data)

    def objective(trial: optuna.Trial) -> float:
        name = str(trial.number)
        note(given.log, name, "start")
        suggest(trial, contest.objective)
        best = 0.0
        for epoch, accuracy in enumerate(fit(trial.params, contest, data, given.epochs)):
            note(given.log, name, "epoch", accuracy=accuracy)
            best = max(best, accuracy)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    def ended(_study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        note(given.log, str(trial.number), "end")

    study = optuna.load_study(
        study_name=NAME,
        storage=storage(given.log),
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(),
    )
    study.optimize(objective, callbacks=[ended])


def storage(log: Path) -> str:
    """The database beside the log."""
    return f"sqlite:///{log.with_name('optuna.db')}"


def main() -> None:
    """Make the study and the processes."""
    given = arguments(__doc__)
    optuna.create_study(study_name=NAME, storage=storage(given.log), direction="maximize")
    # Forked: torch is imported once, and nothing of it has run yet.
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(given, worker)) for worker in range(given.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()


if __name__ == "__main__":
    main()
