"""What is searched: the recipe, the knobs it is sampled from, where a search starts.

Called by the worker (`sample`), by a preview (`recipe_from_params`), by a new study (`starting_points`) and by
`dialin objectives` (`describe`). One walk over the knobs, `_walk`, serves the first three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import BaseTrial, FixedTrial

from search import optimizers, schedules
from search.errors import ObjectiveError
from search.knobs import Knob, choice, floating
from search.narrowing import model_wishes, narrow_knob, narrowed, nearest, real_knob
from search.optimizers import Momentum, Optimizer
from search.schedules import Schedule

if TYPE_CHECKING:
    from search.objective import Objective

__all__ = ["Knob", "Recipe", "describe", "recipe_from_params", "sample", "starting_points"]

Ask = Callable[[Knob], Any]

# One parameter for all optimizers, because samplers that model jointly see only what every trial has. A
# decade and a half on both sides of what practice starts from.
LR_MULTIPLE = floating(
    "lr_multiple", 0.03, 30.0, 1.0, "learning rate, in multiples of the optimizer's base rate", log=True
)
# He et al. 2016: 1e-4; Zagoruyko & Komodakis 2016: 5e-4.
USUAL_L2 = 1e-4
L2 = floating("l2", 1e-6, 1e-2, USUAL_L2, "L2 coefficient; a decoupled weight decay is 100 times that", log=True)
# torch's AdamW decays with 0.01 where its SGD users take an L2 of 1e-4: a decoupled decay is multiplied by
# the rate, and Adam's rates are smaller.
DECOUPLED = 100.0
# Goyal et al. 2017: 5 of 90 epochs.
WARMUP = floating("warmup", 0.0, 0.1, 0.0, "linear warm-up, as a fraction of the run")
# Where searches start, most trusted first: optimizer, schedule, warm-up. Smith & Topin 2018 for the first,
# Kingma & Ba 2015 for the second, Loshchilov & Hutter 2019 and Goyal et al. 2017 for the third.
STARTS = (("momentum", "onecycle", 0.0), ("adam", "constant", 0.0), ("adamw", "cosine", 0.05))
USUAL_BATCH = 32
# A handful: enough to meet each branch of a model with two or three choices.
MODELS_TRIED = 8


@dataclass(frozen=True)
class Recipe:
    """The sampled training knobs as real values: the rate itself, not its multiple.

    `momentum` and `betas` are None where the optimizer has none; `weight_decay` is what torch's optimizer
    gets (an L2 coefficient, or a decoupled decay); `shape` are the schedule's knobs and `extra` the
    optimizer's own ones, by their names in Optuna; `warmup` is a fraction of the run.
    """

    optimizer: Optimizer
    lr: float
    weight_decay: float
    batch_size: int
    schedule: Schedule
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    shape: Mapping[str, float] = field(default_factory=dict, hash=False)
    warmup: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for given, takes in ((self.momentum, Momentum.MOMENTUM), (self.betas, Momentum.BETAS)):
            if (given is not None) != (self.optimizer.momentum is takes):
                has = "needs" if given is None else "has no"
                raise ValueError(f"optimizer {self.optimizer.name!r} {has} {takes}")

    @property
    def rows(self) -> tuple[Optimizer, Schedule]:
        """The rows of both tables."""
        return self.optimizer, self.schedule

    def factors(self, steps: int) -> torch.Tensor:
        """The factor of `lr` at each of `steps` optimizer steps, the whole run: float64 of shape (steps,)."""
        return schedules.factors(self.schedule, self.shape, steps, self.warmup)

    def summary(self) -> str:
        """One line for people: `momentum lr 0.021 momentum 0.93 L2 1e-4 batch 32 onecycle warm-up 3%`."""
        words = [self.optimizer.name, f"lr {_short(self.lr)}"]
        if self.momentum is not None:
            words.append(f"momentum {self.momentum:.3g}")
        if self.betas is not None:
            words.append(f"beta1 {self.betas[0]:.3g} beta2 {self.betas[1]:.3g}")
        words += [f"{name.removeprefix(self.optimizer.name + '_')} {value}" for name, value in self.extra.items()]
        words.append(f"{'weight decay' if self.optimizer.decoupled else 'L2'} {_short(self.weight_decay)}")
        words += [f"batch {self.batch_size}", self.schedule.name]
        if self.warmup > 0:
            words.append(f"warm-up {100 * self.warmup:.2g}%")
        return " ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """Flat and JSON-able, with torch's names; what the optimizer does not have is left out."""
        values: dict[str, Any] = {"optimizer": self.optimizer.name, "lr": self.lr}
        if self.momentum is not None:
            values["momentum"] = self.momentum
        if self.betas is not None:
            values["betas"] = list(self.betas)
        values |= {**self.extra, "weight_decay": self.weight_decay, "batch_size": self.batch_size}
        return values | {"schedule": self.schedule.name, **self.shape, "warmup": self.warmup}


def _short(value: float) -> str:
    """Two digits, small ones as `1e-4`."""
    if value == 0 or abs(value) >= 0.001:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def in_words(params: Mapping[str, Any]) -> str:
    """Parameters in one line for people: `lr 0.021 layers 3`."""
    return " ".join(f"{name} {_short(value) if isinstance(value, float) else value}" for name, value in params.items())


