"""A real Ray cluster on this machine for tests/test_ray.py: a head without CPUs, and nodes of one CPU that come and go.

Run as a script, this file is its keeper: a process that has the cluster (`ray.cluster_utils.Cluster`), does what the
lines of its input say, answers each with a line, and ends the cluster when its input closes. So Ray is in no test's own
process, and goes however the tests end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
# Workers are as nice as the tests: Ray would have them wait for all else that the machine does. And a node that does
# not answer is gone after two seconds, by Ray's own default after fifteen.
SETTINGS = {
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class RayNodes:
    """The cluster; `address` is what `--on` takes, `folder` where Ray writes."""

    def __init__(self, home: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dialin-ray-"))  # a short path: a socket's may have 100 characters
        own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "RAY_TMPDIR": str(self.folder)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DIALIN_")}
        with (self.folder / "keeper.err").open("w") as said:
            self._keeper = subprocess.Popen(
                [sys.executable, __file__],
                cwd=home,
                env=kept | own | {"RAY_USAGE_STATS_ENABLED": "0"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        self.address = self._answer()

    def add(self, name: str) -> None:
        """Another node."""
        self._tell("add", name)

    def lose(self, name: str) -> None:
        """SIGKILL to all processes of a node at once, as when its machine goes."""
        self._tell("lose", name)

    def close(self) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(timeout=60)
        self._keeper.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tell(self, word: str, name: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(f"{word} {name}\n")
        self._keeper.stdin.flush()
        answer = self._answer()
        assert answer == f"{word} {name}: done", (answer, (self.folder / "keeper.err").read_text())

    def _answer(self) -> str:
        assert self._keeper.stdout is not None
        return self._keeper.stdout.readline().strip()


def lose(cluster: Any, node: Any) -> None:
    """End a node's processes: Ray's own, and those that its workers have started."""
    [raylet] = node.all_processes["raylet"]
    all_of_them = psutil.Process(raylet.process.pid).children(recursive=True)
    for process in all_of_them:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.remove_node(node, allow_graceful=False)


def keep() -> None:
    """Be the keeper: see the module's docstring."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints too
    from ray.cluster_utils import Cluster

    head = NODE | {"num_cpus": 0, "include_dashboard": False, "_system_config": SETTINGS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    print(cluster.address, file=answers, flush=True)
    nodes = {}
    for line in sys.stdin:
        word, name = line.split()
        if word == "add":
            nodes[name] = cluster.add_node(**NODE)
        else:
            lose(cluster, nodes.pop(name))
        print(f"{word} {name}: done", file=answers, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    keep()
