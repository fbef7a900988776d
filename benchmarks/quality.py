"""How good a search is after how much training: strategies on recorded learning curves, in simulated time.

    DIALIN_CURVES=FOLDER python -m benchmarks.quality --processes 2
    DIALIN_CURVES=FOLDER python -m benchmarks.quality --strategies auto tpe+hyperband --budgets 5 10
    python -m benchmarks.quality --decisions

Regret = (best value at any epoch of any trial so far - best known) / (median over random recipes of their best epoch -
best known), capped at 2, after B full trainings' worth of epochs of four asynchronous workers. Mean and standard error
are over tasks (each the mean of its seeds), the rank is the mean over tasks, "worst fifth" the mean over the fifth of
the tasks where the strategy is worst. "history": the search begins with some of the best recipes of each other task of
its family (the four best of its recorded runs, of 200 full ones on LCBench), as many as `--portfolio` says (a search
starts with up to eight), chosen to complement each other; "defaults": with three that practice starts from; "none":
with nothing. Only `auto` and `tpe+hyperband` have starts. "none better" is the best of all recorded runs, as far as one
worker can have trained it by then: no strategy comes below that (TaskSet only, whose runs are all known).
A search ends after the largest budget, which strategies are told with `--known` only, or, with `--trials`, by itself.
`--decisions` tells how long `auto` decides with 1,000 trials of 20 epochs on record, in processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from benchmarks import quality_tasks
from benchmarks.measured import option_parser, print_header
from benchmarks.quality_simulation import Limits, Make, Outcome, search
from benchmarks.quality_tasks import Task
from search.auto import Auto, Rules
from search.first_trials import MOST
from search.portfolio import complementary, normalised
from search.samplers import OptunaStrategy
from search.strategy import GoOn, Left, Seen, SeenState, Start, Strategy
from search.transfer import CANDIDATES

Starts = Sequence[tuple[str, Mapping[str, Any]]]
BUDGETS = (5, 10, 25, 50)
STARTS = ("none", "defaults", "history")


class WithStarts:
    """A strategy, behind recipes that are started before it is asked, as a study's first trials are."""

    def __init__(self, inner: Strategy, starts: Starts) -> None:
        self._inner, self._starts = inner, starts
        self.verdict = inner.verdict

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        if len(seen) < len(self._starts):
            origin, recipe = self._starts[len(seen)]
            return Start(recipe, origin)
        return self._inner.next(seen, left)


def optunas(sampler: type[BaseSampler], pruner: type[BasePruner] | str) -> Make:
    """A pair of Optuna's own, with its defaults; Hyperband knows the number of epochs."""

    def make(study: optuna.Study, task: Task, starts: Starts, seed: int) -> Strategy:
        study.sampler = sampler(seed=seed)  # type: ignore[call-arg]  # each of those below takes a seed
        if pruner == "hyperband":
            study.pruner = HyperbandPruner(min_resource=1, max_resource=task.epochs, reduction_factor=3)
        else:
            assert not isinstance(pruner, str)
            study.pruner = pruner()
        return WithStarts(OptunaStrategy(study), starts)

    return make


def auto(**options: Any) -> Make:
    """Dialin's own."""

    def make(study: optuna.Study, task: Task, starts: Starts, seed: int) -> Strategy:
        study.sampler = RandomSampler(seed=seed)
        return WithStarts(Auto(epochs=task.epochs, seed=seed, rules=Rules(**options)), starts)

    return make


STRATEGIES: dict[str, Make] = {
    "random": optunas(RandomSampler, NopPruner),
    "tpe+median": optunas(TPESampler, MedianPruner),
    "tpe+hyperband": optunas(TPESampler, "hyperband"),
    "tpe+halving": optunas(TPESampler, SuccessiveHalvingPruner),
    "auto": auto(),
}


