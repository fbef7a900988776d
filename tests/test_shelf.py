"""Where checkpoints go: a folder or a bucket, found again from another process, and no more of them than may be."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from studies import TINY, Inside

from search import load, options
from search.checkpoint_settings import CheckpointSettings, bytes_of, in_words, settings_of
from search.checkpoints import CheckpointError
from search.shelf import Shelf, Store, open_store
from storage.errors import UsageError
from storage.shared import open_storage

STATE = {"weights": torch.arange(3.0)}
PATH = "trial-00000/state-0001.g1.pt"


@pytest.fixture(params=["folder", "local", "memory"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointSettings]:
    places = {
        "folder": str(tmp_path / "own"),
        "local": f"local://{tmp_path}/bucket/",
        "memory": "memory://bucket/prefix",
    }
    yield CheckpointSettings(places[request.param])
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def store(settings: CheckpointSettings, tmp_path: Path) -> Store:
    return open_store(settings, tmp_path, "study-1")


def test_what_is_written_is_found_again_by_its_checksum(store: Store, tmp_path: Path) -> None:
    sha256, size = store.write(PATH, STATE)
    assert torch.equal(store.read(PATH, sha256)["weights"], STATE["weights"])
    store.fetch(PATH, tmp_path / "copy.pt")
    assert (tmp_path / "copy.pt").stat().st_size == size
    assert store.names("trial-00000") == ["state-0001.g1.pt"]
    with pytest.raises(CheckpointError, match=r"state-0001\.g1\.pt is not what was recorded"):
        store.read(PATH, "0" * 64)


@pytest.mark.parametrize("path", ["../another.pt", "trial-00000/../../another.pt", "{absolute}"])
def test_a_path_that_leads_elsewhere_is_no_checkpoint(store: Store, tmp_path: Path, path: str) -> None:
    """It is from the database: whoever wrote it there is to have no file read, copied or removed."""
    path = path.format(absolute=tmp_path / "another.pt")
    for folder in (tmp_path, tmp_path / "own", tmp_path / "bucket"):
        folder.mkdir(exist_ok=True)
        (folder / "another.pt").write_text("a person's own")
    store.remove(path)
    for look in (lambda: store.read(path, "0" * 64), lambda: store.fetch(path, tmp_path / "copy.pt")):
        with pytest.raises(CheckpointError, match="on record is not in the folder of its study"):
            look()
    assert len([*tmp_path.rglob("another.pt")]) == 3
    assert not (tmp_path / "copy.pt").exists()


def test_what_is_not_there_is_named_and_no_trouble_to_remove(store: Store) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*state-0001\.g1\.pt"):
        store.read(PATH, "0" * 64)
    store.remove(PATH)
    store.clear()
    assert store.names("trial-00000") == []


def test_a_study_is_cleared_and_others_stay(store: Store, settings: CheckpointSettings, tmp_path: Path) -> None:
    other = open_store(settings, tmp_path, "study-2")
    sha256, _ = other.write(PATH, STATE)
    store.write(PATH, STATE)
    store.remove("trial-00000/state-0009.g1.pt")
    store.clear()
    assert store.names("trial-00000") == []
    other.read(PATH, sha256)


def test_a_bucket_is_read_by_another_process(tmp_path: Path) -> None:
    place = f"local://{tmp_path}/bucket"
    sha256, _ = open_store(CheckpointSettings(place), tmp_path, "s").write(PATH, STATE)
    script = (
        "import sys; from pathlib import Path\n"
        "from search.checkpoint_settings import CheckpointSettings; from search.shelf import open_store\n"
        "print(open_store(CheckpointSettings(sys.argv[1]), Path(), 's').read(*sys.argv[2:])['weights'].tolist())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, place, PATH, sha256], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[0.0, 1.0, 2.0]\n"


class Full:
    """A store whose disk is full for a while."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def write(self, path: str, state: dict[str, Any]) -> tuple[str, int]:
        self.failures -= 1
        if self.failures >= 0:
            raise CheckpointError(f"cannot write {path}: no space left on device")
        return "0" * 64, 100

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def test_a_full_disk_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(Full(3))
    assert [shelf.write(PATH, {}) for _ in range(4)] == [None, None, None, ("0" * 64, 100)]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no space left on device; training goes on" in caplog.text


def test_a_state_larger_than_the_limit_is_not_written_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(Full(0), limit=1000)
    assert [shelf.prepare(1000), shelf.prepare(1001), shelf.prepare(1001)] == [True, False, False]
    assert [record.message for record in caplog.records] == [
        "--disk 1 kB holds no checkpoint of 1 kB; training goes on without"
    ]


@pytest.mark.parametrize(
    ("said", "size"), [("50GB", 50 * 10**9), ("1.5 tb", 1500 * 10**9), ("2GiB", 2**31), ("7k", 7000)]
)
def test_a_size_is_read(said: str, size: int) -> None:
    assert bytes_of(said) == size


def test_a_size_is_said() -> None:
    assert [in_words(size) for size in (50 * 10**9, 1_500_000, 20)] == ["50 GB", "1.5 MB", "0 kB"]


@pytest.mark.parametrize(
    ("place", "disk", "message"),
    [
        (None, "much", "--disk must be a size such as 50GB, 500MB or 1.5TB, but got 'much'"),
        (None, "0GB", "--disk must be a size"),
        (None, "5", "--disk must be a size"),
        (
            "what://ever",
            None,
            "--checkpoints must be a folder or a bucket such as s3://NAME/PREFIX, but got 'what://ever'",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(place: str | None, disk: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_of(place, disk)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"^--checkpoints s3://b/p needs a package .*: pip install s3fs$"):
        CheckpointSettings("s3://b/p")


def test_a_bucket_for_files_is_sent_to_checkpoints() -> None:
    with pytest.raises(UsageError, match="--files must be a folder, but got s3:/b/p: a bucket for checkpoints goes to"):
        options.files_root(Path("s3://b/p"), "sqlite:///x.db")


def test_a_study_keeps_its_weights_in_a_bucket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, bucket = Inside(capsys, monkeypatch), f"local://{tmp_path}/bucket"
    where = ("--checkpoints", bucket, "--disk", "1GB")
    assert inside("run", TINY, "--study", "kept", "--trials", 1, "--workers", 1, "--epochs", 2, *where).status == 0
    assert [path.suffix for path in (tmp_path / "bucket").rglob("*") if path.is_file()] == [".pt"]
    said = inside("best", "--weights", "best.pt")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "name the place that the workers wrote to with --files or --checkpoints" in said.err
    assert inside("best", "--weights", "best.pt", "--checkpoints", bucket).status == 0
    assert set(torch.load("best.pt", weights_only=True)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    monkeypatch.setenv("DIALIN_CHECKPOINTS", bucket)
    assert set(load("kept").weights()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert inside("delete", "kept", "--yes").status == 0
    assert [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()] == []


def test_storage_check_looks_where_checkpoints_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Inside(capsys, monkeypatch)
    open_storage("sqlite:///dialin.db")
    said = inside("storage", "check", "--checkpoints", "memory://b")
    assert said.status == 0
    assert "note: only files in a folder are looked at, not those in a bucket" in said.out
    said = inside("storage", "check", "--checkpoints", "elsewhere")
    assert f"there is no folder {tmp_path / 'elsewhere'}" in said.out
