"""A trial's checkpoints: written beside training when one is due, put on record, and found again by whoever adopts it.

`search.trainer` makes one for each trial and `search.reporter` says where it stands; `search.shelf` has the files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from search.checkpoints import CheckpointError
from search.interrupt import Interrupt
from search.pace import Background, Pace
from search.shelf import Shelf
from storage.claims import Checkpoint, Lease, LeaseLost
from storage.file_names import state_name, weights_name
from storage.patience import unless_away
from storage.shared import SharedStorage
from storage.tables import CheckpointKind

_log = logging.getLogger(__name__)

State = Callable[[], dict[str, Any]]


class Checkpointer:
    """For one trial under one lease. A place in it is its last epoch, and so many batches after that."""

    def __init__(
        self,
        storage: SharedStorage,
        lease: Lease,
        *,
        folder: str,
        shelf: Shelf,
        interrupt: Interrupt,
        shares_cores: bool,
    ) -> None:
        """`folder` is the name of the trial's own on the `shelf` of its study.

        `shares_cores`: every core trains, so that the time it takes to write is training's.
        """
        self._storage = storage
        self._lease = lease
        self._folder = folder
        self._shelf = shelf
        self._interrupt = interrupt
        self._shares_cores = shares_cores
        self._size = 0  # of the last state, in bytes
        self._pace = Pace()
        self._writing = Background("checkpoint-writer")
        self._unrecorded: Checkpoint | None = None  # written while the database was away

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """The newest recorded checkpoint that can be read, and the epoch it goes on after."""
        if self._lease.generation == 1:
            return None  # nobody had it before
        recorded = self._storage.checkpoints(self._lease)
        self._sweep(recorded, self._lease.generation)
        for checkpoint in recorded:
            try:
                return checkpoint.epoch, self._shelf.read(checkpoint.path, checkpoint.sha256)
            except CheckpointError as error:
                _log.warning("%s; going back to the one before", error)
        return None

    def is_due(self, ahead: float = 0.0) -> bool:
        """Whether to keep one now. `ahead`: in how many seconds this is asked again."""
        return not self._writing.busy and self._pace.due(ahead)

    def keep(self, epoch: int, batch: int, state: State) -> None:
        """Have one written and recorded while training goes on, where none is being written."""
        began = self._pace.now()
        content = state()
        self._writing.start(lambda: self._write_and_record(epoch, batch, content))
        self._pace.took(began)

    def save(self, epoch: int, batch: int, state: State) -> Checkpoint | None:
        """Write one now, after the one that is being written; None where it cannot be written."""
        self._writing.finish()
        return self._write(epoch, batch, state())

    def save_and_record(self, epoch: int, batch: int, state: State) -> None:
        """The same, and put it on record. Raises LeaseLost: the trial is another's."""
        checkpoint = self.save(epoch, batch, state)
        if checkpoint is not None:
            self._record(checkpoint)

    def check(self) -> None:
        """Raise what the thread beside training has raised."""
        if not self._writing.busy:
            self._writing.finish()

    def take_unrecorded(self) -> Checkpoint | None:
        """What could not be put on record by itself, for the next epoch's transaction."""
        if self._writing.busy:
            return None
        checkpoint, self._unrecorded = self._unrecorded, None
        return checkpoint

    def superseded(self) -> None:
        """One was put on record with its epoch, while nothing was being written: remove what is needed no more."""
        recorded = unless_away(lambda: self._storage.checkpoints(self._lease))
        if recorded is not None:
            self._sweep(recorded, self._lease.generation + 1)

    def wait(self) -> None:
        """Wait for what is being written, whatever becomes of it."""
        self._writing.wait()

    def save_weights(self, epoch: int, weights: dict[str, Any]) -> Checkpoint | None:
        """Write the best epoch's weights; None, with a warning, when the disk is full."""
        path = f"{self._folder}/{weights_name(epoch, self._lease.generation)}"
        written = self._shelf.write(path, weights)
        return Checkpoint(epoch, path, written[0], size=written[1]) if written is not None else None

    def discard(self, weights: Checkpoint | None = None) -> None:
        """Remove the checkpoints of a settled trial but for the weights that it keeps."""
        self._shelf.discard(self._folder, weights.path if weights is not None else None)

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
            if self._shares_cores:
                self._pace.cost(time.thread_time())

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

    def _write(self, epoch: int, batch: int, content: dict[str, Any]) -> Checkpoint | None:
        path = f"{self._folder}/{state_name(epoch, batch, self._lease.generation)}"
        written = self._shelf.write(path, content) if self._shelf.prepare(self._size) else None
        if written is None:
            return None
        sha256, self._size = written
        return Checkpoint(epoch, path, sha256, batch, self._size)

    def _sweep(self, recorded: list[Checkpoint], generation: int) -> None:
        """Remove what owners before this generation left without a record: halves, and what was superseded.

        Nothing of an owner after this one, which may have been frozen since it looked at the record.
        """
        kept = {checkpoint.path for checkpoint in recorded}
        for path, name in self._shelf.checkpoints(self._folder).items():
            if name.kind is CheckpointKind.STATE and name.generation < generation and path not in kept:
                self._shelf.remove([path])


def _not_on_record(said: str) -> None:
    _log.warning("a checkpoint is not on record yet, the database does not answer: %s", said)
