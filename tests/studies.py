"""What tests of the commands share: objectives to search, and what a study looks like to plain Optuna and plain SQL."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import typer
from conftest import COLOUR_VARIABLES
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text

from search import children
from search.cli import main

OBJECTIVES = Path(__file__).resolve().parent / "objectives_for_tests"
TINY, SLOW = OBJECTIVES / "tiny.py", OBJECTIVES / "slow.py"
TINY_TEXT = TINY.read_text()
# What the one process that forks the workers of all commands inside imports, whichever comes first: digits is common.
USUAL_IMPORTS = ("sklearn.datasets",)
# A process makes it once, from the signatures of all commands: 40 ms.
_the_command = lru_cache(typer.main.get_command)


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
    """What one statement of SQL gives, on a connection of its own."""
    with _engine(url).connect() as connection:
        return [*connection.execute(text(statement), values)]


@lru_cache(maxsize=4)
def _engine(url: str) -> Engine:
    """One for all that is asked: whoever waits asks many times a second, and each new one asks a server who it is."""
    return create_engine(optuna_url(url), poolclass=NullPool)


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

    def __call__(self, *arguments: object) -> Said:
        self._capsys.readouterr()
        self._patch.setattr(sys, "argv", ["dialin", *map(str, arguments)])
        self._patch.setattr(typer.main, "get_command", _the_command)
        if arguments[:1] in (("run",), ("submit",), ("resume",), ("confirm",)):
            with chdir(OBJECTIVES):  # torch cannot be imported in a folder that is gone, as this test's soon is
                children.warm_up(USUAL_IMPORTS)
        with engines_disposed(), pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)


@contextmanager
def meanwhile(happens: Callable[[], object]) -> Iterator[None]:
    """Let something happen beside a command that runs inside; what it raises, the end of this block raises."""
    with ThreadPoolExecutor(1) as thread:
        happening = thread.submit(happens)
        yield
        happening.result()


def press_ctrl_c() -> None:
    """To a command that runs inside, and to it alone: its workers hear of it from the command."""
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def engines_disposed() -> Iterator[None]:
    """Close the database connections that were opened in this block, as the end of a command's process does."""
    engines = set()

    def remember(connection: Connection) -> None:
        engines.add(connection.engine)

    event.listen(Engine, "engine_connect", remember)
    try:
        yield
    finally:
        event.remove(Engine, "engine_connect", remember)
        for engine in engines:
            engine.dispose()


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


def wait_until(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Return when `condition()` is true; fail, saying what did not come, after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(0.25)


def all_have_ended(pids: Iterable[int]) -> bool:
    """Whether none of these processes runs any more (a zombie does not)."""
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            pass
    return True


def process_group(group: int) -> list[int]:
    """The processes of a command that was started in a group of its own, also those that outlive it."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            found += [pid] if os.getpgid(pid) == group else []
    return found
