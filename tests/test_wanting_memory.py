"""Memory that really is wanting: a failed allocation under a limit, a worker that the system killed for it."""

from __future__ import annotations

import multiprocessing.connection
import re
import resource
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from narrow import fitted, objective
from sqlalchemy.exc import OperationalError
from storage_places import adopted_by, make_study, optuna_study, rows, worker_on
from studies import OBJECTIVES
from torch import nn

from search import children
from search.assignment import Assignment
from search.devices import Slot
from search.fleet import Fleet
from search.memory import OomKills
from search.micro_batch_size import MicroBatchSize
from search.sizes import StoredSizes
from storage import micro_batches, studies, workers
from storage.outcomes import Outcome
from storage.shared import SharedStorage, open_storage
from storage.studies import StudySpec
from storage.tables import MicroBatchRow, OwnerEnding, OwnerRow, TrialRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


def trained_under_a_limit(answer: Connection) -> None:
    """Runs in a process of its own. A network without and one with batch norm: outcome, size and reason of each."""

    def wide(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 200_000), *layers, nn.Linear(200_000, 2))

    torch.set_num_threads(1)
    fitted(objective(wide, batch_sizes=(2,), epochs=1))
    told = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in told if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, ((used * 1024 + 100 * 2**20,) * 2))
    for layer in (nn.Tanh(), nn.BatchNorm1d(200_000)):
        micro_batch = MicroBatchSize()
        result = fitted(objective(partial(wide, layer), batch_sizes=(48,), epochs=1), micro_batch=micro_batch)
        answer.send((result.outcome, micro_batch.size, result.reason))


def test_a_failed_allocation_halves_the_batch_where_that_is_exact() -> None:
    """The activations of 48 samples take 40 MB in each of three layers, and as much again on the way back."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = children.start(trained_under_a_limit, theirs)
    theirs.close()
    exact, different = ours.recv(), ours.recv()
    child.join()
    assert (exact[0], exact[1] in (3, 6, 12, 24), exact[2]) == (Outcome.COMPLETE, True, ""), exact
    assert different[:2] == (Outcome.OUT_OF_MEMORY, None)
    assert re.match(
        r"out of memory at batch size 48: .*DefaultCPUAllocator.*; trained in parts, it would not train the same: "
        r"BatchNorm1d '1' mixes the samples of a batch",
        different[2],
    ), different


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu() -> None:
    """Of 48 samples the activations take 380 MB in each layer; the network and its optimizer some 200 MB."""
    torch.cuda.empty_cache()
    device, micro_batch = torch.device("cuda", 0), MicroBatchSize()
    room = torch.cuda.memory_reserved(device) + 2**30
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        made = objective(lambda: nn.Sequential(nn.Linear(3, 2_000_000), nn.Tanh(), nn.Linear(2_000_000, 2)), epochs=1)
        result = fitted(replace(made, batch_sizes=(48,)), micro_batch=micro_batch, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert (result.outcome, result.reason) == (Outcome.COMPLETE, "")
    assert micro_batch.size in (6, 12, 24)


KILLER = """
import os, signal
from pathlib import Path

import tiny
from torch import nn

from search import Objective

HERE = Path(__file__).parent
COUNTER = HERE / "groups" / "memory.events"


class Narrow(nn.Module):
    def forward(self, points):
        if self.training and len(points) > 16:
            COUNTER.write_text("oom_kill %d" % (1 + int(COUNTER.read_text().split()[1])))
            os.kill(os.getpid(), signal.SIGKILL)
        return points


objective = Objective(
    model=lambda trial: nn.Sequential(Narrow(), nn.Linear(4, 2)),
    data=tiny.data, loss=nn.CrossEntropyLoss(), epochs=2, batch_sizes=(32,),
)
"""


def test_whoever_adopts_from_the_killed_takes_half_of_the_batch(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "narrow_objective.py"
    file.write_text(f"import sys; sys.path.insert(0, {str(OBJECTIVES)!r})\n{KILLER}")
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "memory.events").write_text("oom_kill 7")
    storage = open_storage(sqlite_url)
    spec = StudySpec(str(file), "", "accuracy", "maximize", epochs=2, trials=1, seed=0, sampler="random", pruner="none")
    record = studies.create(storage, spec, stem="narrow")
    slot = Slot(("cpu",), 0, None)
    assignment = Assignment(
        sqlite_url, record.name, str(file), (), 1, tmp_path / "files", tmp_path, worker_id="made by the fleet"
    )
    reasons = []
    fleet = Fleet(storage, assignment, [slot], oom_kills=OomKills(tmp_path / "proc", tmp_path / "groups"))
    try:
        while fleet.alive:
            multiprocessing.connection.wait(fleet.sentinels(), timeout=0.25)
            reasons += [death.reason for death in fleet.deaths()]
            fleet.start_again()
    finally:
        fleet.kill()
    assert reasons == ["killed by the system for want of memory"]
    [row] = rows(storage, TrialRow)
    assert row.outcome == Outcome.COMPLETE, row.reason
    assert [owner.ending for owner in rows(storage, OwnerRow)] == ["out_of_memory", "settled"]
    assert [row.samples for row in rows(storage, MicroBatchRow)] == [16]


class TestOnRecord:
    @pytest.fixture
    def worker(self, common_url: str) -> SharedStorage:
        return worker_on(common_url)

    def test_the_smallest_size_stays(self, worker: SharedStorage) -> None:
        for model, size in (("a", 8), ("a", 4), ("a", 16), ("b", 2)):
            micro_batches.keep(worker, model, "cpu 8 GiB", size)
        found = [micro_batches.find(worker, *one) for one in (("a", "cpu 8 GiB"), ("b", "cpu 8 GiB"), ("a", "cpu"))]
        assert found == [4, 2, None]

    def test_a_database_that_is_gone_holds_nothing_up(
        self, worker: SharedStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def gone(*_: object) -> None:
            raise OperationalError("SELECT 1", {}, Exception("the server closed the connection"))

        sizes = StoredSizes(worker, torch.device("cpu"))
        for name in ("find", "keep"):
            monkeypatch.setattr(micro_batches, name, gone)
        sizes.keep("c", 8)
        assert (sizes.find("c"), sizes.find("d")) == (8, None)

    def test_kills_count_from_owner_to_owner(self, worker: SharedStorage) -> None:
        record = make_study(worker)
        lease = worker.lease_of(optuna_study(worker, record).ask())
        found = [worker.kills_in_a_row(lease)]
        kill = OwnerEnding.OUT_OF_MEMORY
        for how in (kill, kill, OwnerEnding.DIED, kill):
            workers.end(worker, lease.worker_id, how)
            lease = adopted_by(worker, record)
            found.append(worker.kills_in_a_row(lease))
        worker.hand_back(lease)
        found.append(worker.kills_in_a_row(adopted_by(worker, record)))
        assert found == [0, 1, 2, 0, 1, 0]
