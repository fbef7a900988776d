"""A SQLite database that may only be read: whoever only looks can look, and who wants to write is told."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from old_databases import put_version
from storage_places import fresh, make_study, run_trial, worker_on

from storage.shared import SharedStorage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

# Permissions bind the superuser too once a process has given up CAP_DAC_OVERRIDE (1), by PR_CAPBSET_DROP (24).
BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
# Has imported all when it is asked; each answer comes from a child of its own, which ends as the command does.
ANSWERING = """
import json, os, sys
from search.cli import main
from storage.shared import open_storage

for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        for descriptor, path in ((1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["dialin", *asked["arguments"]]
        open_storage(asked["open"]) if asked["open"] else main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


class Bound:
    """A process for which permissions count, whoever runs the tests."""

    def __init__(self, log: Path) -> None:
        """`log`: what its commands print is beside it."""
        self._log, self._numbers = log, itertools.count()
        command = [sys.executable, "-c", BOUND, sys.executable, "-c", ANSWERING]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")

    def __call__(self, *arguments: str, url: str) -> Ended:
        """Run a command on this database; without one it is opened only."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = (self._log.with_suffix(f".{next(self._numbers)}") for _ in range(2))
        asked = {"out": str(out), "err": str(err), "folder": os.getcwd(), "environment": {**os.environ}}
        asked |= {"arguments": [*arguments, "--storage", url], "open": "" if arguments else url}
        self._process.stdin.write(f"{json.dumps(asked)}\n")
        self._process.stdin.flush()
        return Ended(int(self._process.stdout.readline()), out.read_text(), err.read_text())

    def close(self) -> None:
        """Its input ends, and with it the process."""
        with self._process:
            pass

    def told(self, *arguments: str, url: str) -> object:
        """The JSON that a command prints."""
        ended = self(*arguments, url=url)
        assert (ended.status, ended.err) == (0, "")
        return json.loads(ended.out)

    def refused(self, *arguments: str, url: str) -> str:
        """What a command says that fails in one line."""
        ended = self(*arguments, url=url)
        assert ended.status == 1, ended.err
        assert len(ended.err.splitlines()) == 1
        return ended.err


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bound]:
    bound = Bound(tmp_path_factory.mktemp("bound") / "log")
    yield bound
    bound.close()


@contextmanager
def only_readable(folder: Path, file_mode: int = 0o444, folder_mode: int = 0o555) -> Iterator[None]:
    """Nobody may write in a folder, or to the files in it."""
    for file in folder.iterdir():
        file.chmod(file_mode)
    folder.chmod(folder_mode)
    try:
        yield
    finally:
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of its own; skips where permissions cannot be made to bind."""
    folder = tmp_path / "place"
    folder.mkdir()
    with only_readable(folder):
        script = "import os, sys; sys.exit(os.access(sys.argv[1], os.W_OK))"
        if subprocess.run([sys.executable, "-c", BOUND, sys.executable, "-c", script, folder]).returncode:
            pytest.skip("permissions do not bind this user")
    return folder


@pytest.fixture
def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'a.db'}"


@pytest.fixture
def worker(url: str) -> SharedStorage:
    return worker_on(url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    """With one settled trial."""
    study = make_study(worker)
    run_trial(worker, study)
    return fresh(worker, study)


def closed(storage: SharedStorage) -> None:
    """As a process ends that closes its database: the changes are in the file."""
    storage.backend.scoped_session.remove()
    storage.backend.engine.dispose()


# -- Looking


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"), [(0o444, 0o555), (0o644, 0o555), (0o444, 0o755)], ids=["both", "folder", "file"]
)
def test_a_study_in_a_place_that_may_only_be_read_is_shown(
    bound: Bound, folder: Path, url: str, worker: SharedStorage, study: StudyRecord, file_mode: int, folder_mode: int
) -> None:
    closed(worker)
    assert os.listdir(folder) == ["a.db"]
    with only_readable(folder, file_mode, folder_mode):
        status = bound.told("status", "--json", url=url)
        assert isinstance(status, dict)
        assert (status["study"]["name"], status["counts"]) == (study.name, {"complete": 1})
        best = bound.told("best", "--format", "json", url=url)
        assert isinstance(best, list)
        assert best[0]["value"] == 0.5
        assert os.listdir(folder) == ["a.db"]  # nothing left beside it that would be in its writers' way


def test_what_a_worker_has_just_written_is_seen(
    bound: Bound, folder: Path, url: str, worker: SharedStorage, study: StudyRecord
) -> None:
    assert (folder / "a.db-wal").stat().st_size > 0
    with only_readable(folder):
        status = bound.told("status", "--json", url=url)
    assert isinstance(status, dict)
    assert status["counts"] == {"complete": 1}
    run_trial(worker, study)  # and the worker goes on


def left_by_a_killed_worker(folder: Path, names: list[str]) -> None:
    """Of an open database only these files."""
    copies = folder.with_name("copies")
    shutil.copytree(folder, copies)
    for file in folder.iterdir():
        file.unlink()
    for name in names:
        shutil.copyfile(copies / name, folder / name)


def test_what_a_killed_worker_has_written_is_seen(bound: Bound, folder: Path, url: str, study: StudyRecord) -> None:
    left_by_a_killed_worker(folder, ["a.db", "a.db-wal", "a.db-shm"])
    with only_readable(folder):
        status = bound.told("status", "--json", url=url)
    assert isinstance(status, dict)
    assert status["counts"] == {"complete": 1}


def test_the_one_case_that_cannot_be_read_says_who_can(
    bound: Bound, folder: Path, url: str, study: StudyRecord
) -> None:
    left_by_a_killed_worker(folder, ["a.db", "a.db-wal"])
    with only_readable(folder):
        said = bound.refused("status", url=url)
    assert f"its last writer was killed: only who may write in {folder} can open it, once is enough" in said
    closed(worker_on(url))
    with only_readable(folder):
        bound.told("status", "--json", url=url)


# -- Writing


def test_who_wants_to_write_is_told_that_it_may_only_be_read(
    bound: Bound, folder: Path, tmp_path: Path, url: str, worker: SharedStorage, study: StudyRecord
) -> None:
    closed(worker)
    with only_readable(folder):
        for command in (["stop"], ["resume", "--files", str(tmp_path)]):
            assert f"{url} may only be read: are a.db and {folder} writable for you?" in bound.refused(
                *command, url=url
            )


def test_an_old_database_that_may_only_be_read_is_not_upgraded(bound: Bound, folder: Path, url: str) -> None:
    put_version(1, url)
    with only_readable(folder):
        assert "may only be read" in bound.refused("storage", "upgrade", url=url)


def test_a_folder_without_rights_is_refused_for_a_new_database(bound: Bound, folder: Path, url: str) -> None:
    with only_readable(folder):
        said = bound(url=url).err
    assert said.splitlines()[-1].startswith("storage.schema.StorageUnavailable")
    assert f"is {folder} writable for you?" in said


def test_a_file_that_may_only_be_read_is_refused_for_a_new_database(bound: Bound, folder: Path, url: str) -> None:
    (folder / "a.db").touch()
    with only_readable(folder, folder_mode=0o755):
        said = bound(url=url).err
    assert said.splitlines()[-1].startswith("storage.schema.StorageUnavailable")
    assert f"is {folder} writable for you?" in said
