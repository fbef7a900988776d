"""One study with a trial in training, its reporter and its files: what tests of `search.reporter` begin with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import Trial
from studies import rows

from search.checkpointer import Checkpointer
from search.interrupt import Interrupt
from search.judge import Judge
from search.reporter import TrialReporter
from search.reporting import EpochResult, Verdict
from search.shelf import Folder, Shelf
from storage import studies
from storage.claims import Claimant, Lease, new_uuid
from storage.retention import make_room
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec

EPOCHS = 10
SPEC = StudySpec("tiny", "", "accuracy", "maximize", EPOCHS, 5, 0, "tpe", "none")


class Loser(BasePruner):
    """Prunes at one epoch, and keeps what it was shown."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen: list[dict[int, float]] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        self.seen.append(dict(trial.intermediate_values))
        return trial.last_step == self.at


@dataclass
class Bench:
    """One study, its trial 0 under training, and whoever owns it."""

    url: str
    root: Path
    storage: SharedStorage
    record: StudyRecord
    trial: Trial
    lease: Lease
    interrupt: Interrupt
    limit: int | None = None

    @property
    def shelf(self) -> Shelf:
        """Where its checkpoints are, `limit` bytes at most."""
        return Shelf(Folder(self.root), self.limit, partial(make_room, self.storage, self.record))

    @property
    def folder(self) -> Path:
        return self.root / "trial-00000"

    def reporter(
        self,
        pruner: BasePruner | None = None,
        clock: Callable[[], float] = time.monotonic,
        judge: Judge | None = None,
        memory: Callable[[], int | None] = lambda: None,
    ) -> TrialReporter:
        self.trial.study.pruner = pruner or NopPruner()
        return TrialReporter(
            self.storage,
            self.trial,
            self.lease,
            epochs=EPOCHS,
            device="cpu",
            checkpointer=Checkpointer(
                self.storage,
                self.lease,
                folder=self.folder.name,
                shelf=self.shelf,
                interrupt=self.interrupt,
                shares_cores=True,
            ),
            interrupt=self.interrupt,
            clock=clock,
            judge=judge,
            memory=memory,
        )

    def adopted(self) -> Bench:
        """The same trial, handed back and taken over by another worker."""
        self.storage.hand_back(self.lease)
        return bench_on(self.url, self.root, self.record)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))

    def recorded(self) -> list[Any]:
        return rows(self.url, "SELECT epoch, metrics, generation FROM dialin_epochs ORDER BY epoch")


def bench_on(url: str, root: Path, record: StudyRecord | None = None) -> Bench:
    """A worker's view: a trial of a new study, or one to adopt in this study."""
    storage = open_storage(url, Claimant(new_uuid()))
    if record is None:
        record = studies.create(storage, SPEC, stem="tiny")
        study = optuna.load_study(study_name=record.name, storage=storage)
        trial = study.ask()
        return Bench(url, root, storage, record, trial, storage.lease_of(trial), Interrupt())
    study = optuna.load_study(study_name=record.name, storage=storage)
    lease = storage.adopt(record.study_id)
    assert isinstance(lease, Lease)
    return Bench(url, root, storage, record, Trial(study, lease.trial_id), lease, Interrupt())


def result(epoch: int, value: float = 0.5) -> EpochResult:
    return EpochResult(epoch, value, {"accuracy": value, "lr": 0.1}, 0.01, 96)


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "weights": torch.full((3,), float(epoch))}


def report(to: TrialReporter, *epochs: int) -> list[Verdict]:
    """Every checkpoint is written before the next epoch ends."""
    verdicts = []
    for epoch in epochs:
        verdicts.append(to.report(result(epoch), lambda epoch=epoch: state(epoch)))  # type: ignore[misc]
        to.finish()
    return verdicts
