"""A SQLite database that may only be read: whoever only looks can look, and who wants to write is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import DIALIN
from old_databases import put_version
from storage_places import fresh, make_study, run_trial, worker_on

from storage.shared import SharedStorage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

# Permissions bind the superuser too once a process has given up CAP_DAC_OVERRIDE (1), by PR_CAPBSET_DROP (24).
BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
OPEN = "import sys; from storage.shared import open_storage; open_storage(sys.argv[1])"


def bound(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command for which permissions count, whoever runs the tests."""
    whole = [sys.executable, "-c", BOUND, *map(str, command)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=120)


def told(*arguments: str, url: str) -> object:
    """The JSON that a command prints under these rights."""
    ended = bound(DIALIN, *arguments, "--storage", url)
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


def refused(*arguments: str, url: str) -> str:
    """What a command says that fails in one line."""
    ended = bound(DIALIN, *arguments, "--storage", url)
    assert ended.returncode == 1, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    return ended.stderr


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
        if bound(sys.executable, "-c", script, folder).returncode:
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
    folder: Path, url: str, worker: SharedStorage, study: StudyRecord, file_mode: int, folder_mode: int
) -> None:
    closed(worker)
    assert os.listdir(folder) == ["a.db"]
    with only_readable(folder, file_mode, folder_mode):
        status = told("status", "--json", url=url)
        assert isinstance(status, dict)
        assert (status["study"]["name"], status["counts"]) == (study.name, {"complete": 1})
        best = told("best", "--format", "json", url=url)
        assert isinstance(best, list)
        assert best[0]["value"] == 0.5
        assert os.listdir(folder) == ["a.db"]  # nothing left beside it that would be in its writers' way


def test_what_a_worker_has_just_written_is_seen(
    folder: Path, url: str, worker: SharedStorage, study: StudyRecord
) -> None:
    assert (folder / "a.db-wal").stat().st_size > 0
    with only_readable(folder):
        status = told("status", "--json", url=url)
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


def test_what_a_killed_worker_has_written_is_seen(folder: Path, url: str, study: StudyRecord) -> None:
    left_by_a_killed_worker(folder, ["a.db", "a.db-wal", "a.db-shm"])
    with only_readable(folder):
        status = told("status", "--json", url=url)
    assert isinstance(status, dict)
    assert status["counts"] == {"complete": 1}


def test_the_one_case_that_cannot_be_read_says_who_can(folder: Path, url: str, study: StudyRecord) -> None:
    left_by_a_killed_worker(folder, ["a.db", "a.db-wal"])
    with only_readable(folder):
        said = refused("status", url=url)
    assert f"its last writer was killed: only who may write in {folder} can open it, once is enough" in said
    closed(worker_on(url))
    with only_readable(folder):
        told("status", "--json", url=url)


# -- Writing


def test_who_wants_to_write_is_told_that_it_may_only_be_read(
    folder: Path, tmp_path: Path, url: str, worker: SharedStorage, study: StudyRecord
) -> None:
    closed(worker)
    with only_readable(folder):
        for command in (["stop"], ["resume", "--files", str(tmp_path)]):
            assert f"{url} may only be read: are a.db and {folder} writable for you?" in refused(*command, url=url)


def test_an_old_database_that_may_only_be_read_is_not_upgraded(folder: Path, url: str) -> None:
    put_version(1, url)
    with only_readable(folder):
        assert "may only be read" in refused("storage", "upgrade", url=url)


def test_a_folder_without_rights_is_refused_for_a_new_database(folder: Path, url: str) -> None:
    with only_readable(folder):
        said = bound(sys.executable, "-c", OPEN, url).stderr
    assert said.splitlines()[-1].startswith("storage.schema.StorageUnavailable")
    assert f"is {folder} writable for you?" in said


def test_a_file_that_may_only_be_read_is_refused_for_a_new_database(folder: Path, url: str) -> None:
    (folder / "a.db").touch()
    with only_readable(folder, folder_mode=0o755):
        said = bound(sys.executable, "-c", OPEN, url).stderr
    assert said.splitlines()[-1].startswith("storage.schema.StorageUnavailable")
    assert f"is {folder} writable for you?" in said
