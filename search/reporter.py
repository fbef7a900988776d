"""The training loop's way to the database and the disk: epochs, checkpoints, pruning, interruptions.

`search.training` knows only the protocol; `search.worker` makes one of these for each trial it trains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.trial import Trial
from sqlalchemy.exc import SQLAlchemyError

from search import checkpoints
from search.interrupt import Interrupt
from search.outbox import Outbox
from search.reporting import EpochResult, Interrupted, Verdict
from search.telling import Listener
from storage.claims import Checkpoint, Epoch, EpochsSpent, Lease
from storage.patience import away, waiting
from storage.shared import SharedStorage
from storage.tables import StudyState

# What a death may cost besides the epoch in flight.
CHECKPOINT_SECONDS = 5.0
# The newest and, should it be unreadable, the one before.
CHECKPOINTS_KEPT = 2

_log = logging.getLogger(__name__)


class TrialReporter:
    """Implements `search.reporting.Reporter` for one trial held under one lease."""

    def __init__(
        self,
        storage: SharedStorage,
        trial: Trial,
        lease: Lease,
        *,
        epochs: int,
        folder: Path,
        root: Path,
        device: str,
        interrupt: Interrupt,
        listener: Listener | None = None,
    ) -> None:
        """`folder` is the trial's own, below `root`, the study's: recorded paths are relative to it."""
        self._storage = storage
        self._trial = trial
        self._lease = lease
        self._epochs = epochs
        self._folder = folder
        self._root = root
        self._device = device
        self._interrupt = interrupt
        self._listener = listener or Listener()
        self._outbox = Outbox(storage, lease, interrupt)
        self._saved_at = self._recorded_at = time.monotonic()
        self._written: list[Path] = []

    def restore(self) -> dict[str, Any] | None:
        """The newest recorded checkpoint that can be read."""
        for checkpoint in self._storage.checkpoints(self._lease):
            path = self._root / checkpoint.path
            try:
                state = checkpoints.load(path, checkpoint.sha256)
            except checkpoints.CheckpointError as error:
                _log.warning("%s; going back to the one before", error)
                continue
            self._written.insert(0, path)
            self._listener.restored(checkpoint.epoch)
            return state
        self._listener.restored(0)
        return None

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        """Record the epoch, with a checkpoint when one is due, and say whether to go on.

        Raises:
            LeaseLost: the trial is another's.
            Interrupted: the study's budget of epochs is on record without this one.
            DatabaseAway: the database went away, and has not come back within the limit.
        """
        ending = self._interrupt.requested
        checkpoint = self._save(result.epoch, state) if state is not None and self._due(result.epoch, ending) else None
        epoch = Epoch(result.epoch, result.value, result.metrics, result.seconds, result.samples, self._device)
        try:
            study = self._outbox.record(epoch, checkpoint)
        except EpochsSpent as spent:
            self._interrupt.request(str(spent))
            raise Interrupted from spent
        self._recorded_at = time.monotonic()
        self._listener.recorded(result)
        if not self._outbox.behind:  # else those before are the only ones on record
            self._forget_old()
        if ending:
            return Verdict.HAND_BACK
        if study is StudyState.STOPPED:
            self._interrupt.request("the study was stopped")
        losing = study is not None and result.value is not None and self._is_losing(result.epoch)
        return Verdict.PRUNE if losing else Verdict.GO_ON

    def finish(self) -> None:
        """Wait until everything is on record. To be called before the trial is settled or given back.

        Raises:
            LeaseLost, Interrupted, DatabaseAway: as `report`.
        """
        try:
            self._outbox.flush()
        except EpochsSpent as spent:
            self._interrupt.request(str(spent))
            raise Interrupted from spent

    def _is_losing(self, epoch: int) -> bool:
        """What `Trial.should_prune` asks, of the trial as recorded: a `Trial` only knows what it reported itself.

        An owner before this one may have got further than its last checkpoint: that is not looked at. No, where the
        database goes away before it has answered: training does not wait.
        """
        study = self._trial.study
        try:
            with waiting(0):
                recorded = self._storage.get_trial(self._lease.trial_id)
                recorded.intermediate_values = {k: v for k, v in recorded.intermediate_values.items() if k <= epoch}
                return study.pruner.prune(study, recorded)
        except (SQLAlchemyError, StorageInternalError) as error:
            if not away(error):
                raise
            return False

    @property
    def unrecorded_seconds(self) -> float:
        """Device time since the last epoch was recorded, or since the trial came here."""
        return time.monotonic() - self._recorded_at

    def interrupted(self) -> bool:
        """Whether to stop between two batches."""
        return self._interrupt.overdue

    def save_weights(self, epoch: int, weights: dict[str, Any]) -> Checkpoint | None:
        """Write the best epoch's weights; None, with a warning, when the disk is full."""
        return self._write(epoch, f"weights-{epoch:04d}.g{self._lease.generation}.pt", weights)

    def discard(self) -> None:
        """Remove the state checkpoints of a settled trial."""
        for path in self._folder.glob("state-*"):
            path.unlink(missing_ok=True)

    def _due(self, epoch: int, ending: bool) -> bool:
        last = epoch >= self._epochs
        if self._outbox.behind and not ending:
            return False  # it would not be on record, and so of no use
        return ending or (not last and time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS)

    def _save(self, epoch: int, state: Callable[[], dict[str, Any]]) -> Checkpoint | None:
        checkpoint = self._write(epoch, f"state-{epoch:04d}.g{self._lease.generation}.pt", state())
        self._saved_at = time.monotonic()
        return checkpoint

    def _write(self, epoch: int, name: str, content: dict[str, Any]) -> Checkpoint | None:
        path = self._folder / name
        try:
            sha256 = checkpoints.save(path, content)
        except checkpoints.CheckpointError as error:
            _log.warning("%s; training goes on without it", error)
            return None
        if name.startswith("state"):
            self._written.append(path)
        return Checkpoint(epoch, str(path.relative_to(self._root)), sha256)

    def _forget_old(self) -> None:
        while len(self._written) > CHECKPOINTS_KEPT:
            self._written.pop(0).unlink(missing_ok=True)
