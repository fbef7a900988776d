"""Workers killed at random: the study ends with its trials, each trained as if nothing had happened.

The long ones are `benchmarks/chaos.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chaos import KILL, Chaos, Plan
from chaos_checks import complaints, lost, unlike_their_twins
from postgres_server import PostgresServer
from studies import trials

PLAN = Plan(
    workers=3,
    trials=8,
    epochs=6,
    blows_in_all=5,
    step_seconds=0.02,
    tempo={"search.pace:CHECKPOINT_SECONDS": 0.2},
    limit_seconds=120,
)
# Workers that have nothing to do look again soon.
QUICK = {"search.chooser:WAIT_SECONDS": 0.1}


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server of the test's own: it is killed."""
    server = PostgresServer(tmp_path)
    yield server
    server.stop()


def test_workers_killed_at_any_moment_lose_no_trial_and_change_no_curve(sqlite_url: str, tmp_path: Path) -> None:
    check_that_nothing_is_lost(Chaos(sqlite_url, tmp_path, PLAN))


def test_nor_do_pauses_whose_workers_are_killed(storage_url: str, tmp_path: Path) -> None:
    """Of eight trials that pause at each rung, half go on to the second, and half of those to the next ones."""
    plan = replace(PLAN, pauses=True, every=(0.2, 0.6), blows_in_all=8, tempo={**PLAN.tempo, **QUICK})
    chaos = Chaos(storage_url, tmp_path, plan)
    report = chaos.run()
    assert report.blows[KILL] > 2
    assert "\n".join(complaints(chaos)) == ""
    assert "\n".join(unlike_their_twins(chaos)) == ""
    found = trials(chaos.url, chaos.study.name)
    assert sum(trial.state.name == "COMPLETE" for trial in found) >= 1
    # Who dies between the record of a rung and its pause leaves a trial that goes on to the next one.
    assert all(len(trial.intermediate_values) in (1, 2, 4, 6) for trial in found)
    assert sum(len(trial.intermediate_values) == 1 for trial in found) <= 4


def test_nor_does_a_server_that_is_killed_meanwhile(mortal_server: PostgresServer, tmp_path: Path) -> None:
    url = mortal_server.create_database()
    check_that_nothing_is_lost(Chaos(url, tmp_path, replace(PLAN, outages=2), mortal_server))


def check_that_nothing_is_lost(chaos: Chaos) -> None:
    report = chaos.run()
    assert (report.blows[KILL], report.outages) == (chaos.plan.blows_in_all, chaos.plan.outages)
    assert "\n".join(complaints(chaos)) == ""
    assert "\n".join(unlike_their_twins(chaos)) == ""
    assert lost(chaos).epochs > 0, "no death cost anything: were they in time?"
