"""How long a newcomer waits: `dialin run digits` as a whole process, from an empty folder, seed by seed.

    python -m benchmarks.first_run --seeds 3

Prints seconds and best validation accuracy for each seed, then the median and the range.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time

from benchmarks.measured import DIALIN, every_gpu, option_parser, print_header, spread


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
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    print_header("torch", "optuna", gpus=every_gpu())
    print("seed  seconds  trials  accuracy")
    rows = []
    for seed in seeds:
        seconds, accuracy, trials = measure(seed)
        rows.append((seconds, accuracy))
        print(f"{seed:4d}  {seconds:7.1f}  {trials:6d}  {accuracy:.4f}", flush=True)
    times, values = zip(*rows, strict=True)
    print(f"seconds {spread(times)}, accuracy {spread(values, 4)}: medians (least to most), n = {len(rows)}")


if __name__ == "__main__":
    main()
