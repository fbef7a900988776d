"""What share of the training time checkpoints take: the same trials trained with them and without.

    python -m benchmarks.checkpoints --repeats 3

Two workers with one thread each, on SQLite, train one trial each of a fixed recipe (SGD with momentum), so that on two
cores none is idle that could write for nothing. "small" is a convolutional network, "large" three layers of 3,000;
their data is random. "with" writes a state every 5 s, or less often where that would take more than a twentieth of the
time; "without" never. Seconds are from a trial's first epoch on record to its last, the longer of the two. The two ways
take turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from chaos import looking, work
from sqlalchemy import func, select

from benchmarks.measured import option_parser, print_header, spread
from search import children
from search.assignment import Assignment
from search.devices import Slot
from storage import studies
from storage.shared import open_storage
from storage.studies import StudySpec
from storage.tables import CheckpointRow, EpochRow

OBJECTIVE = """
import torch
from torch import nn

from search import Objective, split

LARGE = {large}


def model(trial):
    if LARGE:
        widths = (784, 3000, 3000, 3000)
        dense = [layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *dense, nn.Linear(3000, 10))
    conv = nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(1600, 10))


def data(root):
    draw = torch.Generator().manual_seed(0)
    return split(torch.rand({images}, 1, 28, 28, generator=draw), torch.randint(10, ({images},), generator=draw))


recipe = {{"optimizer": "momentum", "lr": 0.001, "batch_size": 64, "schedule": "constant"}}
objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), metric="loss", epochs={epochs}, knobs=recipe)
"""
KINDS = {
    "small": {"large": False, "images": 6_000, "epochs": 24},
    "large": {"large": True, "images": 2_500, "epochs": 12},
}
NEVER = {"search.pace:CHECKPOINT_SECONDS": 1e9}
WORKERS = 2
STATES = select(CheckpointRow.checkpoint_id, CheckpointRow.size).where(CheckpointRow.kind == "state")
_ENDED = EpochRow.ended_at
_OF_TRIALS = select((func.max(_ENDED) - func.min(_ENDED)).label("seconds")).group_by(EpochRow.trial_id).subquery()
SECONDS = select(func.max(_OF_TRIALS.c.seconds))


@dataclass(frozen=True)
class Run:
    """One repeat: its seconds, and the checkpoints that were seen on record, with the size of one in bytes."""

    seconds: float
    checkpoints: int
    size: int


def train(kind: str, tempo: dict[str, float]) -> Run:
    """Both trials, each in a worker of its own."""
    with tempfile.TemporaryDirectory(prefix="dialin-checkpoints-") as name:
        folder = Path(name)
        file = folder / "benchmark.py"
        file.write_text(OBJECTIVE.format(**KINDS[kind]))
        url = f"sqlite:///{folder / 'study.db'}"
        spec = StudySpec(str(file), "", "loss", "minimize", KINDS[kind]["epochs"], WORKERS, 0, "random", "none")
        storage = open_storage(url)
        study = studies.create(storage, spec, stem="benchmark").name
        storage.backend.engine.dispose()
        processes = []
        for index in range(WORKERS):
            assignment = Assignment(url, study, str(file), (Slot(("cpu",), index, None),), 1, folder / "files", folder)
            _, theirs = multiprocessing.Pipe(duplex=False)
            processes.append(children.start(work, theirs, assignment, {}, tempo))
        seen: dict[int, int] = {}
        with looking(url) as engine:
            while any(process.is_alive() for process in processes):
                time.sleep(0.5)
                with engine.connect() as connection:
                    seen |= {state: size or 0 for state, size in connection.execute(STATES)}
            assert all(process.exitcode == 0 for process in processes), "a worker failed"
            with engine.connect() as connection:
                seconds = connection.scalar(SECONDS)
    return Run(float(seconds or 0.0), len(seen), max(seen.values(), default=0))


def main() -> None:
    """Train and print the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print_header("torch")
    print(f"n = {repeats}, medians (least to most)")
    print("network  state, MiB  checkpoints  seconds with       without              longer by")
    children.warm_up()
    for kind in KINDS:
        pairs = [(train(kind, {}), train(kind, NEVER)) for _ in range(repeats)]
        assert all(kept.checkpoints and not never.checkpoints for kept, never in pairs), "nothing was compared"
        longer = [100 * (kept.seconds / never.seconds - 1) for kept, never in pairs]
        kept, never = zip(*pairs, strict=True)
        print(
            f"{kind:7s} {kept[0].size / 2**20:11.1f} {statistics.median(one.checkpoints for one in kept):12g} "
            f"  {spread([one.seconds for one in kept]):21s}  {spread([one.seconds for one in never]):21s} "
            f"{spread(longer)} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
