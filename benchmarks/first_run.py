"""How long a newcomer waits: `dialin run digits` as a whole process, from an empty folder, seed by seed.

    python benchmarks/first_run.py --seeds 3

Prints seconds and best validation accuracy for each seed, then the median and the range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

DIALIN = Path(sys.executable).with_name("dialin")


def measure(seed: int) -> tuple[float, float, int]:
    """Seconds, best accuracy and settled trials of one search with the default budget."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [DIALIN, "run", "digits", "--seed", str(seed)], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - started
        told = subprocess.run([DIALIN, "status", "--json"], cwd=folder, check=True, capture_output=True, text=True)
    status = json.loads(told.stdout)
    return seconds, status["best"]["value"], status["settled"]


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "optuna"))
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores; Python {platform.python_version()}, {versions}"
    )
    print("seed  seconds  trials  accuracy")
    rows = []
    for seed in seeds:
        seconds, accuracy, trials = measure(seed)
        rows.append((seconds, accuracy))
        print(f"{seed:4d}  {seconds:7.1f}  {trials:6d}  {accuracy:.4f}", flush=True)
    times, values = zip(*rows, strict=True)
    print(
        f"median {statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f}), "
        f"accuracy {statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f}), n = {len(rows)}"
    )


if __name__ == "__main__":
    main()
