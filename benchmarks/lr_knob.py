"""One relative learning rate for all optimizers, or one of its own for each: which does a sampler make more of?

    python -m benchmarks.lr_knob --data DIR --runs RUNS.jsonl --seeds 4

Real training: digits as `dialin run digits` has it (but six epochs), and 10,000 images of Fashion-MNIST with its small
CNN for one epoch. Whole trials, none stopped, in one process; both ways sample the same ranges, knob for knob, from the
same seeds: the one as `lr_multiple`, the other as a parameter of that range for each optimizer. What is in RUNS.jsonl
is not run again, and an interrupted run goes on. DIR is laid out as `dialin run --data` takes it.

Prints the median (lowest to highest) of the best value after so many trials, and how often which was better.
"""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler, TPESampler

from benchmarks.measured import option_parser, print_header
from benchmarks.portfolio_runs import Candidate, run_one
from benchmarks.portfolio_tasks import SmallTask, clothes, tasks
from search import Data, space

TRIALS = 40
AFTER = (15, 25, 40)
KNOBS = ("relative", "separate")
# What a run that diverged counts as: worse than chance.
DIVERGED = {"digits": 5.0, "fashion": 0.0}


def measured() -> dict[str, SmallTask]:
    """Both tasks. Of digits the loss: among good recipes accuracy is the same for many."""
    small = tasks()
    digits = replace(small["digits-cnn"].objective, metric=("loss", "accuracy"), epochs=6)
    fashion = replace(small["fashion-cnn"].objective, epochs=1)
    return {
        "digits": replace(small["digits-cnn"], objective=digits),
        "fashion": replace(small["fashion-cnn"], objective=fashion, data=partial(clothes, 10_000, 5_000)),
    }


class SeparateRates:
    """A trial whose rate is another parameter for each optimizer."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial, self.optimizer = trial, ""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """As the trial; the optimizer is remembered."""
        value = self.trial.suggest_categorical(name, choices)
        self.optimizer = value if name == "optimizer" else self.optimizer
        return value

    def suggest_int(self, name: str, low: int, high: int, **how: Any) -> int:
        """As the trial."""
        return self.trial.suggest_int(name, low, high, **how)

    def suggest_float(self, name: str, low: float, high: float, **how: Any) -> float:
        """As the trial, the rate under a name of its own."""
        own = f"{name}_{self.optimizer}" if name == "lr_multiple" else name
        return self.trial.suggest_float(own, low, high, **how)


@dataclass(frozen=True)
class Cell:
    """One search: of a task with a sampler, one way, from a seed."""

    task: str
    sampler: str
    knob: str
    seed: int

    def make_sampler(self) -> BaseSampler:
        """Optuna's own, as it comes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.sampler == "gp":
                return GPSampler(seed=self.seed, warn_independent_sampling=False)
            return TPESampler(seed=self.seed)


def search_one(cell: Cell, task: SmallTask, data: Data) -> Iterator[float]:
    """The value of each trial, lower is better."""
    maximized = task.objective.searched.direction == "maximize"
    study = optuna.create_study(sampler=cell.make_sampler())
    for _ in range(TRIALS):
        trial = study.ask()
        shown: Any = trial if cell.knob == "relative" else SeparateRates(trial)
        recipe = space.sample(shown, task.objective)
        own = {f"lr_multiple_{recipe.optimizer.name}": "lr_multiple"}
        params = {own.get(name, name): value for name, value in trial.params.items()}
        run = run_one(task, data, Candidate(trial.number, "", params, recipe.as_dict()), seed=cell.seed)
        values = [value for value in run["values"] if value is not None and value == value]
        value = (max(values) if maximized else min(values)) if values else DIVERGED[cell.task]
        study.tell(trial, -value if maximized else value)
        yield -value if maximized else value


def cells(seeds: int, samplers: list[str]) -> list[Cell]:
    """All of them, seed by seed, so that an early end leaves both ways with as many."""
    return [
        Cell(task, sampler, knob, seed)
        for seed in range(seeds)
        for task in measured()
        for sampler in samplers
        for knob in KNOBS
    ]


def recorded(file: Path) -> dict[Cell, list[float]]:
    """Searches that were finished."""
    lines = file.read_text().splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines]
    return {Cell(one["task"], one["sampler"], one["knob"], one["seed"]): one["values"] for one in found}


def lines_of(found: dict[Cell, list[float]]) -> Iterator[str]:
    """The table: a line for each task, sampler and number of trials, of the seeds that both ways have."""
    yield f"{'task':9s}{'sampler':8s}{'trials':>6s}  {'relative':28s}{'separate':28s}relative better"
    for task, sampler in dict.fromkeys((cell.task, cell.sampler) for cell in found):
        sign = -1 if task == "fashion" else 1
        both = [
            [found[replace_knob] for replace_knob in (Cell(task, sampler, knob, seed) for knob in KNOBS)]
            for seed in sorted({cell.seed for cell in found})
            if all(Cell(task, sampler, knob, seed) in found for knob in KNOBS)
        ]
        for count in AFTER if both else ():
            best = [[min(values[:count]) for values in pair] for pair in both]
            told = [spread([sign * pair[way] for pair in best]) for way in range(2)]
            wins = sum(one < other for one, other in best) + 0.5 * sum(one == other for one, other in best)
            yield f"{task:9s}{sampler:8s}{count:6d}  {told[0]:28s}{told[1]:28s}{wins:g} of {len(best)} seeds"


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--runs", type=Path, required=True, help="where finished searches are kept")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--samplers", default="tpe,gp")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known, done = measured(), recorded(asked.runs)
    data: dict[str, Data] = {}
    for cell in cells(asked.seeds, asked.samplers.split(",")):
        if cell in done:
            continue
        task = known[cell.task]
        if cell.task not in data:
            data[cell.task] = task.data(asked.data)
        values = list(search_one(cell, task, data[cell.task]))
        with asked.runs.open("a") as file:
            file.write(json.dumps({**vars(cell), "values": values}) + "\n")
        print(cell, f"{min(values):.4f}", file=sys.stderr, flush=True)
    print_header("torch", "optuna")
    print("\n".join(lines_of(recorded(asked.runs))))


if __name__ == "__main__":
    main()
