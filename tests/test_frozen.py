"""A worker frozen past its lease by SIGSTOP, adopted and thawed: it records nothing, its adopter's files are whole."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from storage_places import make_study, optuna_study, worker_on
from storage_places import rows as rows_of
from studies import SLOW, assert_settled, engines_disposed, rows, value, wait_until

from search import children
from search.assignment import Assignment
from search.devices import Slot
from storage import engine, studies
from storage.patience import away
from storage.shared import open_storage
from storage.studies import StudyRecord, StudySpec
from storage.tables import StudyRow

EPOCHS = 20
LEASE_SECONDS = 5.0
SPEC = StudySpec(str(SLOW), "", "accuracy", "maximize", EPOCHS, 1, 0, "random", "none")


def work(assignment: Assignment, freeze_in_a_write: bool) -> None:
    """A worker's process: a checkpoint after every epoch; the second after the first freezes it, half written."""
    import torch

    from search import keeper, pace
    from search.worker import run_in_fleet

    whole: Callable[..., Any] = torch.save
    written = []

    def half(state: Any, file: Any) -> None:
        whole(state, file)
        if "state-0000" not in file.name:
            written.append(file.name)
        if len(written) == 2:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGSTOP)
            file.seek(0)
            whole(state, file)

    if freeze_in_a_write:
        setattr(torch, "save", half)  # noqa: B010 - of another signature
    pace.CHECKPOINT_SECONDS = 0.0
    keeper.LISTEN_SECONDS = keeper.RENEW_SECONDS = 0.2
    run_in_fleet(assignment, multiprocessing.Pipe()[0])


class Duel:
    """One trial and two workers: the first is frozen, the second takes over."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        storage = open_storage(url)
        self.study: StudyRecord = studies.create(storage, SPEC, stem="frozen")
        self.processes: list[BaseProcess] = []

    def start(self, *, freeze_in_a_write: bool = False) -> psutil.Process:
        places = (Slot(("cpu",), len(self.processes), None),)
        assignment = Assignment(
            self.url, self.study.name, str(SLOW), places, 1, self.folder, self.folder, lease_seconds=LEASE_SECONDS
        )
        process = children.start(work, assignment, freeze_in_a_write)
        self.processes.append(process)
        return psutil.Process(process.pid)

    def epochs(self, generation: int) -> list[int]:
        found = rows(self.url, "SELECT epoch FROM dialin_epochs WHERE generation = :g ORDER BY epoch", g=generation)
        return [epoch for (epoch,) in found]

    def has_whole_files(self) -> bool:
        """Whether the two newest states are on record, written by the second owner and as they were recorded."""
        root = self.folder / self.study.folder
        kept = [(root / path, sha256) for path, sha256 in rows(self.url, "SELECT path, sha256 FROM dialin_checkpoints")]
        return len(kept) == 2 and all(
            path.name.endswith(".g2.pt") and path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
            for path, sha256 in kept
        )

    def end(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()


def suspend_outside_a_write(process: psutil.Process, url: str) -> None:
    """Inside of one it would keep SQLite's only lock for as long as it is frozen."""

    def is_frozen_outside() -> bool:
        process.suspend()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the first worker is frozen")
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=1.0)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.resume()
                return False
        return True

    wait_until(is_frozen_outside, "the first worker is frozen outside of a transaction")


@pytest.fixture
def duel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Duel]:
    with engines_disposed():
        duel = Duel(request.getfixturevalue(request.param), tmp_path)
        yield duel
        duel.end()


@pytest.mark.parametrize(
    ("duel", "in_a_write"),
    [("sqlite_url", False), ("postgres_url", True)],
    indirect=["duel"],
    ids=["while it trains", "inside a checkpoint's write"],
)
def test_a_worker_frozen_past_its_lease_records_nothing_when_it_is_thawed(duel: Duel, in_a_write: bool) -> None:
    frozen = duel.start(freeze_in_a_write=in_a_write)
    wait_until(lambda: duel.epochs(1), "an epoch", 60)
    if not in_a_write:
        suspend_outside_a_write(frozen, duel.url)
    wait_until(lambda: frozen.status() == psutil.STATUS_STOPPED, "the first worker is frozen")
    left = duel.epochs(1)

    duel.start()
    wait_until(lambda: len(duel.epochs(2)) >= 3, "the second took over", 60)
    frozen.resume()
    log = duel.folder / "workers.log"
    wait_until(lambda: "going on with another" in log.read_text(), "the first worker hears that it is not its any more")

    assert set(duel.epochs(1)) <= set(left), "some may have been trained again"
    (Path.cwd() / "stuck").touch()  # no more epochs, and soon no more files
    wait_until(duel.has_whole_files, "every file on record is the adopter's, and whole")
    (Path.cwd() / "stuck").unlink()
    (Path.cwd() / "hurry").touch()
    for process in duel.processes:
        process.join(60)
        assert process.exitcode == 0
    [trial] = assert_settled(duel.url, duel.study.name, 1)
    assert [*trial.intermediate_values] == [*range(1, EPOCHS + 1)]
    assert value(duel.url, "SELECT max(generation) FROM dialin_owners") == 2
    assert duel.epochs(1) + duel.epochs(2) == [*range(1, EPOCHS + 1)]


def test_a_client_frozen_inside_a_transaction_keeps_the_others_waiting_for_so_long_only(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engines_disposed():
        frozen, other = worker_on(postgres_url), worker_on(postgres_url)
        record = make_study(other, trials=1)
        frozen.backend.engine.dispose()
        monkeypatch.setattr(engine, "IDLE_SECONDS", 2)
        with frozen.backend.engine.connect() as connection:
            monkeypatch.undo()  # or a busy machine may end what the others do between two statements
            connection.execute(update(StudyRow).values(reason="mine"))
            optuna_study(other, record).ask()  # what it needs is locked until the server has ended that transaction
            with pytest.raises(DBAPIError) as ended:
                connection.execute(update(StudyRow).values(reason="still mine"))
        assert away(ended.value)
        assert [row.reason for row in rows_of(other, StudyRow)] == [""]
