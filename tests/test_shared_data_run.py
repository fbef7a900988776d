"""`dialin run` loads the data once for all its workers, and trains as if each had loaded it."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from command import Dialin
from studies import SLOW, Inside, all_have_ended, assert_settled, rows, wait_until

from search import Data, children
from search.packing import pack, unpack
from search.shared_data import NamelessFile, Packed

# No knobs of its own: trials are the recipe's starting points, whichever worker takes them. With a file `alone`
# in the working folder data() changes its module, so that every worker must call it.
OBJECTIVE = '''
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from search import Data, Objective, split

LOADED = False


class Points(Dataset):
    """Changes as it is used: every row is a little larger when it is asked for again."""

    def __init__(self, points, labels):
        self.points, self.labels, self.asked = points, labels, torch.zeros(len(points))

    def __len__(self):
        return len(self.points)

    def __getitem__(self, row):
        self.asked[row] += 1
        return self.points[row] * (1 + 0.01 * self.asked[row]), self.labels[row]


def data(root):
    global LOADED
    LOADED = Path("alone").exists()
    with open("calls", "a") as file:
        file.write("x")
    points = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    labels = (points.sum(1) > 0).long()
    DATA


def model(trial):
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


objective = Objective(
    model=model, data=data, loss=nn.CrossEntropyLoss(), metric="accuracy", epochs=2, trials=3, batch_sizes=(32,)
)
'''
SPLITS = {
    "tensors": "return split(points, labels, valid=0.3, augment=lambda x, generator: x + 0.1)",
    "a dataset": "return Data(Points(points, labels), Points(points[:32], labels[:32]))",
}
CURVES = (
    "SELECT t.number, e.epoch, e.metrics FROM dialin_epochs e JOIN trials t ON t.trial_id = e.trial_id "
    "ORDER BY t.number, e.epoch"
)


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS.keys())
def test_the_curves_are_those_of_workers_that_load_their_own(inside: Inside, tmp_path: Path, splits: str) -> None:
    """Of one trial: the next one's depends on which worker takes it, where the dataset remembers."""
    (tmp_path / "mine.py").write_text(OBJECTIVE.replace("DATA", splits))
    curves = []
    for name, calls in (("shared", 1), ("alone", 3)):
        if name == "alone":
            (tmp_path / "alone").touch()
        url = f"sqlite:///{tmp_path / name}.db"
        options = ("--pruner", "none", "--seed", 1, "--trials", 1, "--workers", 2, "--storage", url)
        run = inside("run", "mine.py", *options)
        assert run.status == 0, run.err
        assert_settled(url, "mine-1", 1)
        assert (tmp_path / "calls").read_text() == "x" * calls
        (tmp_path / "calls").unlink()
        curves.append(rows(url, CURVES))
    assert curves[0] == curves[1]
    assert len(curves[0]) == 2
    said = (tmp_path / "dialin-files" / "workers.log").read_text().splitlines()
    assert said == ["this worker loads the data itself: data() changes LOADED of mine.py"] * 2


def test_a_single_worker_loads_its_own(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OBJECTIVE.replace("DATA", SPLITS["tensors"]))
    assert inside("run", "mine.py", "--workers", 1, "--trials", 1).status == 0
    assert (tmp_path / "calls").read_text() == "xx", "for the first check, and to train"


def has_mapped(pid: int, folder: Path) -> bool:
    """Whether a process has a file mapped that was made in this folder and is in it no more."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return any(str(folder) in line and line.endswith("(deleted)") for line in maps)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A temporary folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_command_that_is_killed_leaves_no_data_behind(dialin: Dialin, tmp_path: Path, scratch: Path) -> None:
    run = dialin.start("run", SLOW, "--workers", 2, TMPDIR=str(scratch))
    url = f"sqlite:///{tmp_path / 'dialin.db'}"
    run.wait_until((tmp_path / "dialin.db").exists)
    run.wait_until(lambda: len(rows(url, "SELECT name FROM sqlite_master WHERE name = 'dialin_epochs'")) == 1)
    run.wait_until(lambda: len(rows(url, "SELECT DISTINCT worker_id FROM dialin_epochs")) == 2)
    workers = [pid for (pid,) in rows(url, "SELECT pid FROM dialin_workers")]
    started = psutil.Process(run.pid).children(recursive=True)
    assert all(has_mapped(pid, scratch) for pid in workers)
    assert [path for path in scratch.rglob("*") if path.is_file()] == []
    run.send_signal(signal.SIGKILL)
    wait_until(lambda: all_have_ended(child.pid for child in started), "the end of all that it started")
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def overwrite(packed: Packed, value: int, said: Connection) -> None:
    """The body of a process: write to the data, wait until the other has too, say what is there then."""
    found = unpack(packed)
    found.train[0].fill_(value)
    said.send("written")
    said.recv()
    said.send((found.train[0].unique().tolist(), found.valid[0].sum().item()))


def test_a_process_that_writes_changes_its_own_copy_only() -> None:
    data = Data((torch.zeros(3000, 10),), (torch.ones(5000),))
    packed = pack(data, NamelessFile.make())
    children.warm_up()
    context = multiprocessing.get_context("forkserver")
    pipes, processes = [], []
    for value in (1, 2):
        ours, theirs = multiprocessing.Pipe()
        processes.append(context.Process(target=overwrite, args=(packed, value, theirs)))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    assert [pipe.recv() for pipe in pipes] == ["written"] * 2
    for pipe in pipes:
        pipe.send("go on")
    assert [pipe.recv() for pipe in pipes] == [([1.0], 5000.0), ([2.0], 5000.0)]
    for process in processes:
        process.join()
    assert unpack(packed).train[0].sum() == 0
