"""What sharing the data among the workers of a machine saves: wall time to the first epoch of all, and memory.

    python -m benchmarks.shared_data --data FOLDER --workers 1 2 4 --repeats 3

FOLDER has FashionMNIST/raw. Its 60,000 images are made 64x64 as they are loaded: 235 MiB of bytes, and a cost such
as decoding has. "each" loads them in every worker and once for the first check: there the benchmark's own data()
changes a name of its module, after which Dialin shares nothing. Seconds count from the command to the end of the
first epoch of the last worker; memory is the workers' proportional set size (PSS), where a page that k processes
share counts a k-th for each, at that moment. Medians; the two ways take turns.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.exc import OperationalError

from benchmarks.measured import DIALIN, option_parser, print_header, spread
from storage.tables import EpochRow, WorkerRow

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
    ends = select(WorkerRow.pid, func.min(EpochRow.ended_at)).join(EpochRow, EpochRow.worker_id == WorkerRow.worker_id)
    engine = create_engine(f"sqlite:///file:{database}?mode=ro&uri=true", poolclass=NullPool)
    try:
        with engine.connect() as connection:
            return [(pid, ended) for pid, ended in connection.execute(ends.group_by(WorkerRow.pid))]
    except OperationalError:  # the tables are not there yet
        return []


def proportional_bytes(pid: int) -> int:
    """A process's PSS; a file's pages that no process reads any more count for nobody."""
    return 1024 * int(re.findall(r"^Pss: *(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[0])


def main() -> None:
    """Measure and print the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print_header("torch", "optuna")
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
                f"{workers:7d}  {way}    {spread(seconds):22s}  {spread(memory, 0)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
