"""What a worker is started with: plain values that pass between processes.

Apart from `search.worker` so that the process that starts workers need not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from search.by_value import ByValue
from search.checkpoint_settings import CheckpointSettings
from search.devices import Slot
from search.shared_data import NotPacked, Packed
from storage.claims import LEASE_SECONDS, new_uuid


@dataclass(frozen=True)
class Assignment:
    """One worker's orders.

    Attributes:
        storage: the database's URL, with its password.
        study: name of the study.
        objective: reference that `search.loading.resolve` understands on this machine, or the objective by value.
        places: slots to train on, of which the worker takes the first free one.
        threads: CPU threads to use.
        files: root folder of logs, and of checkpoints where `checkpoints` names no other place.
        data: folder handed to the objective's `data`.
        log: names of trackers (`search.trackers`) beside the trial's own log.
        shared: what `data` returned where it was called already; None: the worker calls it.
        hang: seconds without a batch after which a worker hangs; math.inf: never; None: the objective's.
        checkpoints: where checkpoints go, and how much they may take.
        worker_id: UUID, made by whoever starts the worker.
        lease_seconds: how long what it holds stays its own without a sign of it.
    """

    storage: str = field(repr=False)
    study: str
    objective: str | ByValue
    places: tuple[Slot, ...]
    threads: int
    files: Path
    data: Path
    log: tuple[str, ...] = ()
    shared: Packed | NotPacked | None = None
    hang: float | None = None
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    worker_id: str = field(default_factory=new_uuid)
    lease_seconds: float = LEASE_SECONDS
