"""What sharing the data among the workers of a machine saves: wall time to the first epoch of all, and memory.

    python benchmarks/shared_data.py --data FOLDER --workers 1 2 4 --repeats 3

FOLDER has FashionMNIST/raw. Its 60,000 images are made 64x64 as they are loaded: 235 MiB of bytes, and a cost such
as decoding has. "each" loads them in every worker and once for the first check: there the benchmark's own data()
changes a name of its module, after which Dialin shares nothing. Seconds count from the command to the end of the
first epoch of the last worker; memory is the workers' proportional set size (PSS), where a page that k processes
share counts a k-th for each, at that moment. Medians; the two ways take turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

DIALIN = Path(sys.executable).with_name("dialin")
OBJECTIVE = """
import time
from pathlib import Path

import torch
from torch import nn
from torchvision.datasets import FashionMNIST

from search import Objective, Task, find_dataset, split, supervised

ALONE = False


def data(root):
    global ALONE
    ALONE = Path("alone").exists()
    part = FashionMNIST(find_dataset("FashionMNIST/raw", FashionMNIST.resources, root, get=""))
    large = [nn.functional.interpolate(some[:, None].float(), 64, mode="bilinear") for some in part.data.split(1000)]
    return split(torch.cat([some.to(torch.uint8) for some in large]), part.targets, valid=1000)


def model(trial):
    plain = supervised(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss())
    steps = 0

    def step(net, batch):
        nonlocal steps
        steps += 1
        while steps > 461 and not Path("measured").exists():  # in the second epoch, of 59,000 images
            time.sleep(0.05)
        return plain.step(net, batch)

    return Task(plain.net, step, plain.predict)


objective = Objective(model=model, data=data, metric="accuracy", epochs=2, batch_sizes=(128,))
"""


def measure(workers: int, data: Path, shared: bool) -> tuple[float, float]:
    """Seconds to the first epoch of all workers, and their PSS in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.py").write_text(OBJECTIVE)
        if not shared:
            (folder / "alone").touch()
        count = str(workers)
        options = ["--workers", count, "--trials", count, "--pruner", "none", "--devices", "cpu", "--data", str(data)]
        started = time.time()
        run = subprocess.Popen([DIALIN, "run", "large.py", *options], cwd=folder, stdout=subprocess.DEVNULL)
        while len(found := first_epochs(folder / "dialin.db")) < workers:
            if run.poll() is not None:
                raise SystemExit(f"dialin ended with {run.returncode}")
            time.sleep(0.1)
        memory = sum(proportional_bytes(pid) for pid, _ended in found)
        (folder / "measured").touch()
        run.wait()
        return max(ended for _pid, ended in found) - started, memory / 2**20


def first_epochs(database: Path) -> list[tuple[int, float]]:
    """The process and the end of the first epoch of each worker so far."""
    if not database.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(
                "SELECT w.pid, min(e.ended_at) FROM dialin_epochs e JOIN dialin_workers w USING (worker_id) "
                "GROUP BY w.pid"
            ).fetchall()
    except sqlite3.OperationalError:  # the tables are not there yet
        return []


def proportional_bytes(pid: int) -> int:
    """A process's PSS; a file's pages that no process reads any more count for nobody."""
    return 1024 * int(re.findall(r"^Pss: *(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[0])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "optuna"))
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores; Python {platform.python_version()}, {versions}"
    )
    measure(1, arguments.data, shared=True)  # unpacks the files, and warms the disk's cache
    print(f"n = {arguments.repeats}, medians (least to most)")
    print("workers  data    seconds                 PSS of all workers, MiB")
    for workers in arguments.workers:
        ways = {"once": True, "each": False} if workers > 1 else {"each": True}
        rows: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(arguments.repeats):
            for way, shared in ways.items():
                rows[way].append(measure(workers, arguments.data, shared))
        for way, measured in rows.items():
            seconds, memory = zip(*measured, strict=True)
            print(
                f"{workers:7d}  {way}  {statistics.median(seconds):9.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
                f"  {statistics.median(memory):12.0f} ({min(memory):.0f} to {max(memory):.0f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
