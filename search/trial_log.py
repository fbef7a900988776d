"""What a person's code prints while a trial trains goes to that trial's log, and not into the live view.

Standard output and error are redirected at the level of file descriptors, so that C libraries and child processes
(a DataLoader's workers) are caught too. Called by `search.worker`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Append all output of this process to `path` for the length of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    kept = _redirect(log)
    os.close(log)
    try:
        yield
    finally:
        for number, copy in kept.items():
            _flush()
            os.dup2(copy, number)
            os.close(copy)


def _redirect(log: int) -> dict[int, int]:
    """Point standard output and error to `log`; copies of what they were, by number."""
    _flush()
    kept = {}
    for number in (1, 2):
        kept[number] = os.dup(number)
        os.dup2(log, number)
    return kept


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
