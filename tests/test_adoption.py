"""What another worker left, a trial or its ticket: it is told as wholly as if a single worker had trained."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from studies import TINY, Inside, rows

from objectives.digits import objective
from search import space
from search.assignment import Assignment
from search.devices import Slot
from search.hooks import OWN, Hooks
from search.interrupt import Interrupt
from search.worker import Worker
from storage import pausing, studies
from storage.claims import Claimant, Settlement
from storage.outcomes import Outcome
from storage.pausing import Standing
from storage.shared import SharedStorage, open_storage
from storage.studies import StudySpec

SPEC = StudySpec("digits", "", "accuracy", "maximize", epochs=1, trials=1, seed=0, sampler="random", pruner="none")


def test_an_adopted_trial_keeps_the_knobs_of_its_model(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Inside(capsys, monkeypatch)
    storage = open_storage(sqlite_url, Claimant("gone"))
    record = studies.create(storage, SPEC, stem="digits")
    trial = optuna.load_study(study_name=record.name, storage=storage).ask()
    with storage.sampling(trial):
        space.sample(trial, objective)
        objective.task(trial)
    storage.hand_back(storage.lease_of(trial))

    assert inside("resume", "--storage", sqlite_url, "--workers", "1").status == 0
    (best,) = json.loads(inside("best", "--format", "json", "--storage", sqlite_url).out)

    assert best["trial"] == trial.number == 0
    assert best["model"] == {name: trial.params[name] for name in ("width", "dropout")}


def work(url: str, study: str, folder: Path, interrupt: Interrupt | None = None, hooks: Hooks = OWN) -> None:
    """As a worker in a process of its own does."""
    places = (Slot(("cpu",), 0, None),)
    Worker(Assignment(url, study, str(TINY), places, 1, folder, folder), interrupt or Interrupt(), hooks=hooks).work()


def test_a_ticket_that_comes_back_while_a_worker_looks_whether_all_is_done_is_taken(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_storage(sqlite_url, Claimant("other"))
    name = studies.create(other, replace(SPEC, objective=str(TINY)), stem="tiny").name
    study = optuna.load_study(study_name=name, storage=other)
    theirs = [study.ask()]
    really = pausing.standing

    def before_an_error(storage: SharedStorage, study_id: int) -> Standing | None:
        standing = really(storage, study_id)
        if theirs:
            other.settle(study, theirs.pop(), Settlement(Outcome.ERROR, "no such colour"))
        return standing

    monkeypatch.setattr(pausing, "standing", before_an_error)
    work(sqlite_url, name, tmp_path)
    assert rows(sqlite_url, "SELECT outcome FROM dialin_trials ORDER BY trial_id") == [("error",), ("complete",)]


def test_a_worker_that_waited_for_the_database_leaves_time_to_the_owners_who_did_too(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_storage(sqlite_url, Claimant("other", lease_seconds=-1))
    name = studies.create(other, replace(SPEC, objective=str(TINY)), stem="tiny").name
    optuna.load_study(study_name=name, storage=other).ask()
    refusals, interrupt = [sqlite3.OperationalError("database is locked")], Interrupt()
    refusals[0].sqlite_errorcode = sqlite3.SQLITE_BUSY

    def opened(*arguments: Any) -> SharedStorage:
        if refusals:
            raise refusals.pop()
        return open_storage(*arguments)

    def look(storage: SharedStorage, study_id: int) -> Standing | None:
        interrupt.request("it was seen that it waits")
        return really(storage, study_id)

    really = pausing.standing
    monkeypatch.setattr(pausing, "standing", look)
    work(sqlite_url, name, tmp_path, interrupt, Hooks(open=opened))
    assert rows(sqlite_url, "SELECT worker_id, generation FROM dialin_owners") == [("other", 1)]
