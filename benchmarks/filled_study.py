"""Studies of thousands of trials, made in seconds: the rows go into the tables directly. `storage.py` measures on them.

A finished trial has 10 parameters and 30 reported values, and the attributes that its system leaves on one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial, TrialState
from sqlalchemy import Engine, insert

from storage.optuna_internals import models
from storage.tables import EpochRow, OwnerRow, TrialRow

EPOCHS = 30
# When every trial began, in seconds since 1970.
BEGAN = 1.7e9
OPTIMIZERS = ("sgd", "adam", "rmsprop")
_COMMON: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "batch_size": CategoricalDistribution((16, 32, 64, 128)),
    "width": IntDistribution(16, 512, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "warmup": FloatDistribution(0.0, 0.1),
}
_ATTRS = {
    "recipe": "adam lr 0.0013 L2 3e-05, batches of 64, cosine",
    "settings": {"optimizer": "adam", "lr": 0.0013, "weight_decay": 3e-05, "batch_size": 64, "schedule": "cosine"},
    "lr": 0.0013,
    "model": {"width": 128, "dropout": 0.25},
    "device": "cpu",
    "outcome": "complete",
    "seconds": 31.25,
    "epochs": EPOCHS,
    "best_epoch": 27,
}


def distributions(optimizer: str) -> dict[str, BaseDistribution]:
    """The ten parameters of a trial; three are there for this optimizer only."""
    own = {
        f"{optimizer}_momentum": FloatDistribution(0.01, 0.5, log=True),
        f"{optimizer}_schedule": CategoricalDistribution(("constant", "step", "cosine")),
        f"{optimizer}_clip": FloatDistribution(0.1, 10.0, log=True),
    }
    return {"optimizer": CategoricalDistribution(OPTIMIZERS), **_COMMON, **own}


def suggest(trial: BaseTrial) -> None:
    """The same ten, suggested."""
    optimizer = trial.suggest_categorical("optimizer", OPTIMIZERS)
    for name, one in distributions(optimizer).items():
        if isinstance(one, CategoricalDistribution):
            trial.suggest_categorical(name, one.choices)
        elif isinstance(one, IntDistribution):
            trial.suggest_int(name, one.low, one.high, log=one.log)
        elif isinstance(one, FloatDistribution):
            trial.suggest_float(name, one.low, one.high, log=one.log)


def fill(engine: Engine, study_id: int, count: int, *, own: bool) -> None:
    """Finished trials, half of them COMPLETE, the others PRUNED after all. `own`: with what Dialin leaves of them."""
    draw = random.Random(0)
    for first in range(0, count, 1000):
        numbers = range(first, min(count, first + 1000))
        states = [TrialState.COMPLETE if number % 2 else TrialState.PRUNED for number in numbers]
        ids = _trials(engine, study_id, numbers, states)
        _write(engine, models.TrialParamModel, (row for one in ids for row in _params(one, draw)))
        _write(engine, models.TrialIntermediateValueModel, (row for one in ids for row in _curve(one, EPOCHS, draw)))
        _write(engine, models.TrialValueModel, (_finite(one, "value", draw) | {"objective": 0} for one in ids))
        _write(engine, models.TrialSystemAttributeModel, (row for one in ids for row in _noted(one, own, draw)))
        if own:
            _write(engine, models.TrialUserAttributeModel, (row for one in ids for row in _attrs(one, _ATTRS)))
            _write(engine, TrialRow, (_own_trial(one, study_id) for one in ids))
            _write(engine, OwnerRow, (_owner(one) for one in ids))
            _write(engine, EpochRow, (_epoch(one, epoch, draw) for one in ids for epoch in range(1, EPOCHS + 1)))


def fill_unfinished(engine: Engine, study_id: int, first: int, count: int, state: TrialState) -> None:
    """WAITING trials as `enqueue_trial` makes them, or RUNNING ones with half of their values."""
    draw = random.Random(1)
    ids = _trials(engine, study_id, range(first, first + count), [state] * count)
    if state is TrialState.WAITING:
        noted = {"fixed_params": {"lr": 0.01, "width": 64}}
        _write(engine, models.TrialSystemAttributeModel, (row for one in ids for row in _attrs(one, noted)))
        return
    _write(engine, models.TrialParamModel, (row for one in ids for row in _params(one, draw)))
    _write(engine, models.TrialIntermediateValueModel, (row for one in ids for row in _curve(one, EPOCHS // 2, draw)))


def _trials(engine: Engine, study_id: int, numbers: range, states: Sequence[TrialState]) -> list[int]:
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [
        {
            "study_id": study_id,
            "number": number,
            "state": state,
            "datetime_start": now,
            "datetime_complete": now if state.is_finished() else None,
        }
        for number, state in zip(numbers, states, strict=True)
    ]
    table = models.TrialModel.__table__
    with engine.begin() as connection:
        made = connection.execute(insert(table).returning(table.c.trial_id, sort_by_parameter_order=True), rows)
        return [trial_id for (trial_id,) in made]


def _write(engine: Engine, model: Any, rows: Iterator[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(model.__table__), list(rows))


def _params(trial_id: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    for name, one in distributions(draw.choice(OPTIMIZERS)).items():
        if isinstance(one, CategoricalDistribution):
            value = float(draw.randrange(len(one.choices)))
        else:
            assert isinstance(one, FloatDistribution | IntDistribution)
            value = draw.uniform(one.low, one.high)
            value = float(round(value)) if isinstance(one, IntDistribution) else value
        text = optuna.distributions.distribution_to_json(one)
        yield {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}


def _curve(trial_id: int, epochs: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    return (_finite(trial_id, "intermediate_value", draw) | {"step": step} for step in range(1, epochs + 1))


def _finite(trial_id: int, name: str, draw: random.Random) -> dict[str, Any]:
    return {"trial_id": trial_id, name: draw.uniform(0.1, 0.9), f"{name}_type": "FINITE"}


def _noted(trial_id: int, own: bool, draw: random.Random) -> Iterator[dict[str, Any]]:
    drawn: dict[str, Any] = {"tpe:relative_params:0": json.dumps({"lr": draw.random(), "width": 64, "dropout": 0.25})}
    if own:  # Hyperband, the default
        drawn |= {f"completed_rung_{rung}": draw.uniform(0.1, 0.9) for rung in range(3)}
    return _attrs(trial_id, drawn)


def _attrs(trial_id: int, attrs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return ({"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items())


def _own_trial(trial_id: int, study_id: int) -> dict[str, Any]:
    unique = f"{trial_id:032d}"
    told = {"outcome": "complete" if trial_id % 2 else "pruned", "reason": "", "best_epoch": 27}
    return {"trial_id": trial_id, "study_id": study_id, "ticket": unique, "settlement": unique} | told | _TIMES


_TIMES = {"started_at": BEGAN, "settled_at": BEGAN + 60}


def _owner(trial_id: int) -> dict[str, Any]:
    unique = f"{trial_id:032d}"
    spent = {"recorded": 1, "began_at": BEGAN, "ended_at": BEGAN + 60, "ending": "settled"}
    return {"trial_id": trial_id, "generation": 1, "worker_id": unique, "claim": unique} | spent


def _epoch(trial_id: int, epoch: int, draw: random.Random) -> dict[str, Any]:
    metrics = json.dumps({"accuracy": draw.uniform(0.1, 0.9), "loss": draw.random()})
    cost = {"seconds": 1.0, "samples": 1000, "device": "cpu", "devices": 1, "ended_at": BEGAN + epoch}
    unique = {"generation": 1, "worker_id": f"{trial_id:032d}"}
    return {"trial_id": trial_id, "epoch": epoch, "metrics": metrics} | cost | unique
