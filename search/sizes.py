"""What a worker remembers of the samples that fitted into memory: in the process, and for others in the database.

Handed to `search.micro_batch_size` by the trainer. A database that cannot say or take it holds nothing up.
"""

from __future__ import annotations

import logging
from functools import cached_property

import torch

from search import memory
from storage import micro_batches
from storage.patience import DATABASE_ERRORS, one_line, waiting
from storage.shared import SharedStorage

GIB = 2**30

_log = logging.getLogger(__name__)


class StoredSizes:
    """Sizes of all models that were trained on this kind of device, in this database."""

    def __init__(self, storage: SharedStorage, device: torch.device) -> None:
        self._storage, self._device = storage, device
        self._known: dict[str, int] = {}

    def find(self, model: str) -> int | None:
        """The smallest size known here or there."""
        known = [self._known[model]] if model in self._known else []
        try:
            with waiting(0):
                stored = micro_batches.find(self._storage, model, self.kind)
        except DATABASE_ERRORS as error:
            _log.warning("the database does not say which size of batches fits: %s", one_line(error))
            stored = None
        return min([*known, *([stored] if stored is not None else [])], default=None)

    def keep(self, model: str, samples: int) -> None:
        """Remember it here, and there if that can be done."""
        self._known[model] = samples
        try:
            with waiting(0):
                micro_batches.keep(self._storage, model, self.kind, samples)
        except DATABASE_ERRORS as error:
            _log.warning("the size of batches that fits is not on record: %s", one_line(error))

    @cached_property
    def kind(self) -> str:
        """What a size depends on: "NVIDIA H200 140 GiB", "cpu 8 GiB"."""
        if self._device.type == "cuda":
            found = torch.cuda.get_device_properties(self._device)
            return f"{found.name} {found.total_memory / GIB:.0f} GiB"
        return f"{self._device.type} {memory.room() / GIB:.1f} GiB"
