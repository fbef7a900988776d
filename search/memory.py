"""Whether the system's out-of-memory killer was at work here: told from the counters of the control group.

`search.fleet` asks when a worker was killed by SIGKILL. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# The kernel's names: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
VERSION_2, VERSION_1 = "memory.events", "memory.oom_control"
COUNTER = "oom_kill"


class OomKills:
    """Counts the processes of this control group that the kernel has killed for want of memory since it was made.

    Version 2 of control groups and version 1 are read, inside a container too; where neither is there, the whole
    machine's counter.
    """

    def __init__(self, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> None:
        self._files = _counters(proc, groups)
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


def _counters(proc: Path, groups: Path) -> list[Path]:
    """Where the counter may be, the nearest first. Inside a container the path may be the machine's: then the root."""
    found = []
    for controllers, path in _own_groups(proc):
        if not controllers:
            found += [groups / path / VERSION_2, groups / "unified" / path / VERSION_2]
        elif "memory" in controllers.split(","):
            found += [groups / "memory" / path / VERSION_1]
    return [*found, groups / VERSION_2, groups / "memory" / VERSION_1, proc / "vmstat"]


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
