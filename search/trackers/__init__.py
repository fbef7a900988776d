"""Where people look at trials besides Dialin's own commands: TensorBoard, W&B, MLflow, pictures in the dashboard.

`--log NAME` on the command line names them; a worker makes `Trackers` of the names and tells them what it trains.
Importing this, or asking `check`, imports none of their libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.trackers.plain import Plain
from search.trackers.running import Background, Direct, Guarded, Trackers
from search.trackers.tracker import HANDED_BACK, Ending, Point, Tracker, TrialInfo
from storage.errors import UsageError

__all__ = [
    "HANDED_BACK",
    "TRACKERS",
    "Ending",
    "Point",
    "Row",
    "Tracker",
    "Trackers",
    "TrialInfo",
    "check",
    "make_trackers",
]


@dataclass(frozen=True)
class Row:
    """One tracker: `make` is its class below this package, `module` what that imports, `install` what pip is told.

    One in the background may be as slow as the network; one that is not has the worker wait for it.
    """

    name: str
    make: str
    module: str
    install: str
    text: str
    background: bool = True

    def tracker(self, folder: Path) -> Tracker:
        """Import it and make one that writes below the study's `folder`."""
        module, _, name = self.make.partition(":")
        made: Tracker = getattr(importlib.import_module(f"{__name__}.{module}"), name)(folder)
        return made


_ROWS = (
    Row("tensorboard", "tensorboard:TensorBoard", "tensorboard", "dialin[tensorboard]", "scalars, recipes compared"),
    Row("wandb", "wandb:WeightsAndBiases", "wandb", "dialin[wandb]", "a run a trial, offline where there is no login"),
    Row("mlflow", "mlflow:MLflow", "mlflow", "dialin[mlflow]", "a run a trial, on a server or in a local file"),
    Row("plots", "plots:Plots", "matplotlib", "matplotlib", "pictures of the best trials, in the dashboard", False),
)
TRACKERS = {row.name: row for row in _ROWS}


def check(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in their order. UsageError: one is unknown, or its library is not installed here."""
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in TRACKERS:
            raise UsageError(f"--log must be one of {', '.join(TRACKERS)}, but got {name!r}")
        row = TRACKERS[name]
        if importlib.util.find_spec(row.module) is None:
            raise UsageError(f"--log {name} needs {row.module}, which is not installed: pip install '{row.install}'")
    return chosen


def make_trackers(names: Sequence[str], folder: Path) -> Trackers:
    """For one worker: the trial's own log, always, and those named, which write below the study's `folder`.

    A library that is missing on this machine is found out when the first trial starts, and costs a warning.
    """
    guarded: list[Guarded] = [Direct("log.txt", Plain)]
    for row in (TRACKERS[name] for name in names):
        kind = Background if row.background else Direct
        guarded.append(kind(row.name, lambda row=row: row.tracker(folder)))  # type: ignore[misc]  # a lambda's default
    return Trackers(guarded)
