"""The most memory in use while a trial trains: what its tensors take of a GPU, or its process of the machine.

Made by `search.trainer` for each trial, and read by its reporter after each epoch.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

# proc(5): writing 5 makes the highest resident size so far the present one. Other systems cannot begin anew.
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET = "5"
_HIGHEST = "VmHWM:"


class PeakMemory:
    """Counts from when it is made."""

    def __init__(self, device: torch.device, clear_refs: Path = CLEAR_REFS, status: Path = STATUS) -> None:
        self._device, self._status = device, status
        self._begun = device.type == "cuda"
        if self._begun:
            torch.cuda.init()  # it has no statistics before
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):
            clear_refs.write_text(_RESET)
            self._begun = True

    def bytes(self) -> int | None:
        """So far; None where the system does not say, or knows only the highest of all trials before."""
        if not self._begun:
            return None
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            lines = self._status.read_text().splitlines()
        except OSError:
            return None
        kibibytes = [line.split()[1] for line in lines if line.startswith(_HIGHEST)]
        return 1024 * int(kibibytes[0]) if kibibytes else None
