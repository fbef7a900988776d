"""The counters of the kernel's out-of-memory killer, of both versions of control groups; where freed memory goes."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from search.memory import OomKills

VERSION_2 = "low 0\nhigh 0\nmax 7\noom 2\noom_kill {}\noom_group_kill 0\n"
VERSION_1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("own", "file", "text"),
    [
        ("0::/user/run-1\n", "groups/user/run-1/memory.events", VERSION_2),
        ("0::/of/the/machine\n", "groups/memory.events", VERSION_2),
        ("4:cpu,memory:/run-1\n0::/\n", "groups/memory/run-1/memory.oom_control", VERSION_1),
        ("4:memory:/of/the/machine\n", "groups/memory/memory.oom_control", VERSION_1),
        ("", "proc/vmstat", "nr_free_pages 1\noom_kill {}\n"),
    ],
    ids=["version 2", "version 2 in a container", "version 1", "version 1 in a container", "machine"],
)
def test_a_kill_is_told_of_once(tmp_path: Path, own: str, file: str, text: str) -> None:
    for path, content in (("proc/self/cgroup", own), (file, text.format(3))):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    kills = OomKills(tmp_path / "proc", tmp_path / "groups")
    assert not kills.risen()
    (tmp_path / file).write_text(text.format(5))
    assert [kills.risen() for _ in range(3)] == [True, True, False]


def test_without_a_counter_nothing_was_killed(tmp_path: Path) -> None:
    assert not OomKills(tmp_path / "proc", tmp_path / "groups").risen()


REUSES = """
import resource
from pathlib import Path
import numpy as np
from search.memory import give_back_freed, keep_freed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

keep_freed()
np.full(2**24, 1, np.uint8)
before = faults()
np.full(2**24, 1, np.uint8)
print(faults() - before)
held = pages()
give_back_freed()
print(held - pages())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told")
def test_freed_memory_is_used_again_and_given_back_when_asked() -> None:
    run = subprocess.run([sys.executable, "-c", REUSES], capture_output=True, text=True, check=True)
    again, given_back = map(int, run.stdout.split())
    assert again < 100  # of 4,096 pages
    assert given_back > 3000
