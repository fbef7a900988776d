"""How much memory there is, whether the system's out-of-memory killer was at work, and what becomes of freed memory.

Control groups tell the first two; `search.fleet` asks when a worker was killed by SIGKILL. The last is a worker's to
say. Imports no torch.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

# The kernel's names: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
VERSION_2, VERSION_1 = "memory.events", "memory.oom_control"
LIMIT_2, LIMIT_1 = "memory.max", "memory.limit_in_bytes"
COUNTER = "oom_kill"

# glibc's <malloc.h>: what is freed at the heap's end goes back to the system beyond so many bytes, and what is larger
# than so many has pages of its own, which go back at once.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**31 - 1  # the most that mallopt's int holds
# What a layer makes of a batch is mostly less; large weights and data are not kept. Older versions refuse more.
KEPT_AT_ONCE = 2**25


def keep_freed() -> None:
    """Keep what is freed for what is made next. Nothing where the C library is not glibc.

    Every training step wants as much memory as the last; by itself glibc gives much of it back in between, and the
    system must clear each page again (a sixth of a small convolutional network's time, measured on a CPU).
    """
    if mallopt := _of_libc("mallopt"):
        # The second alone would make it worse: each of them ends glibc's own adjusting of both.
        _ = mallopt(M_MMAP_THRESHOLD, KEPT_AT_ONCE) and mallopt(M_TRIM_THRESHOLD, KEPT)


def give_back_freed() -> None:
    """To the system, after a trial: the next one may be smaller, and others on the machine larger."""
    if trim := _of_libc("malloc_trim"):
        trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None)


class OomKills:
    """Counts the processes of this control group that the kernel has killed for want of memory since it was made.

    Version 2 of control groups and version 1 are read, inside a container too; where neither is there, the whole
    machine's counter.
    """

    def __init__(self, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> None:
        self._files = [*_files(proc, groups, VERSION_2, VERSION_1), proc / "vmstat"]
        self._accounted = self._count()

    def risen(self) -> bool:
        """Whether a process was killed that no earlier call has told of: each kill is the answer to one question."""
        if self._count() <= self._accounted:
            return False
        self._accounted += 1
        return True

    def _count(self) -> int:
        for file in self._files:
            found = _counter(file)
            if found is not None:
                return found
        return 0


def room(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The bytes that this process may use at most: the machine's, its control group's, or its own limit's."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _files(proc, groups, LIMIT_2, LIMIT_1):
        try:
            found.append(int(file.read_text()))  # version 2 says "max" where there is no limit
        except (OSError, ValueError):
            continue
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(found if own == resource.RLIM_INFINITY else [*found, own])


def _files(proc: Path, groups: Path, version_2: str, version_1: str) -> list[Path]:
    """Where a group's file may be, the nearest first; the root, where a container is told the machine's paths."""
    found = []
    for controllers, path in _own_groups(proc):
        if not controllers:
            found += [groups / path / version_2, groups / "unified" / path / version_2]
        elif "memory" in controllers.split(","):
            found += [groups / "memory" / path / version_1]
    return [*found, groups / version_2, groups / "memory" / version_1]


def _own_groups(proc: Path) -> Iterator[tuple[str, str]]:
    """Controllers and path of each group of this process: lines "4:memory:/a/b", of version 2 "0::/a/b"."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        yield controllers, path.strip("/")


def _counter(file: Path) -> int | None:
    """The number behind `oom_kill`; None where there is none to read."""
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == COUNTER:
                return int(value)
    except (OSError, ValueError):
        pass
    return None
