"""The training loop's way to the database and the disk: epochs, checkpoints, pruning, interruptions.

`search.training` knows only the protocol; `search.worker` makes one of these for each trial it trains.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from optuna.trial import Trial

from search.checkpoints import CheckpointError
from search.interrupt import Interrupt
from search.outbox import Outbox
from search.pace import Background, Pace
from search.reporting import EpochResult, Interrupted, Verdict
from search.shelf import Shelf
from search.telling import Listener
from storage.claims import Checkpoint, Epoch, EpochsSpent, Lease, LeaseLost
from storage.patience import unless_away
from storage.shared import SharedStorage
from storage.tables import StudyState

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
        folder: str,
        shelf: Shelf,
        device: str,
        interrupt: Interrupt,
        listener: Listener | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`folder` is the name of the trial's own on the `shelf` of its study.

        `beat` is called before each batch and after each epoch: training makes steps.
        """
        self._storage = storage
        self._trial = trial
        self._lease = lease
        self._epochs = epochs
        self._folder = folder
        self._shelf = shelf
        self._size = 0  # of the last state, in bytes
        self._device = device
        self._interrupt = interrupt
        self._beat = beat
        self._listener = listener or Listener()
        self._outbox = Outbox(storage, lease, interrupt)
        self._recorded_at = time.monotonic()
        self._pace = Pace()
        self._writing = Background("checkpoint-writer")
        self._epoch = 0  # the last one reported, or that training goes on after
        self._unrecorded: Checkpoint | None = None  # written while the database was away

    def restore(self) -> dict[str, Any] | None:
        """The newest recorded checkpoint that can be read."""
        recorded = self._storage.checkpoints(self._lease)
        self._sweep({checkpoint.path for checkpoint in recorded})
        for checkpoint in recorded:
            try:
                state = self._shelf.read(checkpoint.path, checkpoint.sha256)
            except CheckpointError as error:
                _log.warning("%s; going back to the one before", error)
                continue
            self._epoch = checkpoint.epoch
            self._listener.restored(checkpoint.epoch)
            return state
        self._listener.restored(0)
        return None

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        """Record the epoch and say whether to go on. A checkpoint that is due is written while training does.

        Raises:
            LeaseLost: the trial is another's.
            Interrupted: the study's budget of epochs is on record without this one.
            DatabaseAway: the database went away, and has not come back within the limit.
        """
        ending = self._interrupt.requested
        self._epoch = result.epoch
        if not self._writing.busy:
            self._writing.finish()
        checkpoint = self._save(0, state) if ending and state is not None else self._take_unrecorded()
        epoch = Epoch(result.epoch, result.value, result.metrics, result.seconds, result.samples, self._device)
        try:
            study = self._outbox.record(epoch, checkpoint)
        except EpochsSpent as spent:
            self._interrupt.request(str(spent))
            raise Interrupted from spent
        self._recorded_at = time.monotonic()
        self._beat()
        self._listener.recorded(result)
        if ending:
            return Verdict.HAND_BACK
        stopped = study is StudyState.STOPPED
        if stopped:
            self._interrupt.request("the study was stopped")
        if study is not None and result.value is not None and self._is_losing(result.epoch):
            return Verdict.PRUNE
        if result.epoch >= self._epochs:
            return Verdict.GO_ON
        if stopped:  # an epoch more would be one beyond the limit that this one has reached
            if state is not None and (checkpoint := self._save(0, state)) is not None:
                self._record(checkpoint)
            return Verdict.HAND_BACK
        if state is not None:
            self._keep_if_due(0, state, ahead=result.seconds)
        return Verdict.GO_ON

    def finish(self) -> None:
        """Wait until everything is on record. To be called before the trial is settled or given back.

        Raises:
            LeaseLost, Interrupted, DatabaseAway: as `report`.
        """
        self._writing.wait()
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

        def prune() -> bool:
            recorded = self._storage.get_trial(self._lease.trial_id)
            recorded.intermediate_values = {k: v for k, v in recorded.intermediate_values.items() if k <= epoch}
            return study.pruner.prune(study, recorded)

        return bool(unless_away(prune))

    @property
    def unrecorded_seconds(self) -> float:
        """Device time since the last epoch was recorded, or since the trial came here."""
        return time.monotonic() - self._recorded_at

    def interrupted(self) -> bool:
        """Whether to stop between two batches."""
        self._beat()
        return self._interrupt.overdue

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        """So many batches after the last epoch: a checkpoint where one is due, or where training must stop."""
        if not self._interrupt.overdue:
            self._keep_if_due(batch, state)
        elif not self._interrupt.lost and (checkpoint := self._save(batch, state)) is not None:
            self._record(checkpoint)

    def save_weights(self, epoch: int, weights: dict[str, Any]) -> Checkpoint | None:
        """Write the best epoch's weights; None, with a warning, when the disk is full."""
        path = f"{self._folder}/weights-{epoch:04d}.g{self._lease.generation}.pt"
        written = self._shelf.write(path, weights)
        return Checkpoint(epoch, path, written[0], size=written[1]) if written is not None else None

    def discard(self, weights: Checkpoint | None = None) -> None:
        """Remove the checkpoints of a settled trial but for the weights that it keeps."""
        self._shelf.discard(self._folder, weights.path if weights is not None else None)

    def _keep_if_due(self, batch: int, state: Callable[[], dict[str, Any]], ahead: float = 0.0) -> None:
        if self._writing.busy or not self._pace.due(ahead) or self._outbox.behind:
            return  # while the database is away it would not be on record, and so of no use
        began = self._pace.now()
        epoch, content = self._epoch, state()
        self._writing.start(lambda: self._write_and_record(epoch, batch, content))
        self._pace.took(began)

    def _write_and_record(self, epoch: int, batch: int, content: dict[str, Any]) -> None:
        """In a thread beside training."""
        try:
            checkpoint = self._write(epoch, batch, content)
            if checkpoint is not None:
                self._record(checkpoint)
                self._shelf.trim()
        except LeaseLost as lost:
            self._interrupt.lose(str(lost))
        finally:
            if self._device == "cpu":  # every core has a worker there: this thread's time is training's
                self._pace.cost(time.thread_time())

    def _save(self, batch: int, state: Callable[[], dict[str, Any]]) -> Checkpoint | None:
        """Write one now, after the one that is being written."""
        self._writing.finish()
        return self._write(self._epoch, batch, state())

    def _record(self, checkpoint: Checkpoint) -> None:
        """Put a file on record, or keep it for the next epoch's transaction while the database is away.

        Raises:
            LeaseLost: the trial is another's.
        """
        try:
            old = unless_away(lambda: self._storage.record_checkpoint(self._lease, checkpoint), _not_on_record)
        except LeaseLost:
            self._shelf.remove([checkpoint.path])
            raise
        if old is not None:
            self._unrecorded = None
            self._shelf.remove(old)
            return
        self._unrecorded = checkpoint  # the one before stays: only the answer to its COMMIT may have been lost

    def _take_unrecorded(self) -> Checkpoint | None:
        if self._writing.busy:
            return None
        checkpoint, self._unrecorded = self._unrecorded, None
        return checkpoint

    def _write(self, epoch: int, batch: int, content: dict[str, Any]) -> Checkpoint | None:
        place = f"{epoch:04d}-{batch:06d}" if batch else f"{epoch:04d}"
        path = f"{self._folder}/state-{place}.g{self._lease.generation}.pt"
        written = self._shelf.write(path, content) if self._shelf.prepare(self._size) else None
        if written is None:
            return None
        sha256, self._size = written
        return Checkpoint(epoch, path, sha256, batch, self._size)

    def _sweep(self, recorded: set[str]) -> None:
        """Remove what the owners before left behind without a record: halves, and what was superseded as they died.

        Nothing of an owner after this one, which may have been frozen since it looked at the record.
        """
        found = {path for path in self._shelf.states(self._folder) if _generation(path) < self._lease.generation}
        self._shelf.remove(found - recorded)


def _not_on_record(said: str) -> None:
    _log.warning("a checkpoint is not on record yet, the database does not answer: %s", said)


def _generation(path: str) -> int:
    """Whose file it is; 0 where the name does not tell."""
    found = re.search(r"\.g(\d+)\.", path)
    return int(found.group(1)) if found else 0
