"""The database goes away while real workers train: nothing is lost, and each log has one line about it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Dialin, Running
from postgres_server import PostgresServer
from studies import SLOW, TINY, assert_settled, engines_disposed, value, wait_until

from search import children
from search.assignment import Assignment
from search.devices import Slot
from search.worker import run_in_fleet
from storage import studies
from storage.claims import Claimant, Lease
from storage.shared import open_storage
from storage.studies import StudySpec

SPEC = StudySpec(str(TINY), "", "accuracy", "maximize", 2, 1, 0, "random", "none")
NOTICE = "the database does not answer, asking again"


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """One that a test may kill; it runs again afterwards."""
    yield postgres_server
    postgres_server.start_again()


def training(dialin: Dialin, url: str, *arguments: object, **environment: str) -> Running:
    """`dialin run` with workers that have an epoch on record."""
    open_storage(url).backend.engine.dispose()  # there are tables to look into
    run = dialin.start("run", SLOW, "--pruner", "none", *arguments, DIALIN_STORAGE=url, **environment)
    run.wait_until(lambda: value(url, "SELECT count(*) FROM dialin_epochs"))
    return run


def log() -> str:
    """What all workers and trials have in their logs."""
    return "".join(path.read_text() for path in Path.home().rglob("*") if path.suffix in (".txt", ".log"))


def test_a_server_that_is_killed_and_started_again_costs_a_study_nothing(
    dialin: Dialin, postgres_url: str, server: PostgresServer, tmp_path: Path
) -> None:
    run = training(dialin, postgres_url, "--trials", 3, "--workers", 1, "--epochs", 9)
    server.crash()
    run.wait_for(NOTICE)
    run.wait_until(lambda: NOTICE in log())
    server.start_again()
    run.wait_until(lambda: "the database answers again" in log())
    (tmp_path / "hurry").touch()
    assert run.wait() == 0, run.stderr
    found = assert_settled(postgres_url, "slow-1", 3)
    assert [[*trial.intermediate_values] for trial in found] == [[*range(1, 10)]] * 3
    assert value(postgres_url, "SELECT count(*) FROM dialin_epochs WHERE generation > 1") == 0, "nobody lost a trial"
    assert log().count(NOTICE) == 1
    assert "Traceback" not in log()
    assert "worker cpu" not in run.stdout, "none has died"
    assert "the database answers again" in run.stdout


def test_a_server_that_stays_away_ends_the_workers_with_a_line_and_their_trial_is_adopted_later(
    dialin: Dialin, postgres_url: str, server: PostgresServer
) -> None:
    run = training(dialin, postgres_url, "--trials", 1, "--workers", 1, "--epochs", 9, DIALIN_AWAY_SECONDS="0.5")
    server.crash()
    assert run.wait() == 1
    assert run.stderr.count("\n") == 1, run.stderr
    assert "the database has not answered for" in run.stderr
    assert "Traceback" not in log()
    server.start_again()
    with engines_disposed():
        other = open_storage(postgres_url, Claimant("another"))
        with other.backend.write() as session:  # half a minute passes
            session.connection().exec_driver_sql("UPDATE dialin_leases SET expires_at = 1 WHERE expires_at > 0")
        lease = other.adopt(studies.find(other, "slow-1").study_id)
        assert isinstance(lease, Lease)
        assert lease.generation == 2
        assert other.cost(lease)[0] >= 1, "what was on record before is"


def said(folder: Path) -> str:
    """What workers have said between trials."""
    log = folder / "workers.log"
    return log.read_text() if log.exists() else ""


def test_a_worker_that_starts_while_the_server_is_away_waits_for_it(
    postgres_url: str, server: PostgresServer, tmp_path: Path
) -> None:
    with engines_disposed():
        study = studies.create(open_storage(postgres_url), SPEC, stem="tiny")
    server.crash()
    places = (Slot(("cpu",), 0, None),)
    assignment = Assignment(postgres_url, study.name, str(TINY), places, 1, tmp_path, tmp_path)
    worker = children.start(run_in_fleet, assignment, multiprocessing.Pipe()[0])
    try:
        wait_until(lambda: NOTICE in said(tmp_path), "the worker asks again", 60)
        server.start_again()
        worker.join(60)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        worker.join()
    assert_settled(postgres_url, study.name, 1)
    assert said(tmp_path).count("\n") == 1
