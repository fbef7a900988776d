"""Imports, and what else makes many objects that stay, without Python's garbage collector: it finds nothing in them.

It is the collector that costs the time: a command that imports no torch takes 1.18 s of CPU while it runs and 0.72 s
without it, the process that workers are forked from 3.5 s and 2.5 s, to their ends (Python 3.11, torch 2.15). Used by
`search.cli`, `search.preload` and commands that import torch, and by `storage.trial_rows` for what it builds.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(*, for_good: bool = False) -> Iterator[None]:
    """Nothing is collected in this block. `for_good`: whatever this process has by its end is never looked through.

    Nor is it by forked children, whose memory stays shared so.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if collects:
            gc.enable()
