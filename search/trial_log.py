"""What a person's code prints while a trial trains goes to that trial's log, and not into the live view.

Standard output and error are redirected at the level of file descriptors, so that C libraries and child processes
(a DataLoader's workers) are caught too. Called by `search.worker`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Append all output of this process to `path` for the length of the block."""
    log = _open(path)
    kept = _redirect(log)
    os.close(log)
    try:
        yield
    finally:
        _flush()
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


def _open(path: Path) -> int:
    """The file's descriptor; where it cannot be made, a sink: a full disk must not end training."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


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
        with suppress(OSError):  # the disk is full: what was printed is lost, the trial is not
            stream.flush()
