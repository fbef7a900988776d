"""What tests of the commands share: objectives to search, and what a study looks like to plain Optuna and plain SQL."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import COLOUR_VARIABLES
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text

from search import cli_look, cli_train
from search.cli import main
from storage.shared import SharedStorage, open_storage

OBJECTIVES = Path(__file__).resolve().parent / "objectives_for_tests"
TINY, SLOW = OBJECTIVES / "tiny.py", OBJECTIVES / "slow.py"
TINY_TEXT = TINY.read_text()


def optuna_url(url: str) -> str:
    """The URL as plain Optuna wants it: PostgreSQL with the driver that is installed."""
    return url.replace("postgresql://", "postgresql+psycopg://")


def trials(url: str, study: str) -> list[FrozenTrial]:
    """The study's trials as plain Optuna reads them, by number."""
    storage = optuna.storages.RDBStorage(optuna_url(url))
    try:
        return optuna.load_study(study_name=study, storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


def rows(url: str, statement: str, **values: Any) -> list[Any]:
    """What one statement of SQL gives; nothing where the database or the table is not there yet."""
    engine = create_engine(optuna_url(url))
    try:
        with engine.connect() as connection:
            return [*connection.execute(text(statement), values)]
    finally:
        engine.dispose()


def value(url: str, statement: str, **values: Any) -> Any:
    """The one value of one row."""
    [(only,)] = rows(url, statement, **values)
    return only


def assert_settled(url: str, study: str, budget: int) -> list[FrozenTrial]:
    """Exactly `budget` trials, numbered from 0, all ended, and nobody holds a lease."""
    found = trials(url, study)
    assert [trial.number for trial in found] == [*range(budget)]
    assert all(trial.state.is_finished() for trial in found), Counter(trial.state for trial in found)
    assert rows(url, "SELECT trial_id FROM dialin_leases") == []
    return found


def states(found: list[FrozenTrial]) -> dict[TrialState, int]:
    """How many trials are in which state."""
    return Counter(trial.state for trial in found)


@dataclass(frozen=True)
class Said:
    """How a command that ran inside the test's process ended, and what it printed."""

    status: int
    out: str
    err: str


class Inside:
    """Runs a command in the test's own process: torch is imported already, and workers fork from one server."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys, self._patch = capsys, patch
        self._opened: list[SharedStorage] = []
        for module in (cli_train, cli_look):
            patch.setattr(module, "open_storage", self._open)

    def _open(self, url: str) -> SharedStorage:
        self._opened.append(open_storage(url))
        return self._opened[-1]

    def __call__(self, *arguments: object) -> Said:
        self._capsys.readouterr()
        self._patch.setattr(sys, "argv", ["dialin", *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            while self._opened:  # a command's process would end here
                self._opened.pop().backend.engine.dispose()
        said = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)


@contextmanager
def place_for_a_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home and a working folder for a study that several tests look at, as `own_place` makes for one test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith("DIALIN_") or name in COLOUR_VARIABLES:
                patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
        yield tmp_path_factory.mktemp("study")
