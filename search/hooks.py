"""What a worker of the queue does in its own way, beside one of a single study: handed to `search.worker`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.by_value import ByValue
from search.loading import LoadedObjective, resolve
from search.packing import shared_or_loaded
from search.shared_data import NotPacked, Packed
from storage.claims import Claimant
from storage.shared import SharedStorage, open_storage


@dataclass(frozen=True)
class Hooks:
    """Where it gets an objective and its data, whether it stays, and what else it asks.

    `stays`: see `Chooser`; `beside` and `back_at`: see `LeaseKeeper`. `open`: as `open_storage`.
    """

    stays: Callable[[], bool] | None = None
    beside: Callable[[], float] | None = None
    back_at: float | None = None
    open: Callable[[str, Claimant], SharedStorage] = open_storage
    resolve: Callable[[str | ByValue], LoadedObjective] = resolve
    load: Callable[[Packed | NotPacked | None, LoadedObjective, Path, Callable[[str], None]], Any] = shared_or_loaded


OWN = Hooks()