def history(task: Task, others: Sequence[Task], cache_folder: Path, count: int) -> Starts:
    """Of the best recipes of each other task some, in an order of which each head serves many of them.

    As `search.transfer` takes them from finished studies, so many of each.
    """
    if task.family == "taskset":
        lowest = [
            normalised(np.nanmin(np.where(np.isfinite(o.source.valid), o.source.valid, 1e9), axis=1)) for o in others
        ]
        best = sorted({int(index) for values in lowest for index in np.argsort(values)[:CANDIDATES]})
        recipes = [task.source.settings[index] for index in best]
        values = np.stack(lowest, axis=1)[best]
    else:
        recipes = lcbench_best(others, cache_folder)
        values = np.stack(
            [(_lowest(other, recipes) - other.best) / (other.middle - other.best) for other in others], axis=1
        )
    chosen = complementary(np.clip(values, 0, 2), count)
    return [(f"best on {len(others)} others", recipes[one]) for one in chosen]


def _lowest(task: Task, recipes: Sequence[Mapping[str, Any]]) -> quality_tasks.Floats:
    source = task.source
    return source.surrogate.curves(source.task, recipes, source.metric)[0].min(axis=1)


def lcbench_best(tasks: Sequence[Task], folder: Path) -> list[Mapping[str, Any]]:
    """The best few of so many random full runs of each task."""
    found: list[Mapping[str, Any]] = []
    for task in tasks:
        path = folder / f"best-{CANDIDATES}-{task.name}-{task.source.metric}.json"
        if not path.is_file():
            rng = np.random.default_rng(1_000_000 + int(task.name))
            points = rng.random((quality_tasks.WINNER_OF, len(task.space)))
            recipes = [quality_tasks.unit_to_recipe(task.space, point) for point in points]
            path.write_text(json.dumps([recipes[one] for one in np.argsort(_lowest(task, recipes))[:CANDIDATES]]))
        found += json.loads(path.read_text())
    return found


@dataclass(frozen=True)
class Job:
    """One search to run, picklable."""

    options: argparse.Namespace
    task: str
    strategy: str
    start: str
    seed: int

    def made(self, result: Mapping[str, Any]) -> bool:
        """Whether that is what it came to."""
        return all(result[name] == getattr(self, name) for name in ("task", "strategy", "start", "seed"))


@cache
def tasks_of(folder: Path, cache_folder: Path, metric: str) -> tuple[Task, ...]:
    """All of them, opened once a process."""
    return tuple(quality_tasks.load_tasks(folder, cache_folder, metric, ("lcbench", "taskset"), ()))


def run_job(job: Job) -> dict[str, Any]:
    """What one search came to."""
    options = job.options
    everything = tasks_of(options.curves, options.cache, options.metric)
    task = next(one for one in everything if one.name == job.task)
    others = [one for one in everything if one.family == task.family and one is not task]
    starts: Starts = []
    if job.start == "history":
        starts = history(task, others, options.cache, options.portfolio)
    elif job.start == "defaults":
        defaults = quality_tasks.LCBENCH_DEFAULTS if task.family == "lcbench" else quality_tasks.TASKSET_DEFAULTS
        starts = [("default", recipe) for recipe in defaults]
    epochs = math.ceil(max(options.budgets) * task.epochs)
    limits = Limits(epochs, options.workers, options.trials, options.known)
    begun = time.perf_counter()
    outcome = search(task, job.strategy, STRATEGIES[job.strategy], starts, job.seed, limits)
    return summary(task, job, outcome, options.budgets, time.perf_counter() - begun)


def summary(task: Task, job: Job, outcome: Outcome, budgets: Sequence[float], took: float) -> dict[str, Any]:
    """Regrets by budget; a search that ended by itself keeps what it had."""
    regrets = {}
    for budget in budgets:
        at = min(math.ceil(budget * task.epochs), len(outcome.best))
        regrets[f"{budget:g}"] = task.regret(outcome.best[at - 1])
    return {
        "family": task.family,
        "task": task.name,
        "strategy": job.strategy,
        "start": job.start,
        "seed": job.seed,
        "regret": regrets,
        "trials": len(outcome.lengths),
        "spent": len(outcome.best) / task.epochs,
        "full": outcome.lengths.count(task.epochs),
        "decision_ms": 1000 * statistics.median(outcome.decisions),
        "took": took,
    }


