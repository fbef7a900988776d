"""Ray Tune's side of the race: OptunaSearch and ASHAScheduler, one trial a core.

An actor goes on with the next trial instead of importing torch again for each (`reuse_actors`, off by default).
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import ray
import torch
from contests import CONTESTS, load
from plain_loop import arguments, fit, note
from plain_recipe import suggest
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

GOAL = {"metric": "accuracy", "mode": "max"}


def train(config: dict[str, Any], given: argparse.Namespace) -> None:
    """One trial."""
    name = tune.get_context().get_trial_id()
    note(given.log, name, "start")
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    data = load(given.contest, given.data)
    for accuracy in fit(config, CONTESTS[given.contest], data, given.epochs):
        note(given.log, name, "epoch", accuracy=accuracy)
        tune.report({"accuracy": accuracy})


class Ends(tune.Callback):
    """Writes down that a trial trained to its end or was stopped."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.log = given.log

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        note(self.log, trial.trial_id, "end")


def main() -> None:
    """Trials until it is ended."""
    given = arguments(__doc__)
    ray.init(num_cpus=given.workers, include_dashboard=False)
    space = partial(suggest, objective=CONTESTS[given.contest].objective)
    tuner = tune.Tuner(
        tune.with_parameters(train, given=given),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(space=space, seed=given.seed, **GOAL),
            scheduler=ASHAScheduler(max_t=given.epochs, **GOAL),
            num_samples=-1,
            max_concurrent_trials=given.workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(given.log.parent), callbacks=[Ends(given)], verbose=0),
    )
    tuner.fit()


if __name__ == "__main__":
    main()
