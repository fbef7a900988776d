"""How soon a search trains: `dialin run` from the command to the first epoch on record, with two workers, on SQLite.

    python -m benchmarks.start --repeats 5
    python -m benchmarks.start --objective fashion_mnist

Seconds since the command was started: until `import torch` has ended in the process that workers are forked from, until
the first trial was claimed (after the check on one batch and the making of the study), and until the first epoch was on
record. "after torch" is from the first of these to the last. CPU seconds are those of every process of a search of two
trials of one epoch, from the command to its end. Only one search runs at a time.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from sqlalchemy import create_engine, func, select

from benchmarks.measured import DIALIN, option_parser, print_header, spread
from storage.tables import EpochRow, TrialRow

WORKERS = 2
# Python imports a module of this name at the start of each process: it writes down when `import torch` ends.
NOTES_TORCH = """
import importlib.machinery, os, sys, time

class Notes:
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def timed(module):
            run(module)
            with open(os.environ["START_NOTES"], "a") as file:
                file.write(f"{time.time()}\\n")

        spec.loader.exec_module = timed
        return spec

sys.meta_path.insert(0, Notes())
"""
FIRST_CLAIM, FIRST_EPOCH = select(func.min(TrialRow.started_at)), select(func.min(EpochRow.ended_at))
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Start:
    """One search: seconds since its command was started, and CPU seconds of all its processes."""

    torch: float
    claim: float
    epoch: float
    after_torch: float
    cpu: float


def measure(objective: str) -> Start:
    """One search in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="dialin-start-") as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(NOTES_TORCH)
        path = os.pathsep.join(filter(None, (name, os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "START_NOTES": str(folder / "torch.txt")}
        arguments = ("--trials", WORKERS, "--epochs", 1, "--workers", WORKERS, "--devices", "cpu", "--seed", 0)
        command = [str(DIALIN), "run", objective, *map(str, arguments)]
        before, began = _cpu_seconds(), time.time()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        with suppress(ChildProcessError):  # what the command has left, such as the process that workers are forked from
            while True:
                os.wait()
        cpu = _cpu_seconds() - before
        torch = min(map(float, (folder / "torch.txt").read_text().split())) - began
        engine = create_engine(f"sqlite:///{folder / 'dialin.db'}")
        with engine.connect() as connection:
            claim, epoch = (connection.execute(first).scalar_one() - began for first in (FIRST_CLAIM, FIRST_EPOCH))
        engine.dispose()
    return Start(torch, claim, epoch, epoch - torch, cpu)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--objective", default="digits")
    asked = parser.parse_args()
    objective = str(Path(asked.objective).resolve()) if Path(asked.objective).is_file() else asked.objective
    # Processes whose parent has ended become this one's, and their CPU seconds count.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print_header("torch", "optuna", "sqlalchemy")
    print(f"n = {asked.repeats}, median (least to most), seconds")
    found = [astuple(measure(objective)) for _ in range(asked.repeats)]
    names = ("torch is imported", "first trial claimed", "first epoch on record", "after torch", "CPU, all processes")
    for name, values in zip(names, zip(*found, strict=True), strict=True):
        print(f"{name:22s} {spread(values, 2)}")


if __name__ == "__main__":
    main()
