"""How good the built-in objectives get: `dialin run NAME` as a whole process, then its best weights on the test split.

    python -m benchmarks.catalogue adult housing --data DIR --trials 20
    python -m benchmarks.catalogue fashion_mnist --trials 4 --fix optimizer=momentum

What it does not know itself (`--fix`, `--range`, `--pruner`, ...) it hands on to `dialin run`.

For each objective: the best validation value, what the weights of that trial come to on the test split, which no
search has seen, and what good practice reaches, with its source. Where a table is at hand scikit-learn's gradient
boosting is trained on the same rows and measured on the same test rows. One study each: n = 1.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.trial import FixedTrial
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from benchmarks.measured import DIALIN, every_gpu, option_parser, print_header
from search.batches import EvaluationBatches
from search.data import Data, Split
from search.datasets import data_root
from search.evaluation import evaluate
from search.loading import resolve
from search.objective import Objective

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Reference:
    """What good practice reaches, where that is written, and what is different there."""

    value: float
    source: str


REFERENCES = {
    "fashion_mnist": Reference(
        0.926,
        "3 convolutions with pooling, 2 dense layers, dropout; test images; table in zalandoresearch/fashion-mnist",
    ),
    "adult": Reference(
        0.8595,
        "best of 16 algorithms (FSS Naive Bayes, error 14.05%); its own test rows; adult.names of the UCI data set",
    ),
    "housing": Reference(
        47730, "random forest, tuned; its own test rows; Geron, Hands-On Machine Learning, 2nd edition, chapter 2"
    ),
    "shakespeare": Reference(
        1.88,
        "4 layers of width 128 that read 64 characters, 2000 steps; last 10% of the text; README of karpathy/nanoGPT",
    ),
}


def searched(name: str, arguments: Sequence[str], weights: Path) -> tuple[dict[str, Any], dict[str, Any], float]:
    """One study in an empty folder: the best trial as `dialin best` gives it, the study's state, and seconds."""
    with tempfile.TemporaryDirectory() as folder:

        def dialin(*words: str) -> str:
            done = subprocess.run([DIALIN, *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
            return done.stdout

        started = time.perf_counter()
        dialin("run", name, *arguments)
        seconds = time.perf_counter() - started
        (best,) = json.loads(dialin("best", "--format", "json", "--weights", str(weights)))
        return best, json.loads(dialin("status", "--json")), seconds


def measured(objective: Objective, data: Data, knobs: dict[str, Any], weights: Path) -> dict[str, float]:
    """Every metric of the objective on the test split, with the best trial's weights."""
    assert data.test is not None, "it has no test split"
    task = objective.task(FixedTrial(knobs))
    task.net.load_state_dict(torch.load(weights, weights_only=True))
    return evaluate(task, EvaluationBatches(data.test, data, 256, device=CPU), objective.metrics, CPU)


def boosted(name: str, data: Data) -> float | None:
    """Gradient boosting with scikit-learn's defaults on the same rows, measured on the test rows; None: no table."""

    def tensors(part: Split | None) -> list[np.ndarray]:
        assert isinstance(part, tuple)
        return [tensor.numpy() for tensor in part]

    if name == "adult":
        numbers, categories, income = tensors(data.train)
        kinds = [False] * numbers.shape[1] + [True] * categories.shape[1]
        forest = HistGradientBoostingClassifier(categorical_features=kinds, random_state=0)
        forest.fit(np.hstack([numbers, categories]), income)
        numbers, categories, income = tensors(data.test)
        return float(forest.score(np.hstack([numbers, categories]), income))
    if name == "housing":
        inputs, prices, _ = tensors(data.train)
        trees = HistGradientBoostingRegressor(random_state=0).fit(inputs, prices)
        inputs, prices, _ = tensors(data.test)
        return float(np.sqrt(np.mean((trees.predict(inputs) - prices) ** 2)))
    return None


def report(name: str, data_folder: Path, arguments: Sequence[str]) -> None:
    """Search one objective and print what it came to."""
    objective = resolve(name).objective
    print(f"\n{name}: dialin run {name} {' '.join(arguments)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "best.pt"
        best, status, seconds = searched(name, [*arguments, "--data", str(data_folder)], weights)
        data = objective.data(data_folder)
        assert isinstance(data, Data), "it has no split of its own, but folds"
        tested = measured(objective, data, best["model"], weights)
    metric, higher = best["metric"], objective.searched.direction == "maximize"
    print(f"  {status['settled']} trials in {seconds:.0f} s, {best['seconds']:.0f} s of them the best one")
    print(f"  validation {metric} {best['value']:.5g}")
    print("  test       " + ", ".join(f"{key} {value:.5g}" for key, value in tested.items()))
    if (same_rows := boosted(name, data)) is not None:
        print(f"  gradient boosting on the same rows, test: {metric} {same_rows:.5g}")
    if name in REFERENCES:
        reference = REFERENCES[name]
        reached = tested[metric] >= reference.value if higher else tested[metric] <= reference.value
        print(f"  reference  {metric} {reference.value:g} ({reference.source}): {'' if reached else 'NOT '}reached")
    print(f"  with {json.dumps(best['recipe'])} {json.dumps(best['model'])}", flush=True)


def main() -> None:
    """Run the studies and print what they came to."""
    parser = option_parser(__doc__)
    parser.add_argument("names", nargs="*", default=[*REFERENCES], metavar="NAME")
    parser.add_argument("--data", type=Path, default=None)
    for number in ("--trials", "--epochs", "--workers", "--seed"):
        parser.add_argument(number, type=int, default={"--workers": 2, "--seed": 0}.get(number))
    given, others = parser.parse_known_args()
    numbers = {name: getattr(given, name) for name in ("trials", "epochs", "workers", "seed")}
    arguments = [word for name, value in numbers.items() if value is not None for word in (f"--{name}", str(value))]
    arguments += others
    print_header("torch", "optuna", "scikit-learn", gpus=every_gpu())
    for name in given.names:
        report(name, data_root(given.data).absolute(), arguments)


if __name__ == "__main__":
    main()
