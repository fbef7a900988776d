"""The recipes that ship with the package: trained on small real tasks, chosen to complement each other, and judged.

    python -m benchmarks.portfolio --data DIR --runs RUNS.jsonl
    python -m benchmarks.portfolio --data DIR --runs RUNS.jsonl --without digits,fashion,adult \
        --write benchmarks/portfolio_left_out.json

Trains 60 recipes on each of twelve tasks, the same ones everywhere (`portfolio_runs.py`, `portfolio_tasks.py`), as far
as they are not in RUNS.jsonl: about half an hour of one core, which may be interrupted. Then it chooses the portfolio,
writes it to search/portfolio.json and prints how well such a choice does on a task that it was not chosen on. DIR is
laid out as `dialin run --data` takes it, but the archives of Fashion-MNIST are read as they are.

The second one is for measuring how soon a search on those three finds something good:
`DIALIN_PORTFOLIO=OTHER.json dialin run` starts with its recipes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import option_parser, print_header
from benchmarks.portfolio_runs import RECIPES, SEEDS, Candidate, candidates, recorded, train_the_rest
from benchmarks.portfolio_tasks import SmallTask, tasks
from search.optimizers import OPTIMIZERS
from search.portfolio import Floats, complementary, normalised
from search.transfer import won
from storage.history import PastStudy, PastTrial

SHIPPED = Path(__file__).resolve().parents[1] / "search" / "portfolio.json"
# The most useful so many; then for each optimizer that is not among them its best recipe, for who searches only that.
FIRST = 8
COUNTS = (1, 2, 3, 4, 6, 8)
DRAWS = 1000
# Trials of a finished study, and how many times others are drawn.
STUDIED, REPEATS = 25, 6


@dataclass(frozen=True)
class Table:
    """What each recipe came to on each task, `normalised`, shape (recipes, tasks)."""

    names: tuple[str, ...]
    values: Floats

    def without(self, left_out: set[str]) -> Table:
        """Fewer tasks."""
        kept = [index for index, name in enumerate(self.names) if name not in left_out]
        return Table(tuple(self.names[index] for index in kept), self.values[:, kept])


def table_of(file: Path, seeds: tuple[int, ...]) -> Table:
    """The mean over the seeds that all recipes of all tasks were trained with."""
    runs = recorded(file)
    every = tasks()
    columns = []
    for task in every.values():
        of_seeds = [[best(runs[task.name, n, seed]["values"], task) for n in range(RECIPES)] for seed in seeds]
        columns.append(np.mean([normalised(one) for one in of_seeds], axis=0))
    return Table(tuple(every), np.column_stack(columns))


def whole_seeds(file: Path) -> tuple[int, ...]:
    """Those with which every recipe was trained on every task."""
    runs = recorded(file)
    return tuple(s for s in SEEDS if all((name, n, s) in runs for name in tasks() for n in range(RECIPES)))


def best(values: list[float | None], task: SmallTask) -> float:
    """A run's best epoch, lower is better; not a number when none of them was one."""
    finite = [value for value in values if value is not None and np.isfinite(value)]
    if not finite:
        return float("nan")
    return -max(finite) if task.objective.searched.direction == "maximize" else min(finite)


def mostly_good(values: Floats, count: int) -> list[int]:
    """The recipes that are best on average over the tasks, but for the third of them where each does worst.

    Every recipe fails somewhere, which says little about the next task, and among so few tasks it decides a plain mean.
    """
    kept = values.shape[1] - values.shape[1] // 3
    order: list[int] = np.argsort(np.sort(values, axis=1)[:, :kept].mean(axis=1), kind="stable").tolist()
    return order[:count]


def portfolio(table: Table, recipes: list[Candidate], count: int = FIRST) -> list[int]:
    """The most useful recipes, then the best of each optimizer that they do not have."""
    chosen = mostly_good(table.values, count)
    for optimizer in OPTIMIZERS:
        of_it = [one.number for one in recipes if one.settings["optimizer"] == optimizer]
        if not {*of_it} & {*chosen}:
            chosen.append(min(of_it, key=lambda number: float(table.values[number].mean())))
    return chosen


