"""What `data()` returned, loaded once a machine: its tensors in one nameless file, the rest in a pickle.

`search.preflight` packs it, `search.fleet` hands it to the workers it starts, and each of them unpacks it in
place of calling `data()` again (`search.packing` does both; nothing here imports torch). The file is in the
temporary folder (TMPDIR names another) but in no directory: it is handed on as an open descriptor, so that the
kernel frees it when the last process that has it ends, however that ends. Nobody else can open or replace it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import reduction
from typing import Any


class NamelessFile:
    """An open file that is in no directory. It travels to a child process as its process is started."""

    def __init__(self, descriptor: int) -> None:
        """Takes the descriptor over."""
        self.descriptor = descriptor

    @classmethod
    def make(cls) -> NamelessFile:
        """Make an empty one in the temporary folder. Raises OSError."""
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @property
    def free_bytes(self) -> int:
        """How much its file system has room for."""
        found = os.fstatvfs(self.descriptor)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Let go of it; twice does no harm."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __reduce__(self) -> tuple[Callable[[Any], NamelessFile], tuple[Any]]:
        return _received, (reduction.DupFd(self.descriptor),)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of a process `os` may be gone before this is.
        if self.descriptor >= 0:
            close(self.descriptor)


def _received(descriptor: Any) -> NamelessFile:
    return NamelessFile(descriptor.detach())


@dataclass(frozen=True)
class Packed:
    """Data, packed.

    Attributes:
        pickled: all of it but what is in the file. It holds code of the objective's: it goes through pipes
            between a command and the processes that it starts, never through a file or a database.
        regions: (offset, bytes) in the file of each piece of memory that `pickled` refers to by number.
        size: bytes in the file.
        file: the file; the process that packed it does not send it back to the one that it has it from.
    """

    pickled: bytes = field(repr=False)
    regions: tuple[tuple[int, int], ...] = field(repr=False)
    size: int
    file: NamelessFile | None = None

    def remove(self) -> None:
        """Let go of the file; it is freed when the workers that have it have ended."""
        if self.file is not None:
            self.file.close()


@dataclass(frozen=True)
class NotPacked:
    """Every worker loads the data itself, and why."""

    reason: str

    def remove(self) -> None:
        """There is nothing to remove."""
