"""Tells the trackers of one trial, with what they need to know of it: its recipe, the epochs before, its pictures.

The worker's `TrialReporter` says when training goes on from a checkpoint and when an epoch is recorded; the worker
itself how it ended.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from optuna.trial import Trial

from search.artifacts import Artifacts
from search.data import Data, Folds
from search.interrupt import Interrupt
from search.objective import Precision, Task
from search.predictions import predictions
from search.reporting import EpochResult, Result
from search.trackers import HANDED_BACK, Point, Trackers, TrialInfo
from search.trackers.tracker import Batches
from storage import curves
from storage.claims import Lease
from storage.shared import SharedStorage
from storage.studies import StudyRecord


class Listener:
    """Hears what a reporter does; this one keeps it to itself."""

    def restored(self, epoch: int) -> None:
        """Training goes on after this epoch; 0: from the start."""

    def recorded(self, result: EpochResult) -> None:
        """An epoch is on record, or will be soon."""


class Teller(Listener):
    """For one trial under one lease."""

    def __init__(
        self,
        trackers: Trackers,
        storage: SharedStorage,
        record: StudyRecord,
        trial: Trial,
        lease: Lease,
        *,
        files: Path,
        slot: str,
        interrupt: Interrupt,
        late: bool = False,
    ) -> None:
        """`files`: the files root, where pictures go. `slot`: the worker's.

        late: the trial starts with its first report, as what it goes on from is its own affair until then: a
        person's own loop may begin anew, or go on from where a framework's checkpoint was.
        """
        self._trackers, self._storage, self._record = trackers, storage, record
        self._trial, self._lease = trial, lease
        self._artifacts = Artifacts(files)
        self._slot, self._interrupt = slot, interrupt
        self._late, self._started = late, False
        self._predict: Callable[..., Any] | None = None

    def restored(self, epoch: int) -> None:
        if not self._late:
            self._start(epoch)

    def recorded(self, result: EpochResult) -> None:
        if not self._started:
            self._start(result.epoch - 1)
        self._trackers.epoch(result.epoch, result.metrics, result.seconds)

    def trains(
        self, task: Task, data: Data | Folds, batch_size: int, device: torch.device, precision: Precision = "float32"
    ) -> None:
        """What is trained, so that its best weights can be asked for their predictions in the end."""
        if task.predict is not None:
            self._predict = partial(
                predictions,
                task,
                data,
                batch_size,
                device=device,
                precision=precision,
                interrupted=lambda: self._interrupt.requested,
            )

    def end(self, result: Result, *, kept: bool) -> None:
        """The trial ended, and will be settled now. `kept`: its weights were."""
        predict: Batches | None = None
        if self._predict is not None and result.weights is not None:
            predict = partial(self._predict, weights=result.weights)
        self._trackers.end(
            result.outcome.value,
            result.value,
            best_epoch=result.best_epoch,
            reason=result.reason,
            kept=kept and not self._interrupt.requested,  # nobody who has pressed Ctrl-C waits for pictures
            predict=predict,
        )

    def hand_back(self) -> None:
        """Another worker will go on with the trial."""
        self._trackers.end(HANDED_BACK)

    def _start(self, after: int) -> None:
        self._started = True
        before = curves.recorded(self._storage, self._lease.trial_id, after) if after > 0 else []
        attrs = self._trial.user_attrs
        own = attrs.get("model", {})
        words = [
            f"{name} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in plain(own).items()
        ]
        self._trackers.start(
            TrialInfo(
                study=self._record.name,
                key=self._record.folder,
                number=self._trial.number,
                metric=self._record.metric,
                epochs=self._record.length,
                folds=self._record.folds,
                recipe=plain({**attrs.get("settings", {}), **own}),
                summary=" ".join([attrs.get("recipe", ""), *words]).strip(),
                worker=f"{self._slot}, {socket.gethostname()} pid {os.getpid()}",
                resumed_from=max(0, after) if before else 0,
                history=tuple(Point(one.epoch, one.metrics, one.seconds, one.ended_at) for one in before),
                attach=lambda picture: self._artifacts.attach(self._trial, picture),
            )
        )


def plain(settings: Mapping[str, Any]) -> dict[str, float | str]:
    """Knobs as numbers and text, which is all that trackers compare: a list becomes `name_1`, `name_2`."""
    found: dict[str, float | str] = {}
    for name, value in settings.items():
        if name == "betas" and isinstance(value, list | tuple) and len(value) == 2:
            found |= {"beta1": value[0], "beta2": value[1]}
        elif isinstance(value, list | tuple):
            found |= plain({f"{name}_{place}": one for place, one in enumerate(value, start=1)})
        elif isinstance(value, str | int | float):
            found[name] = value
        elif value is not None:
            found[name] = json.dumps(value, default=str)
    return found