def table(results: Sequence[Mapping[str, Any]], budgets: Sequence[float]) -> list[str]:
    """Lines for people: one a family, start and strategy."""
    lines = []
    for family in ("lcbench", "taskset"):
        of_family = [one for one in results if one["family"] == family]
        if not of_family:
            continue
        lines.append(f"{family:<24}" + "".join(f"{f'B={b:g}':>25}" for b in budgets) + "   trials  full  spent  s")
        lines.append(f"{'':<24}" + "".join(f"{'mean  se   rank worst':>25}" for _ in budgets))
        groups = sorted(
            {(one["strategy"], one["start"]) for one in of_family}, key=lambda pair: (STARTS.index(pair[1]), pair[0])
        )
        means = {group: by_task(of_family, group, budgets) for group in groups}
        for group in groups:
            cells = [cell(means, group, index) for index in range(len(budgets))]
            own = [one for one in of_family if (one["strategy"], one["start"]) == group]
            tail = [statistics.mean(one[key] for one in own) for key in ("trials", "full", "spent", "took")]
            lines.append(
                f"{group[0] + ', ' + group[1]:<24}"
                + "".join(f"{one:>25}" for one in cells)
                + f"   {tail[0]:5.0f} {tail[1]:5.0f}  {tail[2]:5.1f}  {tail[3]:.1f}"
            )
    return lines


def none_better(tasks: Sequence[Task], budgets: Sequence[float], workers: int) -> str:
    """The regret of a search that knew from the beginning which recorded run is the best one at each moment."""
    cells = []
    for budget in budgets:
        epochs = [min(task.epochs, math.ceil(math.ceil(budget * task.epochs) / workers)) for task in tasks]
        lowest = [np.nanmin(task.source.valid[:, :so_far]) for task, so_far in zip(tasks, epochs, strict=True)]
        values = sorted((task.regret(float(value)) for task, value in zip(tasks, lowest, strict=True)), reverse=True)
        worst = values[: max(1, math.ceil(len(values) / 5))]
        cells.append(f"{statistics.mean(values):.3f}            {statistics.mean(worst):.3f}")
    return f"{'none better, taskset':<24}" + "".join(f"{one:>25}" for one in cells)


def by_task(
    results: Sequence[Mapping[str, Any]], group: tuple[str, str], budgets: Sequence[float]
) -> dict[str, list[float]]:
    """The mean regret of each task at each budget."""
    found: dict[str, list[list[float]]] = {}
    for one in results:
        if (one["strategy"], one["start"]) == group:
            found.setdefault(one["task"], []).append([one["regret"][f"{budget:g}"] for budget in budgets])
    return {task: [statistics.mean(column) for column in zip(*rows, strict=True)] for task, rows in found.items()}


def cell(means: Mapping[tuple[str, str], Mapping[str, list[float]]], group: tuple[str, str], index: int) -> str:
    """Mean, standard error, mean rank among all groups, and the mean over the worst fifth of the tasks."""
    own = {task: row[index] for task, row in means[group].items()}
    values = sorted(own.values(), reverse=True)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    ranks = []
    for task, value in own.items():
        beside = [rows[task][index] for rows in means.values() if task in rows]
        ranks.append(1 + sum(one < value for one in beside) + (sum(one == value for one in beside) - 1) / 2)
    worst = values[: max(1, math.ceil(len(values) / 5))]
    return f"{statistics.mean(values):.3f} {error:.3f} {statistics.mean(ranks):4.1f} {statistics.mean(worst):.3f}"


