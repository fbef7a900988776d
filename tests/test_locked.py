"""Another program holds the SQLite file for longer than a writer waits: what a worker asks is done when it is free."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from storage_places import DONE, an_epoch, make_study, optuna_study, rows, worker_on

from storage import engine, studies, workers
from storage.patience import waiting
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord
from storage.tables import LeaseRow, StudyRow, TrialRow

pytestmark = pytest.mark.usefixtures("storage_test")
pytest_plugins = ("storage_fixtures",)


@contextmanager
def held(url: str, seconds: float = 0.7) -> Iterator[None]:
    """The file is locked for so long, and free again at the end of the block."""
    holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    letting_go = threading.Timer(seconds, holder.execute, ("COMMIT",))
    letting_go.start()
    try:
        yield
    finally:
        letting_go.join()
        holder.close()


@pytest.fixture
def storage(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> SharedStorage:
    monkeypatch.setattr(engine, "SQLITE_BUSY_SECONDS", 0.1)
    return worker_on(sqlite_url)


def test_a_trial_is_claimed_trained_and_settled_once_through_three_locks(
    storage: SharedStorage, sqlite_url: str
) -> None:
    record = make_study(storage, trials=1)
    study = optuna_study(storage, record)
    with held(sqlite_url):
        trial = study.ask()
    with held(sqlite_url):
        storage.record_epoch(storage.lease_of(trial), an_epoch(1))
    with held(sqlite_url):
        storage.settle(study, trial, DONE, 0.5)
    [found] = rows(storage, StudyRow)
    assert (found.taken, found.returned, found.spent_seconds) == (1, 0, 0.25)
    assert [row.outcome for row in rows(storage, TrialRow)] == ["complete"]
    assert rows(storage, LeaseRow) == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda storage, record: storage.adopt(record.study_id),
        lambda storage, record: workers.register(storage, "me", record.study_id, [workers.Place("cpu", None)]),
        lambda storage, record: studies.enqueue(storage, record, {"x": 1.0}),
        lambda storage, record: storage.renew(None),
    ],
    ids=["adopt", "register", "enqueue", "renew"],
)
def test_so_does_whatever_else_it_writes(
    storage: SharedStorage, sqlite_url: str, ask: Callable[[SharedStorage, StudyRecord], object]
) -> None:
    record = make_study(storage)
    with held(sqlite_url):
        ask(storage, record)


def test_a_write_of_plain_optuna_waits_too(storage: SharedStorage, sqlite_url: str) -> None:
    trial: optuna.Trial = optuna_study(storage, make_study(storage)).ask()
    with held(sqlite_url):
        trial.set_user_attr("mine", 1)
    with held(sqlite_url):
        assert trial.suggest_float("x", 0, 1) == trial.params["x"]
    assert trial.user_attrs == {"mine": 1}


def test_a_new_file_that_another_program_holds_is_opened_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SQLITE_BUSY_SECONDS", 0.1)
    url, lines = f"sqlite:///{tmp_path / 'new.db'}", list[str]()
    with held(url), waiting(tell=lines.append):
        open_storage(url)
    assert lines == ["the database does not answer, asking again: database is locked"]
