"""Studies made up from a formula, for rules of advice: what is true of them is known, and each is made in no time.

A recipe's final loss is the sum of what each of its knobs costs; its curve falls to that exponentially, with noise.
Recipes are drawn at random or by TPE, and pruned against the median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.advice import Finding, advise
from storage.details import EpochLine
from storage.outcomes import Outcome
from storage.records import RecordedTrial
from storage.studies import StudyRecord
from storage.tables import StudyState

Cost = Callable[[Mapping[str, Any]], float]

SPACE: Mapping[str, BaseDistribution] = {
    "optimizer": CategoricalDistribution(("momentum", "adam", "adamw", "sgd")),
    "lr_multiple": FloatDistribution(0.03, 30.0, log=True),
    "l2": FloatDistribution(1e-6, 1e-2, log=True),
    "batch_size": CategoricalDistribution((16, 32, 64, 128)),
    "schedule": CategoricalDistribution(("constant", "onecycle", "cosine")),
    "warmup": FloatDistribution(0.0, 0.1),
    "width": IntDistribution(8, 64, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
}
OWN = ("width", "dropout")


def bowl(knob: str, best: float, steep: float) -> Cost:
    """What a knob costs by its distance from its best value, in decades."""
    return lambda recipe: steep * math.log10(recipe[knob] / best) ** 2


# Every knob has its say, and the best of each lies well inside.
USUAL: tuple[Cost, ...] = (
    lambda recipe: {"momentum": 0.0, "adam": 0.004, "adamw": 0.002, "sgd": 0.01}[recipe["optimizer"]],
    bowl("lr_multiple", 1.0, 0.06),
    bowl("l2", 1e-4, 0.01),
    lambda recipe: 0.02 * abs(math.log2(recipe["batch_size"] / 45)),
    lambda recipe: {"constant": 0.008, "onecycle": 0.0, "cosine": 0.003}[recipe["schedule"]],
    lambda recipe: 12 * (recipe["warmup"] - 0.05) ** 2,
    bowl("width", 22.0, 0.1),
    lambda recipe: 0.3 * (recipe["dropout"] - 0.25) ** 2,
)


@dataclass(frozen=True)
class Made:
    """How a study is made.

    Attributes:
        costs: of the knobs, above the least loss.
        tau: epochs in which a curve falls to a third of what is left to fall.
        seed_noise, epoch_noise: deviations of a recipe's loss by seed, and of each epoch's.
        diverges: which recipes do, in their second epoch.
        seconds: of an epoch of a recipe.
        bend: what is added to the value from an epoch on, as of over-fitting.
        blur: how much an epoch's value is worse by chance, as before ranks say anything.
        samples: an accuracy of so many validation samples, in place of a loss.
    """

    costs: tuple[Cost, ...] = USUAL
    trials: int = 60
    epochs: int = 12
    tau: float = 1.5
    seed_noise: float = 0.002
    epoch_noise: float = 0.001
    diverges: Callable[[Mapping[str, Any]], bool] = lambda recipe: False
    seconds: Callable[[Mapping[str, Any]], float] = lambda recipe: 1.0
    bend: Callable[[int], float] = lambda epoch: 0.0
    blur: Callable[[int], float] = lambda epoch: 0.0
    samples: int | None = None
    space: Mapping[str, BaseDistribution] = field(default_factory=lambda: SPACE)
    sampler: str = "random"
    pruned: bool = True
    least: float = 0.05


def study_of(made: Made, **changes: Any) -> StudyRecord:
    """The record of such a study."""
    record = StudyRecord(
        objective="net.py",
        objective_sha256="0" * 64,
        metric="accuracy" if made.samples else "loss",
        direction="maximize" if made.samples else "minimize",
        epochs=made.epochs,
        trials=made.trials,
        seed=0,
        sampler="auto",
        pruner="none",
        study_id=1,
        name="net-1",
        uid="0" * 32,
        taken=made.trials,
        returned=0,
        state=StudyState.RUNNING,
        reason="",
        created_at=0.0,
    )
    return replace(record, **changes)


def trials_of(made: Made, seed: int = 0) -> list[RecordedTrial]:
    """Its trials, drawn and pruned one after the other."""
    rng = np.random.default_rng(seed)
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=samplers[made.sampler](seed=seed))
    curves: list[list[float]] = []
    found = []
    for number in range(made.trials):
        asked = study.ask(dict(made.space))
        trial, curve = _trained(made, number, asked, curves, rng)
        curves.append(curve)
        pruned = trial.outcome is not Outcome.COMPLETE
        for step, value in enumerate(curve, start=1):
            asked.report(value, step)
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        study.tell(asked, None if pruned else min(curve), state)
        found.append(trial)
    optuna.logging.set_verbosity(level)
    return found


def _trained(
    made: Made, number: int, asked: Any, before: list[list[float]], rng: np.random.Generator
) -> tuple[RecordedTrial, list[float]]:
    recipe = asked.params
    final = made.least + sum(cost(recipe) for cost in made.costs) + rng.normal(0, made.seed_noise)
    curve: list[float] = []
    outcome, reason = Outcome.COMPLETE, ""
    for epoch in range(1, made.epochs + 1):
        falls = math.exp(-epoch / made.tau)
        value = final + falls * (1 - final) + made.bend(epoch) + rng.normal(0, made.epoch_noise)
        blur = made.blur(epoch)
        curve.append(value + abs(rng.normal(0, blur)) if blur else value)
        if made.diverges(recipe) and epoch == 2:
            outcome, reason, curve[-1] = Outcome.DIVERGED, "train_loss is nan in epoch 2", math.nan
            break
        others = [min(other[:epoch]) for other in before if len(other) >= epoch and not math.isnan(other[-1])]
        if made.pruned and 3 <= epoch < made.epochs and len(others) >= 5 and min(curve) > np.median(others):
            outcome, reason = Outcome.PRUNED, f"pruned after epoch {epoch} of {made.epochs}"
            break
    return _recorded(made, number, asked, curve, (outcome, reason)), curve


def _recorded(made: Made, number: int, asked: Any, curve: list[float], ended: tuple[Outcome, str]) -> RecordedTrial:
    values = [_shown(made, value) for value in curve]
    seconds = made.seconds(asked.params)
    epochs = tuple(
        EpochLine(
            epoch, value, _metrics(made, value, epoch), seconds, 1000, "cpu", ended_at=float(number * 100 + epoch)
        )
        for epoch, value in enumerate(values, start=1)
    )
    best = (max if made.samples else min)((v for v in values if not math.isnan(v)), default=None)
    complete = ended[0] is Outcome.COMPLETE
    own = {name: asked.params[name] for name in OWN if name in asked.params}
    return RecordedTrial(
        number=number,
        state=ended[0].value,
        outcome=ended[0],
        reason=ended[1],
        value=best if complete else values[-1],
        best_epoch=1 + values.index(best) if best is not None else None,
        params=asked.params,
        distributions=asked.distributions,
        recipe={name: value for name, value in asked.params.items() if name not in own}
        | {"lr": 0.1, "weight_decay": 0.0},
        model=own,
        epochs=epochs,
        started_at=float(number * 100),
        settled_at=float(number * 100 + len(curve)),
    )


def _shown(made: Made, loss: float) -> float:
    if made.samples is None or math.isnan(loss):
        return loss
    return round(min(1.0, max(0.0, 1 - loss)) * made.samples) / made.samples


def _metrics(made: Made, value: float, epoch: int) -> dict[str, float]:
    """The training loss falls to the end, whatever becomes of the value."""
    metric = "accuracy" if made.samples else "loss"
    return {metric: value, "train_loss": 0.8 * math.exp(-epoch / made.tau) + 0.4 / (epoch + 1), "lr": 0.1}


def found(made: Made, seed: int = 0, **study: Any) -> dict[str, list[Finding]]:
    """What is said of a made study, by rule."""
    advice = advise(study_of(made, **study), trials_of(made, seed))
    said: dict[str, list[Finding]] = {}
    for finding in advice.findings:
        said.setdefault(finding.rule, []).append(finding)
    return said
