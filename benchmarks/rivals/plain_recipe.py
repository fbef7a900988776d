"""Dialin's recipe in plain Optuna and plain torch: the same parameters, the same optimizer, the same rate at each step.

`tests/test_race.py` holds it to that. The table of a trial's rates comes from Dialin, which takes no part in the rest:
nobody's search is better or faster for writing the same formulas once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from search import Objective
from search.schedules import SCHEDULES
from search.space import recipe_from_params

Params = Mapping[str, Any]

BASE_RATES = {
    "sgd": 0.1,
    "momentum": 0.01,
    "nesterov": 0.01,
    "adagrad": 0.01,
    "rmsprop": 0.001,
    "adam": 0.001,
    "adamw": 0.001,
    "nadam": 0.001,
    "radam": 0.001,
}
WITH_MOMENTUM = ("momentum", "nesterov")
ADAMS = {"adam": optim.Adam, "adamw": optim.AdamW, "nadam": optim.NAdam, "radam": optim.RAdam}


def suggest(trial: Any, objective: Objective) -> None:
    """Sample everything, the network's knobs last; a define-by-run space as OptunaSearch takes it returns nothing."""
    optimizer = trial.suggest_categorical("optimizer", tuple(BASE_RATES))
    trial.suggest_float("lr_multiple", 0.03, 30.0, log=True)
    if optimizer in WITH_MOMENTUM:
        trial.suggest_float("one_minus_momentum", 0.01, 0.5, log=True)
    elif optimizer in ADAMS:
        trial.suggest_float("one_minus_beta1", 0.01, 0.5, log=True)
        trial.suggest_float("one_minus_beta2", 0.001, 0.1, log=True)
    trial.suggest_float("l2", 1e-6, 1e-2, log=True)
    trial.suggest_categorical("batch_size", objective.batch_sizes)
    schedule = trial.suggest_categorical("schedule", tuple(SCHEDULES))
    trial.suggest_float("warmup", 0.0, 0.1)
    suggest_shape(trial, schedule)
    objective.model(trial)


def suggest_shape(trial: Any, schedule: str) -> None:
    """The parameters that one schedule has and the others do not; lengths are fractions of the run."""
    match schedule:
        case "step":
            trial.suggest_float("step_size", 0.1, 0.5)
            trial.suggest_float("step_gamma", 0.05, 0.8, log=True)
        case "multistep":
            trial.suggest_float("multistep_first", 0.3, 0.7)
            trial.suggest_float("multistep_second", 0.2, 0.8)
            trial.suggest_float("multistep_gamma", 0.05, 0.5, log=True)
        case "exponential":
            trial.suggest_float("exponential_final", 0.001, 0.3, log=True)
        case "linear":
            trial.suggest_float("linear_final", 0.0, 0.1)
        case "cyclic":
            trial.suggest_int("cyclic_cycles", 1, 8)
            trial.suggest_float("cyclic_base", 0.02, 0.5, log=True)
        case "onecycle":
            trial.suggest_float("onecycle_pct_start", 0.1, 0.5)
            trial.suggest_float("onecycle_div", 5.0, 100.0, log=True)
        case "cosine":
            trial.suggest_float("cosine_final", 0.0, 0.1)
        case "cosine_restarts":
            trial.suggest_int("cosine_restarts_cycles", 2, 5)
            trial.suggest_int("cosine_restarts_growth", 1, 2)


def make_optimizer(params: Params, net: nn.Module) -> optim.Optimizer:
    """torch's optimizer; biases do not decay."""
    name = params["optimizer"]
    rate = params["lr_multiple"] * BASE_RATES[name]
    decay = params["l2"] * (100 if name == "adamw" else 1)  # decoupled: it is multiplied by the rate
    spared = {name for name, parameter in net.named_parameters() if parameter.ndim <= 1 or name.endswith("bias")}
    weights = [parameter for name, parameter in net.named_parameters() if name not in spared]
    biases = [parameter for name, parameter in net.named_parameters() if name in spared]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    if name in ADAMS:
        betas = (1 - params["one_minus_beta1"], 1 - params["one_minus_beta2"])
        return ADAMS[name](groups, rate, betas=betas, weight_decay=decay)
    if name == "adagrad":
        return optim.Adagrad(groups, rate, weight_decay=decay)
    if name == "rmsprop":
        return optim.RMSprop(groups, rate, weight_decay=decay)
    momentum = 1 - params["one_minus_momentum"] if name in WITH_MOMENTUM else 0.0
    return optim.SGD(groups, rate, momentum=momentum, nesterov=name == "nesterov", weight_decay=decay)


def make_schedule(params: Params, optimizer: optim.Optimizer, steps: int, objective: Objective) -> LambdaLR:
    """A scheduler to step after each batch of a run of so many: the rates are Dialin's own, from a table."""
    factors = [*recipe_from_params(params, objective).factors(steps).tolist(), 0.0]  # it asks after the last batch too
    return LambdaLR(optimizer, factors.__getitem__)
