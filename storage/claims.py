"""The values that pass between a worker and the storage: who claims, what a lease is, how a trial ended."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.errors import DialinError
from storage.outcomes import Outcome

# Seconds that a lease lasts without being renewed. Long enough for a database that restarts (a second or two)
# and a loaded machine; a dead worker's trial waits this long when nobody saw the worker die.
LEASE_SECONDS = 30.0


def new_uuid() -> str:
    """An identifier made by the client, unique in its table."""
    return uuid.uuid4().hex


class BudgetSpent(DialinError):
    """The study's tickets are all taken: no new trial may start."""


class StudyStopped(DialinError):
    """The study was stopped: no new trial may start, and running ones are handed back."""


class StudyFull(DialinError):
    """The study trains as many trials at once as it may: no other may start or be gone on with until one has ended."""


class EpochsSpent(StudyStopped):
    """The study's budget of epochs is on record: the one to be recorded is beyond it, and its trial is handed back."""


class DrawnMeanwhile(DialinError):
    """Another worker has put the same recipe on record since this one began to draw. Nothing is written."""


class LeaseLost(DialinError):
    """This worker no longer owns the trial: adopted, settled or deleted by another. It must record nothing."""


@dataclass(frozen=True)
class Claimant:
    """The worker for which a storage claims trials. Without one, trials are Optuna's own: no ticket, no lease."""

    worker_id: str
    lease_seconds: float = LEASE_SECONDS


@dataclass(frozen=True)
class Lease:
    """A trial held by a worker. `generation` counts its owners, from 1."""

    trial_id: int
    study_id: int
    worker_id: str
    generation: int
    claim: str


@dataclass(frozen=True)
class GivenUp:
    """A trial that was settled as lost instead of adopted: its number, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that is written and whole. `path` is relative to the study's files, `size` in bytes.

    It holds everything up to `epoch`, the last on record, and so many batches of the one after it.
    """

    epoch: int
    path: str
    sha256: str
    batch: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch leaves in the database; `seconds` of wall time on each of so many `devices`.

    `value` is the searched metric as pruners see it; None where there is nothing for them to see, as within a fold.
    `noted`: what the pruner that has seen it leaves for other trials' decisions, system attributes of Optuna's.
    `ended`: when it did, by this process's `time.monotonic`; None: it ends as it is recorded.
    `told`: user attributes of the trial, which people see beside it.
    """

    epoch: int
    value: float | None
    metrics: Mapping[str, float]
    seconds: float
    samples: int
    device: str
    devices: int = 1
    noted: Mapping[str, Any] = field(default_factory=dict)
    ended: float | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settlement:
    """How a trial ended. `attrs` are shown by optuna-dashboard beside the trial.

    `seconds` of device time were spent since its last epoch on record. What no database takes in a text is replaced
    in `reason`: NUL, and the halves of characters that stand in names of files that cannot be decoded.
    """

    outcome: Outcome
    reason: str = ""
    best_epoch: int | None = None
    weights: Checkpoint | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        storable = self.reason.replace("\0", "?").encode(errors="replace").decode()
        object.__setattr__(self, "reason", storable)
