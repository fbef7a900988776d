"""The interface of a tracker, and the values it is told: what a trial is, each of its epochs, how it ended.

A tracker lives as long as its worker and is told one trial after the other: `start`, `epoch` for every recorded
epoch, `end`. It may raise whatever it likes: `search.trackers.running` sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from storage.file_names import trial_folder

VALUE = "trial_value"
"""The name of a trial's value beside its metrics: a bare function's metric is `value` itself."""
HANDED_BACK = "handed back"
"""The outcome of a trial that another worker will go on with."""

Batches = Callable[[], Iterable[tuple[Any, Any]]]
"""Evaluates the best weights on the validation split: (outputs, targets), a batch at a time."""


@dataclass(frozen=True)
class Point:
    """A recorded epoch (from 1): every metric, `train_loss` and `lr`; `at`: when, in seconds since 1970."""

    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    at: float


@dataclass(frozen=True)
class TrialInfo:
    """A trial that starts, or goes on under another worker.

    Attributes:
        study: the study's name.
        key: a name for the study that is unique also among databases: its folder's.
        number: the trial's number.
        metric: what is searched.
        epochs: a full trial's, of all folds together; 0 where only the objective knows.
        folds: how many follow each other; 1 without folds.
        recipe: knobs by name, numbers or text, the model's own among them.
        summary: the same in one line.
        worker: who trains it.
        resumed_from: the epoch it goes on after; 0 at its start.
        history: the epochs up to that one, as its owners before recorded them. A tracker that writes them again
            leaves one whole curve, whatever the owner before got to write.
        attach: hangs a picture on the trial, where the dashboard shows it.
    """

    study: str
    key: str
    number: int
    metric: str
    epochs: int
    recipe: Mapping[str, float | str] = field(default_factory=dict)
    summary: str = ""
    worker: str = ""
    resumed_from: int = 0
    history: tuple[Point, ...] = ()
    attach: Callable[[Path], None] | None = None
    folds: int = 1

    @property
    def name(self) -> str:
        """As its folder: trial-00012."""
        return trial_folder(self.number)


@dataclass(frozen=True)
class Ending:
    """How a trial ended, or that it was handed back.

    `kept`: among the study's best so far, whose weights are kept. `predict`: None where there is nothing to ask,
    as in a loop of one's own.
    """

    outcome: str
    value: float | None = None
    best_epoch: int | None = None
    reason: str = ""
    kept: bool = False
    predict: Batches | None = None

    @property
    def final(self) -> bool:
        """Whether nobody goes on with the trial."""
        return self.outcome != HANDED_BACK


class Tracker(Protocol):
    """Where a trial can be looked at."""

    def start(self, info: TrialInfo) -> None:
        """A trial starts or goes on; the one before has ended."""

    def epoch(self, point: Point) -> None:
        """An epoch was recorded."""

    def end(self, ending: Ending) -> None:
        """The trial ended: let go of everything."""