def written(table: Table, recipes: list[Candidate], seeds: tuple[int, ...]) -> dict[str, Any]:
    """What ships. Of each recipe: the task on which it is the best of them, or on average nearest to it."""
    chosen = portfolio(table, recipes)
    told = []
    for place, number in enumerate(chosen):
        others = np.delete(table.values[chosen], place, axis=0).min(axis=0)
        ahead = np.argmax(others - table.values[number])
        settings = {name: rounded(value) for name, value in recipes[number].settings.items()}
        told.append({"best_on": table.names[int(ahead)], "settings": settings})
    return {
        "made_by": "benchmarks/portfolio.py",
        "torch": version("torch"),
        "tasks": list(table.names),
        "recipes_tried": RECIPES,
        "seeds": list(seeds),
        "recipes": told,
    }


def rounded(value: Any) -> Any:
    """Three digits: more say nothing."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


def regrets(table: Table, task: int) -> dict[str, list[float]]:
    """The best value on a task after so many trials (COUNTS): of what was chosen on tasks of other data, and else."""
    data = [name.partition("-")[0] for name in table.names]
    others = [other for other in range(len(data)) if data[other] != data[task]]
    rng = np.random.default_rng(task)
    own, elsewhere = table.values[:, task], table.values[:, others]
    orders = {
        "portfolio": mostly_good(elsewhere, max(COUNTS)),
        "best on average": np.argsort(elsewhere.mean(axis=1), kind="stable").tolist(),
        "complementary": complementary(elsewhere, max(COUNTS)),
    }
    draws = [rng.permutation(len(own)) for _ in range(DRAWS)]
    found: dict[str, list[float]] = {name: [] for name in (*orders, "defaults", "random")}
    for count in COUNTS:
        for name, order in orders.items():
            found[name].append(float(own[order[:count]].min()))
        found["defaults"].append(float(own[: min(count, 3)].min()))
        found["random"].append(float(np.mean([own[draw[:count]].min() for draw in draws])))
    return found


def evaluated(table: Table) -> list[str]:
    """Lines: for each way to choose, the mean over the tasks that were left out, and the worst third of them."""
    found = [regrets(table, task) for task in range(len(table.names))]
    lines = [f"{'trials':26s}" + "".join(f"{count:>8d}" for count in COUNTS)]
    for name in found[0]:
        all_tasks = np.array([one[name] for one in found])
        worst = np.sort(all_tasks, axis=0)[-max(1, len(found) // 3) :]
        lines.append(f"{name:26s}" + "".join(f"{value:8.3f}" for value in all_tasks.mean(axis=0)))
        lines.append(f"{'  worst third of tasks':26s}" + "".join(f"{value:8.3f}" for value in worst.mean(axis=0)))
    return lines


def study_of(table: Table, task: int, tried: Sequence[int], recipes: list[Candidate]) -> PastStudy:
    """A finished study of a task in which these recipes were trained, best first."""
    order = sorted(tried, key=lambda number: float(table.values[number, task]))
    trials = [
        PastTrial(number, float(table.values[number, task]), rank, recipes[number].settings | {"number": number}, {})
        for rank, number in enumerate(order)
    ]
    name = table.names[task]
    return PastStudy(name, name, tasks()[name].objective.searched.name, "minimize", tuple(trials))


def transferred(table: Table, recipes: list[Candidate]) -> list[str]:
    """Lines: how a new search does after what `search.transfer` makes of a study of each other task.

    In each study another STUDIED of the recipes were trained. Beside it: the studies' winners in any order.
    """
    found: dict[str, list[list[float]]] = {"won in past studies": [], "their winners, any order": []}
    for repeat in range(REPEATS):
        rng = np.random.default_rng(repeat)
        for task, name in enumerate(table.names):
            others = [other for other in range(len(table.names)) if other != task]
            past = [study_of(table, other, rng.permutation(RECIPES)[:STUDIED].tolist(), recipes) for other in others]
            proposals = won(past, "new", tasks()[name].objective.searched.name, 4)
            winners: list[int] = rng.permutation([study.trials[0].number for study in past]).tolist()
            orders = [[int(one.settings["number"]) for one in proposals], winners]
            for line, order in zip(found.values(), orders, strict=True):
                line.append([float(table.values[order[:count], task].min()) for count in COUNTS[:4]])
    means = {line: np.mean(regrets, axis=0) for line, regrets in found.items()}
    return [f"{line:26s}" + "".join(f"{value:8.3f}" for value in mean) for line, mean in means.items()]


def summary(table: Table, recipes: list[Candidate], file: Path, seeds: tuple[int, ...]) -> list[str]:
    """Everything that is printed."""
    runs = [run for run in recorded(file).values() if run["seed"] in seeds]
    seconds = [run["core_seconds"] for run in runs]
    lines = [
        f"{RECIPES} recipes on {len(table.names)} tasks, seeds {', '.join(map(str, seeds))}: {len(runs)} runs, "
        f"{sum(seconds) / 60:.0f} min of one core, {np.mean(seconds):.1f} s each",
        "0 is the best of the 60 on a task, 1 their median.",
        "",
        "Best value after so many trials on a task of data that the choice has not seen (mean over the tasks):",
        *evaluated(table),
        f"with a finished study of each other task in the database, of {STUDIED} of the recipes each:",
        *transferred(table, recipes),
        "",
        "The portfolio, chosen on all of them (the mean of the best so far beside each):",
    ]
    chosen = portfolio(table, recipes)
    for place, number in enumerate(chosen):
        so_far = table.values[chosen[: place + 1]].min(axis=0).mean()
        text = " ".join(f"{name} {rounded(value)}" for name, value in recipes[number].settings.items())
        lines.append(f"{place:2d}  {so_far:.3f}  {text}")
    every = tasks()
    lines += ["", f"{'task':18s}{'network':28s}{'metric':10s}{'epochs':>6s}  defaults  portfolio's first 4, 8"]
    for index, name in enumerate(table.names):
        own, one = table.values[:, index], every[name]
        first = [float(own[chosen[:count]].min()) for count in (4, 8)]
        lines.append(
            f"{name:18s}{one.shape:28s}{one.objective.searched.name:10s}{one.objective.epochs:6d}  "
            f"{own[:3].min():8.3f}  {first[0]:.3f} {first[1]:.3f}"
        )
    return lines


def main() -> None:
    """Train, choose, write, print."""
    parser = option_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--runs", type=Path, required=True, help="where what was trained is kept")
    parser.add_argument("--seeds", type=int, default=1, help="how many of the seeds")
    parser.add_argument("--without", default="", help="leave out tasks whose names begin so, comma-separated")
    parser.add_argument("--write", type=Path, default=SHIPPED, help="the file that is written")
    asked = parser.parse_args()
    for run in train_the_rest(asked.runs, asked.data, SEEDS[: asked.seeds]):
        print(f"{run['task']} recipe {run['recipe']} seed {run['seed']}: {run['core_seconds']} s", file=sys.stderr)
    seeds, recipes = whole_seeds(asked.runs)[: asked.seeds], candidates()
    table = table_of(asked.runs, seeds)
    stems = tuple(filter(None, asked.without.split(",")))
    table = table.without({name for name in table.names if name.startswith(stems)} if stems else set())
    asked.write.write_text(json.dumps(written(table, recipes, seeds), indent=1) + "\n")
    print_header("torch", "optuna")
    print("\n".join(summary(table, recipes, asked.runs, seeds)))


if __name__ == "__main__":
    main()
