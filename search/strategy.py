"""What trains next, and whether a trial goes on: the interface that real and simulated workers drive alike.

A strategy is (nearly) a function of what is on record, so that every worker decides by itself and nothing but the
trials is stored. Optuna stays the sampler and the study of record. `search.samplers` has the adapter over Optuna's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from optuna.distributions import BaseDistribution


class SeenState(Enum):
    """How a trial stands. PRUNED: stopped early, or diverged."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True)
class Seen:
    """One trial as a strategy sees it.

    Args:
        recipe: its parameters by name, as Optuna's `trial.params`, and `distributions` what each was drawn from; empty
            where today's space could not have drawn it.
        values: the searched metric by epoch (from 1). Lower is better, always: the caller flips its sign.
        seconds: of training so far; 0 where nobody knows.
        origin: what it was started for, as `Start.origin`; "" where nobody knows.
        feasible: it violates no constraint so far.
    """

    number: int
    recipe: Mapping[str, Any]
    values: Mapping[int, float]
    state: SeenState
    seconds: float = 0.0
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict, hash=False)
    origin: str = ""
    feasible: bool = True


@dataclass(frozen=True)
class Left:
    """What is left of the study's budget: trials that may still start, epochs and seconds of all trials together."""

    trials: float = math.inf
    epochs: float = math.inf
    seconds: float = math.inf


@dataclass(frozen=True)
class Start:
    """A new trial: of this recipe, or (None) of whatever the sampler draws.

    Parameters that the recipe does not name are the sampler's to draw. `origin` is for people: `tpe`, `model`,
    `default of adamw`, `won study X`.
    """

    recipe: Mapping[str, Any] | None
    origin: str


@dataclass(frozen=True)
class GoOn:
    """That paused trial goes on."""

    number: int


class Verdict(Enum):
    """After an epoch of a trial. PAUSE: it may go on later, under any worker, from where it is."""

    GO_ON = "go on"
    PAUSE = "pause"
    STOP = "stop"


class Strategy(Protocol):
    """`seen` are all trials of the study, in the order of their numbers."""

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        """What a worker with nothing to do trains; None: nothing that is worth it. No `Start` without trials left."""

    def verdict(self, number: int, seen: Sequence[Seen], left: Left, may_pause: bool = True) -> Verdict:
        """After an epoch of trial `number`, which `seen` has with that epoch, but not after its last one.

        `may_pause`: it could go on later. Where it could not, PAUSE means GO_ON.
        """
