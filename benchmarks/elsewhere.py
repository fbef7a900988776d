"""How far a curve is from the one on record when a trial is replayed elsewhere: what `--tolerance` allows for.

    python -m benchmarks.elsewhere
    DIALIN_DATA=FOLDER python -m benchmarks.elsewhere housing adult

Recipes of a built-in objective (its three starting points, and the defaults of other optimizers with other schedules)
are trained with one thread and with the instructions that torch takes by itself; then again the same way, with two
threads, and in a process that may use no more than AVX2, as on another processor. Of each curve of the searched metric:
the mean distance and that of the trial's value, in shares of the largest value, which `dialin replay` allows 0.02 of.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from statistics import fmean
from typing import Any

import optuna
import torch

from benchmarks.measured import option_parser, print_header
from search import options, space
from search.loading import resolve
from search.preview import load_data
from search.randomness import seed_everything
from search.reporting import EpochResult, Verdict
from search.settings import middle_trial
from search.training import train

EPOCHS = {"digits": 15, "housing": 5, "adult": 3}
# What each process is told beside its threads: torch's, oneDNN's and MKL's own variables.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
ELSEWHERE: dict[str, tuple[int, dict[str, str]]] = {
    "the same": (1, {}),
    "two threads": (2, {}),
    "AVX2": (1, AVX2),
}
ALLOWED = 0.02


class Keeping:
    """A reporter that keeps the searched metric's values."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def restore(self) -> None:
        """There is nothing to go on from."""

    def report(self, result: EpochResult, state: Any) -> Verdict:
        self.values.append(result.value if result.value is not None else float("nan"))
        return Verdict.GO_ON

    def between_batches(self, batch: int, state: Any) -> None:
        """Nothing is kept."""

    def interrupted(self) -> bool:
        return False


def recipes(objective: Any) -> list[dict[str, Any]]:
    """Parameters: the starting points, and what practice starts from of every optimizer, each with another schedule."""
    found = space.starting_points(objective)
    shapes = ("step", "cosine_restarts", "linear", "exponential", "cyclic", "multistep")
    for optimizer, schedule in zip(("sgd", "nesterov", "adagrad", "rmsprop", "nadam", "radam"), shapes, strict=True):
        found.append(space.nearest_params({"optimizer": optimizer, "schedule": schedule}, objective))
    return found


def curves(name: str, threads: int) -> list[list[float]]:
    """Every recipe's curve, trained in this process."""
    torch.set_num_threads(threads)
    loaded = resolve(name)
    objective = replace(loaded.objective, epochs=EPOCHS[name])
    data = load_data(loaded, options.data_root(None))
    found = []
    for number, params in enumerate(recipes(objective)):
        seed_everything(number)
        task = objective.task(middle_trial())
        kept = Keeping()
        recipe = space.recipe_from_params(params, objective)
        train(task, data, recipe, objective, device=torch.device("cpu"), seed=number, reporter=kept)
        found.append(kept.values)
    return found


def in_a_process(name: str, threads: int, environment: dict[str, str]) -> list[list[float]]:
    command = [sys.executable, "-m", "benchmarks.elsewhere", "--curves", name, "--threads", str(threads)]
    done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
    found: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def apart(one: list[float], other: list[float], best: Any) -> tuple[float, float]:
    """The mean distance of two curves, and that of their values, in shares of the largest value of the first."""
    scale = max(map(abs, one))
    mean = fmean(abs(a - b) for a, b in zip(one, other, strict=False))
    return mean / scale, abs(best(one) - best(other)) / scale


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("objectives", nargs="*", metavar="OBJECTIVE", help=f"of {', '.join(EPOCHS)}")
    parser.add_argument("--curves", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.curves:
        print(json.dumps(curves(given.curves, given.threads)))
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print_header("torch")
    print(f"{'objective':<10} {'elsewhere':<12} {'recipes':>7} {'same':>5} {'curve: mean':>12} {'largest':>8} ", end="")
    print(f"{'value: mean':>12} {'largest':>8} {'allowed':>8}")
    for name in given.objectives or ["digits"]:
        best = max if resolve(name).objective.searched.direction == "maximize" else min
        recorded = in_a_process(name, *ELSEWHERE["the same"])
        for where, (threads, environment) in ELSEWHERE.items():
            again = in_a_process(name, threads, environment)
            pairs = [apart(one, other, best) for one, other in zip(recorded, again, strict=True)]
            same = sum(one == other for one, other in zip(recorded, again, strict=True))
            inside = sum(max(pair) <= ALLOWED for pair in pairs)
            means, values = zip(*pairs, strict=True)
            print(f"{name:<10} {where:<12} {len(pairs):>7} {same:>5} {fmean(means):>12.5f} {max(means):>8.5f} ", end="")
            print(f"{fmean(values):>12.5f} {max(values):>8.5f} {inside:>8}", flush=True)


if __name__ == "__main__":
    main()
