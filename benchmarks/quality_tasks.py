"""Recorded learning curves as tasks to search: what `benchmarks/quality.py` trains instead of networks.

LCBench is a surrogate (YAHPO Gym) that knows the curve of any recipe; TaskSet is a list of recorded runs, of which the
nearest unused one stands for a recipe. The evaluation before any training is left out of both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution

Floats = NDArray[np.float64]
Range = FloatDistribution | IntDistribution

# The other tasks are for judging what was never tuned on: none of them is to be opened here.
_TASKS = """3945 34539 126026 146212 167149 167161 167168 167181 167185 167200 168329 168331 168868 168910 189862
    189866 189906"""
LCBENCH_TASKS = tuple(_TASKS.split())
LCBENCH_SPACE: dict[str, Range] = {
    "batch_size": IntDistribution(16, 512, log=True),
    "learning_rate": FloatDistribution(1e-4, 0.1, log=True),
    "momentum": FloatDistribution(0.1, 0.99),
    "weight_decay": FloatDistribution(1e-5, 0.1),
    "num_layers": IntDistribution(1, 5),
    "max_units": IntDistribution(64, 1024, log=True),
    "max_dropout": FloatDistribution(0.0, 1.0),
}
LCBENCH_EPOCHS = 52  # the first of them is the untrained network's
METRICS = {"accuracy": (1, -0.01), "cross_entropy": (2, 1.0)}  # the column, and what makes lower better
# What practice starts from (torch's defaults and the usual rates), for a study without any history.
LCBENCH_DEFAULTS = tuple(
    {
        "batch_size": 128,
        "learning_rate": rate,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "num_layers": layers,
        "max_units": 256,
        "max_dropout": dropout,
    }
    for rate, layers, dropout in ((1e-2, 3, 0.2), (1e-3, 3, 0.2), (3e-2, 2, 0.5))
)
BETAS = ("beta1", "beta2")
TASKSET_DEFAULTS = tuple(
    {
        "learning_rate": rate,
        "beta1": 0.1,
        "beta2": 0.001,
        "epsilon": 1e-8,
        "l1": 1e-8,
        "l2": 1e-8,
        "linear_decay": 1e-7,
        "exponential_decay": 1e-6,
    }
    for rate in (1e-3, 1e-2, 3e-4)
)
BEST_OF = 20_000  # random full runs that the best known value is the lowest of, before it is refined
REFINED, ROUNDS, AROUND = 50, 3, 40  # so many of the best, so often, with so many neighbours each
SAMPLE = 2_000  # random runs whose median is what a typical recipe comes to
WINNER_OF = 200  # full runs of a past study, of which the best few are its winners


@dataclass(frozen=True)
class Curve:
    """Of one recipe: lower is better; NaN from where it diverged. `seconds` are each epoch's own."""

    recipe: Mapping[str, Any]
    values: Floats
    seconds: Floats


class Runs(Protocol):
    """One run of a search on a task: gives out its curves."""

    def curve(self, recipe: Mapping[str, Any]) -> Curve:
        """The curve of a recipe, or of what stands for it."""


@dataclass(frozen=True)
class Task:
    """`best`: the lowest value known; `middle`: the median over random recipes of their best epoch."""

    family: str
    name: str
    epochs: int
    space: Mapping[str, Range]
    best: float
    middle: float
    source: Any = field(repr=False, hash=False, compare=False)

    def runs(self) -> Runs:
        """For one search."""
        return self.source.runs()

    def regret(self, value: float) -> float:
        """0 for the best known value, 1 for a typical recipe's, capped at 2."""
        return min(2.0, max(0.0, (value - self.best) / (self.middle - self.best)))


def unit_to_recipe(space: Mapping[str, Range], point: Floats) -> dict[str, Any]:
    """A point of the unit cube as a recipe."""
    recipe: dict[str, Any] = {}
    for (name, d), share in zip(space.items(), point, strict=True):
        low, high = (math.log(d.low), math.log(d.high)) if d.log else (float(d.low), float(d.high))
        value = low + float(share) * (high - low)
        value = min(max(math.exp(value) if d.log else value, d.low), d.high)
        recipe[name] = round(value) if isinstance(d, IntDistribution) else value
    return recipe


def recipe_to_unit(space: Mapping[str, Range], recipe: Mapping[str, Any]) -> Floats:
    """A recipe as a point of the unit cube."""
    point = []
    for name, d in space.items():
        value = float(recipe[name])
        value, low, high = (math.log(one) if d.log else float(one) for one in (value, d.low, d.high))
        point.append((value - low) / (high - low))
    return np.asarray(point)