def sample(trial: BaseTrial, objective: Objective) -> Recipe:
    """The recipe that a trial suggests. What has one choice only is not suggested."""
    return _walk(lambda knob: knob.suggest(trial), objective)


def recipe_from_params(params: Mapping[str, Any], objective: Objective) -> Recipe:
    """The recipe of a trial's parameters (the model's own among them are not looked at).

    Raises ObjectiveError when they are not from this objective's space.
    """
    trial = FixedTrial(dict(params))

    def ask(knob: Knob) -> Any:
        _check_belongs(params, knob)
        return knob.suggest(trial)

    return _walk(ask, objective)


def _check_belongs(params: Mapping[str, Any], knob: Knob) -> None:
    foreign = "these parameters are not from this objective's space: "
    if knob.name not in params:
        if not knob.fixed:
            raise ObjectiveError(f"{foreign}they have no {knob.name!r}")
        return
    value, distribution = params[knob.name], knob.distribution
    if isinstance(distribution, CategoricalDistribution) and value not in distribution.choices:
        raise ObjectiveError(f"{foreign}{knob.name} is {value!r}, but can only be {knob.range}")


def starting_points(objective: Objective) -> list[dict[str, Any]]:
    """Up to three parameter dicts for a study's first trials: momentum, adam and adamw at their base rates.

    Optimizers that the objective does not have are replaced with its first other ones. Every knob of the
    recipe that would be suggested is in them; the model's own are left to the sampler.
    """
    rows = optimizers.resolve_all(objective.optimizers)
    usual = {name: (schedule, warmup) for name, schedule, warmup in STARTS}
    names = [name for name in usual if name in rows] + [name for name in rows if name not in usual]
    points = []
    for name in names[: len(STARTS)]:
        schedule, warmup = usual.get(name, ("cosine", 0.0))
        points.append(nearest_params({"optimizer": name, "schedule": schedule, "warmup": warmup}, objective))
    return points


def default_params(objective: Objective) -> dict[str, Any]:
    """The parameters of a trial in which every knob of the recipe takes its default."""
    return nearest_params({}, objective)


def nearest_params(wanted: Mapping[str, Any], objective: Objective) -> dict[str, Any]:
    """The parameters a trial suggests if each knob takes what is nearest to its value in `wanted`, else its default."""
    params: dict[str, Any] = {}

    def ask(knob: Knob) -> Any:
        value = nearest(wanted.get(knob.name, knob.default), knob.distribution)
        if not knob.fixed:
            params[knob.name] = value
        return value

    _walk(ask, objective)
    return params


def describe(objective: Objective) -> list[Knob]:
    """Every knob a trial may have, the recipe's in the order they are sampled, then the model's own.

    The model's are read from the trials of a study in memory. A knob that only some models have is known only
    if one of a handful of random ones (the same ones every time) has it, so a rare one can be missing.

    Raises ObjectiveError when the model takes a name of the recipe's; what the model raises passes through.
    """
    knobs = recipe_knobs(objective) if objective.function is None else []
    models = model_knobs(objective)
    refuse_taken_names(objective, (knob.name for knob in models))
    return knobs + models


def refuse_taken_names(objective: Objective, names: Iterable[str]) -> None:
    """Raises ObjectiveError when a model that suggests `names` takes one of the recipe's."""
    taken = sorted({knob.name for knob in recipe_knobs(objective)} & {*names})
    if taken:
        raise ObjectiveError(f"the model suggests {taken[0]!r}, a name of the recipe's own: name it otherwise")


def recipe_knobs(objective: Objective) -> list[Knob]:
    """The recipe's knobs with the condition under which each is sampled. Runs no code of the objective's."""
    optimizer, schedule = _optimizer_knob(objective), _schedule_knob(objective)
    rows = optimizers.resolve_all(objective.optimizers).values()
    shapes = schedules.resolve_all(objective.schedules).values()
    knobs = [
        optimizer,
        _rate_knob(objective),
        *_conditional(optimizer.name, rows, objective),
        _decay_knob(objective),
        _batch_knob(objective),
        schedule,
        narrow_knob(objective.knobs, WARMUP),
    ]
    return knobs + _conditional(schedule.name, shapes, objective)


def units(objective: Objective) -> dict[str, dict[str, float]]:
    """Of each optimizer what one unit of the knobs is in torch's units that are sampled in multiples."""
    own = optimizers.resolve_all(objective.optimizers)
    return {
        name: {LR_MULTIPLE.name: row.base_lr, L2.name: DECOUPLED if row.decoupled else 1.0}
        for name, row in {**optimizers.OPTIMIZERS, **own}.items()
    }


def _conditional(name: str, rows: Any, objective: Objective) -> list[Knob]:
    users: dict[Knob, list[str]] = {}
    for row in rows:
        for knob in row.knobs:
            users.setdefault(narrow_knob(objective.knobs, knob), []).append(row.name)
    return [
        knob if len(names) == len(rows) else replace(knob, condition=f"{name}: {', '.join(names)}")
        for knob, names in users.items()
    ]


