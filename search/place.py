"""Where a search trains, and where its things are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from search import options
from search.assignment import Assignment
from search.by_value import ByValue
from search.checkpoint_settings import CheckpointSettings
from search.devices import Slot
from search.preflight import Placement
from search.shared_data import NotPacked, Packed
from storage.urls import DEFAULT_URL


@dataclass(frozen=True)
class Place:
    """Where a search trains, and where its things are.

    Attributes:
        storage: the database's URL.
        files: root folder of checkpoints and logs; None: beside the database.
        data: folder of data sets; None: the usual one.
        placement: devices and workers.
        log: names of trackers.
        hang: seconds without a batch after which a worker hangs; math.inf: never; None: the objective's.
        checkpoints: where checkpoints go, and how much they may take.
        on: the cluster that workers are started on; None: this machine.
    """

    storage: str = DEFAULT_URL
    files: Path | None = None
    data: Path | None = None
    placement: Placement = field(default_factory=Placement)
    log: tuple[str, ...] = ()
    hang: float | None = None
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    on: str | None = None

    @property
    def tried_on(self) -> Placement:
        """Where an objective is tried: for workers elsewhere on this machine's CPU, whatever else it has."""
        return self.placement if self.on is None else Placement(1, "cpu")

    def make_folders(self) -> None:
        """Those that are written to. Raises UsageError: one cannot be made, or that of data sets is not there."""
        options.data_root(self.data)
        self.checkpoints.make(options.make_files_root(self.files, self.storage))

    def assignment(
        self,
        study: str,
        objective: str | ByValue,
        threads: int,
        slots: tuple[Slot, ...] = (),
        shared: Packed | NotPacked | None = None,
    ) -> Assignment:
        """Orders of a worker here; see `Assignment`."""
        return Assignment(
            storage=self.storage,
            study=study,
            objective=objective,
            places=slots,
            threads=threads,
            files=options.files_root(self.files, self.storage),
            data=options.data_root(self.data),
            log=self.log,
            shared=shared,
            hang=self.hang,
            checkpoints=self.checkpoints,
        )
