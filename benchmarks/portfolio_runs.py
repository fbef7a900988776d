"""The recipes that `portfolio.py` trains, and their training: what is on record already is not trained again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial
from scipy.stats import qmc

from benchmarks.portfolio_tasks import SmallTask, tasks
from search import Data, Objective, space
from search.randomness import seed_everything
from search.reporting import EpochResult, Verdict
from search.training import train

RECIPES = 60
SEEDS = (0, 1)
DRAWN_WITH = 0  # seed of the sequence's scrambling
# Rates are drawn from the middle two of the three decades that a study searches: its ends are for odd problems.
LR = (0.1, 10.0)


@dataclass(frozen=True)
class Candidate:
    """A recipe: its parameters as a study samples them, its real values, and where it is from."""

    number: int
    origin: str
    params: dict[str, Any]
    settings: dict[str, Any]


def candidates() -> list[Candidate]:
    """The three starting points of a study, then points of a scrambled Sobol sequence over the recipe's knobs."""
    whole = any_objective(None)
    found = [("default of " + params["optimizer"], params) for params in space.starting_points(whole)]
    drawn = any_objective(LR)
    names = [knob.name for knob in space.recipe_knobs(drawn)]
    points = qmc.Sobol(len(names), scramble=True, rng=DRAWN_WITH).random(64)
    for point in points[: RECIPES - len(found)]:
        found.append(("drawn", params_at(dict(zip(names, map(float, point), strict=True)), drawn)))
    return [
        Candidate(number, origin, params, space.recipe_from_params(params, whole).as_dict())
        for number, (origin, params) in enumerate(found)
    ]


def any_objective(lr: tuple[float, float] | None) -> Objective:
    """What all tasks search of a recipe; `lr` narrows its multiple."""
    own = next(iter(tasks().values())).objective
    return Objective(model=own.model, data=own.data, loss=own.loss, knobs={} if lr is None else {"lr_multiple": lr})


class PointTrial(FixedTrial):
    """Suggests what lies at a point of the unit cube, which has a dimension for each parameter by name."""

    def __init__(self, point: Mapping[str, float]) -> None:
        super().__init__({})
        self.point = point
        self.taken: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        """A value of a number."""
        return self.take(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        """A count."""
        return self.take(name, IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        return self.take(name, CategoricalDistribution(choices))

    def take(self, name: str, distribution: Any) -> Any:
        """The value there, which is remembered."""
        self.taken[name] = value = at(distribution, self.point[name])
        return value


def params_at(point: Mapping[str, float], objective: Objective) -> dict[str, Any]:
    """The parameters of a recipe at that point."""
    trial = PointTrial(point)
    space.sample(trial, objective)
    return trial.taken


def at(distribution: Any, share: float) -> Any:
    """The value so far along a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        return distribution.low + int(share * (distribution.high - distribution.low + 1))
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    return low * (high / low) ** share if distribution.log else low + share * (high - low)


@dataclass
class Curve:
    """Remembers the epochs; a `search.reporting.Reporter`."""

    epochs: list[EpochResult] = field(default_factory=list)

    def restore(self) -> None:
        """There is nothing to go on from."""

    def between_batches(self, _batch: int, _state: Any) -> None:
        """Nothing is kept."""

    def interrupted(self) -> bool:
        """Ctrl-C raises by itself."""
        return False

    def report(self, result: EpochResult, _state: Any) -> Verdict:
        """Nothing is pruned."""
        self.epochs.append(result)
        return Verdict.GO_ON


def run_one(task: SmallTask, data: Data, candidate: Candidate, seed: int) -> dict[str, Any]:
    """Train a recipe to its end: the values of its epochs and the seconds of the core that it took."""
    recipe = space.recipe_from_params(candidate.params, task.objective)
    seed_everything(seed)
    net = task.objective.task(FixedTrial(dict(task.model)))
    curve, began = Curve(), time.process_time()
    train(net, data, recipe, task.objective, device=torch.device("cpu"), seed=seed, reporter=curve)
    return {
        "task": task.name,
        "recipe": candidate.number,
        "seed": seed,
        "settings": candidate.settings,
        "values": [epoch.value for epoch in curve.epochs],
        "core_seconds": round(time.process_time() - began, 2),
    }


def recorded(file: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """What has been trained, by task, recipe and seed. A last line that was cut short is left out."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            run = json.loads(line)
        except ValueError:
            continue
        found[run["task"], run["recipe"], run["seed"]] = run
    return found


def train_the_rest(file: Path, root: Path, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Train what is not on record yet, a line each as soon as it is done."""
    torch.set_num_threads(1)
    done, recipes = recorded(file), candidates()
    for seed in seeds:
        for task in tasks().values():
            missing = [one for one in recipes if (task.name, one.number, seed) not in done]
            data = task.data(root) if missing else None
            for candidate in missing:
                assert data is not None
                run = run_one(task, data, candidate, seed)
                with file.open("a") as lines:
                    lines.write(json.dumps(run) + "\n")
                yield run
