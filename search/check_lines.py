"""What `dialin check` prints: a line for each thing that was checked, a time, the memory in use."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

MIB = 1024**2


@dataclass(frozen=True)
class CheckLine:
    """One thing that was checked: whether it works, what to know about it, and the seconds the check took.

    `numbers` holds what `detail` says in words, for programs; bytes, seconds and counts, as the keys say.
    """

    what: str
    ok: bool
    detail: str
    seconds: float
    numbers: Mapping[str, float] = field(default_factory=dict)


def memory_line(device: torch.device) -> CheckLine:
    """The most memory in use so far, and whose it is."""
    peak, whose = _peak_memory(device)
    return CheckLine("memory", True, f"at most {peak / MIB:,.0f} MiB {whose}", 0.0, {"peak_bytes": peak})


def _peak_memory(device: torch.device) -> tuple[float, str]:
    """Return the most bytes in use so far, and whose they are."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), f"of {device}, by tensors"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes: getrusage(2) of each.
    return peak * (1 if sys.platform == "darwin" else 1024), "of memory, by a process like this one"


def duration(seconds: float) -> str:
    """Return a time for people: "4.2 ms", "0.42 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