class LCBench:
    """The surrogate: opened once a process."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._codes = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"]

    def curves(self, task: str, recipes: Sequence[Mapping[str, Any]], metric: str) -> tuple[Floats, Floats]:
        """Values and cumulative seconds, each of shape (recipes, epochs), without the first evaluation."""
        if task not in LCBENCH_TASKS:
            raise ValueError(f"task {task} is kept for judging what was never tuned on")
        settings = np.asarray([[recipe[name] for name in LCBENCH_SPACE] for recipe in recipes], dtype=np.float32)
        epochs = np.tile(np.arange(1, LCBENCH_EPOCHS + 1, dtype=np.float32), len(recipes))
        points = np.column_stack([epochs, np.repeat(settings, LCBENCH_EPOCHS, axis=0)])
        code = np.full((len(points), 1), self._codes[task], dtype=np.int32)
        (found,) = self._session.run(None, {"x_cat": code, "x_cont": points})
        column, factor = METRICS[metric]
        shape = len(recipes), LCBENCH_EPOCHS
        values = factor * found[:, column].astype(np.float64).reshape(shape)
        seconds = np.maximum.accumulate(found[:, 0].astype(np.float64).reshape(shape), axis=1)
        return values[:, 1:], seconds[:, 1:]


@dataclass(frozen=True)
class LCBenchSource:
    """One task of the surrogate."""

    surrogate: LCBench
    task: str
    metric: str

    def runs(self) -> Runs:
        """Nothing is used up."""
        return self

    def curve(self, recipe: Mapping[str, Any]) -> Curve:
        values, seconds = self.surrogate.curves(self.task, [recipe], self.metric)
        return Curve(recipe, values[0], np.diff(seconds[0], prepend=0.0))

    def lowest(self, points: Floats) -> Floats:
        """The best epoch of each point of the unit cube."""
        parts = []
        for start in range(0, len(points), 1000):
            recipes = [unit_to_recipe(LCBENCH_SPACE, point) for point in points[start : start + 1000]]
            parts.append(self.surrogate.curves(self.task, recipes, self.metric)[0].min(axis=1))
        return np.concatenate(parts)

    def best_and_middle(self) -> tuple[float, float]:
        """The lowest of many random runs and of rounds of local refinement, and the median of some of them."""
        rng = np.random.default_rng(int(self.task))
        points = rng.random((BEST_OF, len(LCBENCH_SPACE)))
        values = self.lowest(points)
        middle = float(np.median(values[:SAMPLE]))
        for spread in 0.1 / 3.0 ** np.arange(ROUNDS):
            leaders = points[np.argsort(values)[:REFINED]]
            near = np.repeat(leaders, AROUND, axis=0)
            near = np.clip(near + rng.normal(0, spread, near.shape), 0, 1)
            points, values = np.concatenate([points, near]), np.concatenate([values, self.lowest(near)])
        return float(values.min()), middle


@dataclass(frozen=True)
class TaskSetSource:
    """Recorded runs of one task: `points` in the unit cube, `valid` of shape (runs, epochs)."""

    points: Floats
    settings: Sequence[Mapping[str, Any]]
    valid: Floats

    def runs(self) -> Runs:
        return Unused(self)

    def best_and_middle(self) -> tuple[float, float]:
        lowest = np.nanmin(np.where(np.isfinite(self.valid), self.valid, np.nan_to_num(np.inf)), axis=1)
        return float(lowest.min()), float(np.median(lowest))


class Unused:
    """The recorded runs that one search has not met."""

    def __init__(self, source: TaskSetSource) -> None:
        self._source = source
        self._free = np.ones(len(source.points), dtype=bool)

    @cached_property
    def _space(self) -> Mapping[str, Range]:
        return taskset_space()

    def curve(self, recipe: Mapping[str, Any]) -> Curve:
        """The nearest unused run's."""
        away = ((self._source.points - recipe_to_unit(self._space, recipe)) ** 2).sum(axis=1)
        index = int(np.argmin(np.where(self._free, away, np.inf)))
        self._free[index] = False
        values = self._source.valid[index]
        return Curve(self._source.settings[index], values, np.ones(len(values)))


def taskset_space() -> dict[str, Range]:
    """What TaskSet drew from (Metz et al. 2020, appendix: adam8p); a beta by its distance from 1."""
    ranges = {
        "learning_rate": (1e-8, 1e1),
        "beta1": (1e-4, 1.0),
        "beta2": (1e-6, 1.0),
        "epsilon": (1e-10, 1e3),
        "l1": (1e-8, 1e1),
        "l2": (1e-8, 1e1),
        "linear_decay": (1e-7, 1e-4),
        "exponential_decay": (1e-6, 1e-3),
    }
    return {name: FloatDistribution(low, high, log=True) for name, (low, high) in ranges.items()}


def taskset_source(path: Path) -> TaskSetSource:
    """Its validation losses without the first evaluation; what is no number, or huge, has diverged."""
    with np.load(path) as stored:
        names, settings = [str(name) for name in stored["names"]], stored["hp"].astype(np.float64)
        valid = stored["valid"].astype(np.float64)[:, 1:]
    space = taskset_space()
    recipes = []
    for row in settings:
        by_name = dict(zip(names, row, strict=True))
        recipe = {name: 1 - by_name[name] if name in BETAS else by_name[name] for name in space}
        recipes.append({name: min(max(float(v), space[name].low), space[name].high) for name, v in recipe.items()})
    points = np.stack([recipe_to_unit(space, recipe) for recipe in recipes])
    return TaskSetSource(points, recipes, np.where(np.abs(valid) < 1e4, valid, np.nan))


def load_tasks(folder: Path, cache: Path, metric: str, families: Sequence[str], names: Sequence[str]) -> list[Task]:
    """The tasks of those families (and names, if any); what takes long to find out is kept in `cache`."""
    tasks: list[Task] = []
    if "lcbench" in families:
        surrogate = LCBench(folder / "lcbench")
        for name in LCBENCH_TASKS:
            if not names or name in names:
                source = LCBenchSource(surrogate, name, metric)
                best, middle = _remembered(cache / f"lcbench-{name}-{metric}.json", source)
                tasks.append(Task("lcbench", name, LCBENCH_EPOCHS - 1, LCBENCH_SPACE, best, middle, source))
    if "taskset" in families:
        for path in sorted((folder / "taskset").glob("*.npz")):
            if not names or path.stem in names:
                runs = taskset_source(path)
                best, middle = runs.best_and_middle()
                tasks.append(Task("taskset", path.stem, runs.valid.shape[1], taskset_space(), best, middle, runs))
    return tasks


def _remembered(path: Path, source: LCBenchSource) -> tuple[float, float]:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(source.best_and_middle()))
    best, middle = json.loads(path.read_text())
    return best, middle
