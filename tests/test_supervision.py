"""A worker that dies is started again, later and later, and not at all where that is hopeless."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from studies import TINY_TEXT, Inside, assert_settled, rows, value

from search import children
from search.assignment import Assignment
from search.devices import Slot
from search.fleet import Fleet
from search.restarts import FIRST_SECONDS, LONGEST_SECONDS, WELL_SECONDS, Restarts
from storage import workers
from storage.errors import DialinError
from storage.shared import open_storage
from storage.workers import Work

IN_A_WORKER = 'multiprocessing.current_process().name == "_run_worker"'
RUN = ("run", "mortal.py", "--trials", 2, "--workers", 1, "--pruner", "none")


def write_mortal(folder: Path, at_import: str = "pass", in_a_trial: str = "pass") -> None:
    """An objective that does this in a worker when it is imported, and whenever a trial's model is made."""
    trial = "def model(trial: Trial) -> nn.Module:\n"
    assert trial in TINY_TEXT
    body = TINY_TEXT.replace(trial, f"{trial}    if {IN_A_WORKER}:\n        {in_a_trial}\n")
    imports = "import multiprocessing, os, signal\n"
    (folder / "mortal.py").write_text(f"{imports}{body}\nif {IN_A_WORKER}:\n    {at_import}\n")


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def test_the_only_worker_dies_and_another_goes_on_with_its_trial(
    inside: Inside, tmp_path: Path, either_url: str
) -> None:
    write_mortal(tmp_path, in_a_trial=f"Path('died').exists() or (Path('died').touch(), {KILL})")
    said = inside(*RUN, "--storage", either_url)
    assert said.status == 0, said.out + said.err
    assert "worker cpu/0 failed: killed by SIGKILL; its trial goes on elsewhere; another starts in 1 s\n" in said.out
    assert "Traceback" not in said.out + said.err
    assert_settled(either_url, "mortal-1", 2)
    owners = rows(either_url, "SELECT generation, ending FROM dialin_owners WHERE trial_id = 1 ORDER BY generation")
    assert [tuple(owner) for owner in owners] == [(1, "died"), (2, "settled")]
    assert value(either_url, "SELECT count(DISTINCT worker_id) FROM dialin_workers") == 2


def test_one_that_dies_at_its_start_is_given_up(inside: Inside, tmp_path: Path, sqlite_url: str) -> None:
    write_mortal(tmp_path, at_import=KILL)
    said = inside(*RUN, "--storage", sqlite_url)
    assert said.status == 1
    deaths = [line.partition("killed by SIGKILL; ")[2] for line in said.out.splitlines() if "failed" in line]
    given_up = "given up: it died at its start 3 times in a row (`dialin logs --workers` has more)"
    assert deaths == ["another starts in 1 s", "another starts in 2 s", given_up]
    assert value(sqlite_url, "SELECT taken FROM dialin_studies") == 0


def test_a_mistake_in_the_objective_is_said_once(inside: Inside, tmp_path: Path, sqlite_url: str) -> None:
    write_mortal(tmp_path, at_import="raise RuntimeError('no licence')")
    said = inside(*RUN, "--storage", sqlite_url)
    assert said.status == 1
    [line] = [line for line in said.out.splitlines() if "failed" in line]
    assert "no licence" in line
    assert "another starts" not in line


def test_a_fleet_that_cannot_be_started_whole_leaves_no_worker(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[BaseProcess] = []

    def start(*arguments: Any) -> BaseProcess:
        if started:
            raise DialinError("the process that workers are forked from was killed")
        started.append(really(*arguments))
        return started[0]

    really = children.start
    children.warm_up()
    monkeypatch.setattr(children, "start", start)
    assignment = Assignment(sqlite_url, "none", "digits", (), 1, tmp_path, tmp_path)
    with pytest.raises(DialinError, match="was killed"):
        Fleet(open_storage(sqlite_url), assignment, [Slot(("cpu",), 0, None), Slot(("cpu",), 1, None)])
    [process] = started
    assert not process.is_alive()


def test_a_death_of_which_the_database_did_not_hear_keeps_nobody_from_waiting(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> int:
        raise StorageInternalError("the database does not answer")

    children.warm_up()
    assignment = Assignment(sqlite_url, "none", "digits", (), 1, tmp_path, tmp_path)
    fleet = Fleet(open_storage(sqlite_url), assignment, [Slot(("cpu",), 0, None)])
    [member] = fleet.members
    assert fleet.sentinels() == [member.process.sentinel]
    member.process.kill()
    member.process.join()
    monkeypatch.setattr(workers, "end", away)
    with pytest.raises(StorageInternalError):
        list(fleet.deaths())
    assert fleet.unheard
    assert fleet.sentinels() == []


# -- How long until the next start

IDLE, CLAIMED, SETTLED = Work(0, 0), Work(1, 0), Work(2, 1)


def test_pauses_double_up_to_a_minute() -> None:
    restarts = Restarts()
    assert [restarts.after(CLAIMED, 1) for _ in range(8)] == [1, 2, 4, 8, 16, 32, LONGEST_SECONDS, LONGEST_SECONDS]


@pytest.mark.parametrize(("work", "seconds"), [(SETTLED, 1.0), (CLAIMED, WELL_SECONDS)])
def test_a_settled_trial_or_a_minute_of_work_makes_it_soon_again(work: Work, seconds: float) -> None:
    restarts = Restarts()
    assert [restarts.after(CLAIMED, 1) for _ in range(3)] == [1, 2, 4]
    assert [restarts.after(work, seconds), restarts.after(CLAIMED, 1)] == [FIRST_SECONDS, 2]


def test_three_deaths_in_a_row_before_any_trial_are_enough() -> None:
    restarts = Restarts()
    assert [restarts.after(work, 1) for work in (IDLE, IDLE, CLAIMED, IDLE, IDLE)] == [1, 2, 4, 8, 16]
    assert restarts.after(IDLE, WELL_SECONDS) is None
