"""What passes between whoever trains a trial and the world around it: epochs, verdicts, how it ended.

`search.training` and a person's own loop report; `search.reporter` takes it to the database and the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from storage.outcomes import Outcome


class Verdict(Enum):
    """What a reporter says after an epoch."""

    GO_ON = "go on"
    PRUNE = "prune"
    PAUSE = "pause"
    HAND_BACK = "hand back"


class Interrupted(BaseException):
    """The reporter took the trial back; what was trained since the last report is forgotten.

    No Exception, as KeyboardInterrupt is none: it passes through a person's own `except Exception`.
    """


class Paused(Interrupted):
    """The trial is let go for now, all of it on record and in a checkpoint."""


@dataclass(frozen=True)
class EpochResult:
    """One epoch (from 1) on record. `metrics`: every metric by name, `train_loss`, `lr` of the last step.

    `value` None: nothing that a pruner should look at. `resumable`: its state holds all that training goes on from.
    `at_once`: whoever trains keeps checkpoints of its own, and goes on after it when it is taken over.
    """

    epoch: int
    value: float | None
    metrics: dict[str, float]
    seconds: float
    samples: int
    resumable: bool = True
    at_once: bool = False


class Reporter(Protocol):
    """All that training knows of the world around it."""

    def restore(self) -> dict[str, Any] | None:
        """The checkpoint state to go on from, None to start."""

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        """Called once an epoch. During it, `state()` makes a checkpoint state, which may be written later.

        None: there is nothing to go on from, and a trial that is taken over begins again.
        """

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        """Called between two batches, so many of them after the last report, where `state()` can be gone on from."""

    def interrupted(self) -> bool:
        """Asked before every batch: True ends training at once."""


@dataclass(frozen=True)
class Result:
    """How it ended. value, best_epoch and weights (a state_dict on the CPU) are the best epoch's, if any."""

    outcome: Outcome
    value: float | None = None
    best_epoch: int | None = None
    reason: str = ""
    weights: dict[str, Any] | None = None