def model_knobs(objective: Objective) -> list[Knob]:
    """The knobs that `objective.model` suggests for itself: see `describe`."""
    if objective.trains_itself:
        return []  # what it suggests is known only when it trains
    seen: list[dict[str, BaseDistribution]] = []
    wishes = model_wishes(objective)
    with torch.random.fork_rng(devices=[]):
        for trial in random_trials():
            # A model may refuse a combination; what it asked for until then counts.
            with suppress(optuna.TrialPruned):
                objective.model(narrowed(trial, wishes))
            seen.append(trial.distributions)
            if not trial.distributions:
                break  # it asked for nothing, so nothing can make it ask
    first = {name: found[name] for found in reversed(seen) for name in found}
    return [_model_knob(name, first[name], seen) for name in dict.fromkeys(n for found in seen for n in found)]


def _model_knob(name: str, distribution: BaseDistribution, seen: list[dict[str, BaseDistribution]]) -> Knob:
    always = all(name in found for found in seen)
    varies = any(found.get(name, distribution) != distribution for found in seen)
    text = "the model's own" + ("; its range depends on the model's other knobs" if varies else "")
    return Knob(name, distribution, text=text, condition="" if always else "some models", varies=varies)


def random_trials(count: int = MODELS_TRIED) -> Iterator[optuna.Trial]:
    """So many trials in memory to try a model with, the same ones every time."""
    return trials_in_memory(count, optuna.samplers.RandomSampler(seed=0))


def trials_in_memory(count: int, sampler: optuna.samplers.BaseSampler) -> Iterator[optuna.Trial]:
    """So many trials of a study that nobody stores."""
    level = optuna.logging.get_verbosity()
    # Optuna would log a line about a study that nobody asked for.
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        study = optuna.create_study(sampler=sampler)
    finally:
        optuna.logging.set_verbosity(level)
    for _ in range(count):
        yield study.ask()


def _optimizer_knob(objective: Objective) -> Knob:
    names = tuple(optimizers.resolve_all(objective.optimizers))
    default = next((start[0] for start in STARTS if start[0] in names), names[0])
    return choice("optimizer", names, default, "how gradients become steps")


def _schedule_knob(objective: Objective) -> Knob:
    names = tuple(schedules.resolve_all(objective.schedules))
    default = next((start[1] for start in STARTS if start[1] in names), names[0])
    return choice("schedule", names, default, "how the learning rate changes over the run")


def _rate_knob(objective: Objective, row: Optimizer | None = None) -> Knob:
    """The rate as a multiple of a base rate, or itself where a person says what it is; its default is the row's."""
    base = (row or next(iter(optimizers.resolve_all(objective.optimizers).values()))).base_lr
    real = real_knob(objective.knobs, "lr", base, "learning rate, for any optimizer")
    return real or narrow_knob(objective.knobs, LR_MULTIPLE)


def _decay_knob(objective: Objective, row: Optimizer | None = None) -> Knob:
    """The L2 coefficient, or what torch's optimizer gets where a person says that."""
    default = USUAL_L2 * (DECOUPLED if row and row.decoupled else 1.0)
    real = real_knob(objective.knobs, "weight_decay", default, "weight decay as torch's optimizer takes it")
    return real or narrow_knob(objective.knobs, L2)


def _batch_knob(objective: Objective) -> Knob:
    sizes = tuple(objective.batch_sizes)
    nearest = min(sizes, key=lambda size: abs(size - USUAL_BATCH))
    return choice("batch_size", sizes, nearest, "samples in a batch")


def _walk(ask: Ask, objective: Objective) -> Recipe:
    """Asks for each knob in turn; the one place that knows what a recipe is made of."""
    knobs = objective.knobs
    row = optimizers.resolve_all(objective.optimizers)[ask(_optimizer_knob(objective))]
    rate = ask(rate_knob := _rate_knob(objective, row))
    values = {knob.name: ask(narrow_knob(knobs, knob)) for knob in row.knobs}
    decay = ask(decay_knob := _decay_knob(objective, row))
    batch_size = ask(_batch_knob(objective))
    schedule = schedules.resolve_all(objective.schedules)[ask(_schedule_knob(objective))]
    warmup = ask(narrow_knob(knobs, WARMUP))
    shape = {knob.name: ask(narrow_knob(knobs, knob)) for knob in schedule.knobs}
    momentum, betas = None, None
    if row.momentum is Momentum.MOMENTUM:
        momentum = 1 - values["one_minus_momentum"]
    if row.momentum is Momentum.BETAS:
        betas = (1 - values["one_minus_beta1"], 1 - values["one_minus_beta2"])
    return Recipe(
        optimizer=row,
        lr=rate if rate_knob.name == "lr" else rate * row.base_lr,
        weight_decay=decay * (DECOUPLED if row.decoupled and decay_knob.name == "l2" else 1.0),
        batch_size=batch_size,
        schedule=schedule,
        momentum=momentum,
        betas=betas,
        shape=shape,
        warmup=warmup,
        extra={knob.name: values[knob.name] for knob in row.extra},
    )
