"""Finding a dataset's files: packed, half unpacked, damaged, missing, by many at once."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from search.datasets import DataCorrupt, DataMissing, cache_folder, data_root, find_dataset
from storage.errors import UsageError


def test_the_root_is_the_explicit_folder_then_the_variable_then_the_cache() -> None:
    environ = {"DIALIN_DATA": "/d", "XDG_CACHE_HOME": "/c"}
    assert data_root(Path("/e"), environ) == Path("/e")
    assert data_root(None, environ) == Path("/d")
    assert data_root(None, {"XDG_CACHE_HOME": "/c"}) == Path("/c/dialin") == cache_folder(environ)
    assert data_root(None, {}) == Path.home() / ".cache" / "dialin"


CONTENT = {"images": bytes(range(256)) * 40, "labels": b"labels" * 10}
NAME = "Set/raw"


class Place:
    """A folder with a small packed dataset and an empty cache."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.cache = tmp_path / "root", tmp_path / "cache"
        self.packed = self.root / NAME
        self.packed.mkdir(parents=True)
        for name, content in CONTENT.items():
            (self.packed / f"{name}.gz").write_bytes(gzip.compress(content))
        self.files = [(f"{name}.gz", self.md5(f"{name}.gz")) for name in CONTENT]

    def md5(self, file: str) -> str:
        return hashlib.md5((self.packed / file).read_bytes()).hexdigest()

    def find(self) -> Path:
        return find_dataset(NAME, self.files, self.root, get="fetch into {cache}", cache=self.cache)

    def unpacked(self) -> dict[str, bytes]:
        return {name: (self.cache / NAME / name).read_bytes() for name in CONTENT}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_packed_files_are_unpacked_into_the_cache_and_the_folder_stays_as_it_was(place: Place) -> None:
    before = sorted(place.root.rglob("*"))
    assert place.find() == place.cache
    assert place.unpacked() == CONTENT
    assert sorted(place.root.rglob("*")) == before


def test_files_in_a_folder_of_their_own_are_found_too(place: Place) -> None:
    place.root = place.packed
    assert place.find() == place.cache
    assert place.unpacked() == CONTENT


def test_packed_files_in_the_cache_itself_are_unpacked_there(place: Place) -> None:
    place.root.rename(place.cache)
    assert place.find() == place.cache
    assert place.unpacked() == CONTENT


def test_unpacked_files_are_used_where_they_are(place: Place) -> None:
    for name, content in CONTENT.items():
        (place.packed / name).write_bytes(content)
    assert place.find() == place.root
    assert not place.cache.exists()


def test_the_cache_is_enough_once_it_is_filled(place: Place) -> None:
    place.find()
    place.root.rename(place.root.with_name("gone"))
    assert place.find() == place.cache


def test_many_at_once_unpack_each_file_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really_open = gzip.open

    def counting(path: Any, *arguments: Any) -> Any:
        opened.append(path.name)
        return really_open(path, *arguments)

    monkeypatch.setattr(gzip, "open", counting)
    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(place.find) for _ in range(8)]]
    assert set(found) == {place.cache}
    assert sorted(opened) == sorted(file for file, _ in place.files)
    assert place.unpacked() == CONTENT


UNPACK = """
import sys
from pathlib import Path
from search.datasets import find_dataset
root, cache, *files = sys.argv[1:]
find_dataset("Set/raw", [(file, None) for file in files], Path(root), get="", cache=Path(cache))
"""


def test_a_process_killed_while_unpacking_leaves_nothing_that_counts(place: Place) -> None:
    large = bytes(100_000_000)
    (place.packed / "images.gz").write_bytes(gzip.compress(large, 1))
    place.files = [(file, None) for file, _ in place.files]  # type: ignore[misc]
    arguments = [str(place.root), str(place.cache), *(file for file, _ in place.files)]
    process = subprocess.Popen([sys.executable, "-c", UNPACK, *arguments])
    begun = place.cache / NAME / "images.partial"
    while not (begun.exists() and begun.stat().st_size > 0) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (place.cache / NAME / "images").exists()
    assert place.find() == place.cache  # also: the dead process's lock does not hold
    assert place.unpacked() == {**CONTENT, "images": large}


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"no gzip at all", lambda b: b[:30] + b[31:]])
@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_file_is_named_and_leaves_nothing_that_counts(place: Place, damage: Any, checked: bool) -> None:
    path = place.packed / "images.gz"
    path.write_bytes(damage(path.read_bytes()))
    if not checked:
        place.files = [(file, None) for file, _ in place.files]  # type: ignore[misc]
    with pytest.raises(DataCorrupt, match=r"corrupt file .*root/Set/raw/images\.gz: ") as error:
        place.find()
    assert "\n" not in str(error.value)
    assert not (place.cache / NAME / "images").exists()


def test_a_file_that_is_not_the_published_one_is_refused(place: Place) -> None:
    (place.packed / "labels.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataCorrupt, match=r"labels\.gz: its md5 is [0-9a-f]{32}, not"):
        place.find()


def test_missing_data_is_said_with_what_where_and_how_to_get_it(place: Place) -> None:
    (place.packed / "labels.gz").unlink()
    with pytest.raises(DataMissing) as error:
        place.find()
    line = str(error.value)
    for part in ("images.gz, labels.gz", str(place.packed), str(place.cache / NAME), "fetch into", "\n"):
        assert (part in line) == (part != "\n")
    assert line.endswith(f"fetch into {place.cache}")
    assert not place.cache.exists()


def test_a_cache_that_cannot_be_written_is_named(place: Place) -> None:
    place.cache.write_text("a file where the folder should be")
    with pytest.raises(UsageError, match=f"{place.cache}.*XDG_CACHE_HOME"):
        place.find()


def test_the_variable_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DIALIN_DATA", "/elsewhere")
    assert data_root() == Path("/elsewhere")