def decisions() -> list[str]:
    """How long one takes with 1,000 trials of 20 epochs on record: ten parameters, three of them choices."""
    rng = np.random.default_rng(0)
    space: dict[str, Any] = {f"x{index}": FloatDistribution(0.0, 1.0) for index in range(7)}
    space |= {f"c{index}": CategoricalDistribution(("a", "b", "c")) for index in range(3)}
    seen = []
    for number in range(1000):
        recipe = {name: float(rng.random()) if name[0] == "x" else str(rng.choice(list("abc"))) for name in space}
        ends = sum((value - 0.5) ** 2 for value in recipe.values() if isinstance(value, float))
        values = {epoch: ends + 1 / epoch for epoch in range(1, 21)}
        seen.append(Seen(number, recipe, values, SeenState.PAUSED, 20.0, space))
    strategy, took = Auto(epochs=40, seed=0), []
    for index in range(101):
        values = {**seen[index].values, 21: 9.0}  # an epoch more, so that it is a decision of its own
        seen[index] = replace(seen[index], values=values)
        begun = time.process_time()
        strategy.next(seen, Left())
        took.append(1000 * (time.process_time() - begun))
    rest = sorted(took[1:])
    return [
        f"a decision: {statistics.median(rest):.0f} ms median, {rest[94]:.0f} ms p95; the first one {took[0]:.0f} ms"
    ]


def arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    folder = os.environ.get("DIALIN_CURVES")
    parser.add_argument("--curves", type=Path, default=folder and Path(folder), help="default: DIALIN_CURVES")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "dialin-quality")
    parser.add_argument("--metric", choices=[*quality_tasks.METRICS], default="accuracy", help="LCBench's")
    parser.add_argument("--families", nargs="+", default=["lcbench", "taskset"])
    parser.add_argument("--tasks", nargs="+", default=[], help="names; all of them when left out")
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth task")
    parser.add_argument("--strategies", nargs="+", choices=[*STRATEGIES], default=[*STRATEGIES])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=[*STARTS])
    parser.add_argument("--portfolio", type=int, default=MOST)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budgets", type=float, nargs="+", default=[*BUDGETS])
    parser.add_argument("--workers", type=int, default=4, help="simulated ones")
    parser.add_argument("--known", action="store_true", help="strategies are told when the largest budget ends")
    parser.add_argument(
        "--trials", type=float, default=math.inf, help="so many may start; then `spent` says when it ended"
    )
    parser.add_argument("--decisions", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--kept", type=Path, help="a file to which every search's result is added; what is in it is not searched again"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.decisions:
        print("\n".join(decisions()))
        return
    if options.curves is None:
        sys.exit("name the folder of the curves: --curves, or DIALIN_CURVES")
    everything = tasks_of(options.curves, options.cache, options.metric)
    tasks = [
        one for one in everything if one.family in options.families and (not options.tasks or one.name in options.tasks)
    ][:: options.every]
    jobs = [
        Job(options, task.name, strategy, start, seed)
        for seed in options.seeds
        for task in tasks
        for start in options.starts
        for strategy in options.strategies
        if start == "none" or strategy not in ("random", "tpe+median", "tpe+halving")
    ]
    earlier = options.kept.read_text().splitlines() if options.kept and options.kept.is_file() else []
    results = [one for one in map(json.loads, earlier) if any(job.made(one) for job in jobs)]
    missing = [job for job in jobs if not any(job.made(one) for one in results)]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done, result in enumerate(pool.imap_unordered(run_job, missing), start=1):
            results.append(result)
            if options.kept:
                with options.kept.open("a") as file:
                    file.write(json.dumps(result) + "\n")
            print(f"\r{done} of {len(missing)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print_header("optuna", "numpy", "scipy", "onnxruntime")
    print(
        f"{options.workers} simulated workers, seeds {options.seeds}, LCBench by {options.metric}, "
        f"portfolio of {options.portfolio}"
    )
    print("\n".join(table(results, options.budgets)))
    recorded = [task for task in tasks if task.family == "taskset"]
    if recorded:
        print(none_better(recorded, options.budgets, options.workers))


if __name__ == "__main__":
    main()
