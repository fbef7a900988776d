"""Where a worker puts checkpoints and finds them: a folder or a bucket, and no more bytes than it may take.

Called by `search.checkpointer` with a trial's states and weights, and by whoever reads weights.
Paths are as they are on record, relative to the study's own folder.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from search import checkpoints
from search.checkpoint_settings import CheckpointSettings, in_words
from search.checkpoints import CheckpointError
from storage.file_names import CheckpointName, parse
from storage.patience import unless_away

_log = logging.getLogger(__name__)


class Store(Protocol):
    """A folder or a bucket. Both raise CheckpointErrors."""

    def write(self, path: str, state: dict[str, Any]) -> tuple[str, int]:
        """Its SHA-256 and its size in bytes."""

    def read(self, path: str, sha256: str) -> dict[str, Any]:
        """The state, where it is the one that was recorded."""

    def remove(self, path: str) -> None:
        """What is not there is gone already, and what cannot be removed stays."""

    def names(self, folder: str) -> list[str]:
        """The names of the files in it."""

    def fetch(self, path: str, to: Path) -> None:
        """A copy of a file. OSError: `to` cannot be written."""

    def clear(self) -> None:
        """Remove all that is in the study's own folder. Raises CheckpointError."""


class Folder:
    """On this machine's disks, or on one that machines share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, state: dict[str, Any]) -> tuple[str, int]:
        sha256 = checkpoints.save(self._at(path), state)
        return sha256, self._at(path).stat().st_size

    def read(self, path: str, sha256: str) -> dict[str, Any]:
        return checkpoints.load(self._at(path), sha256)

    def remove(self, path: str) -> None:
        with contextlib.suppress(OSError, CheckpointError):
            self._at(path).unlink()

    def names(self, folder: str) -> list[str]:
        return [path.name for path in (self._root / folder).glob("*")]

    def fetch(self, path: str, to: Path) -> None:
        if not self._at(path).is_file():
            raise CheckpointError(f"there is no {self._at(path)}")
        shutil.copyfile(self._at(path), to)

    def clear(self) -> None:
        try:
            shutil.rmtree(self._root)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CheckpointError(f"{self._root}: {error.strerror}") from error

    def _at(self, path: str) -> Path:
        return self._root / _within(path)


class Bucket:
    """Whatever fsspec reaches. An object is there whole or not at all, and no other owner writes one of its name."""

    def __init__(self, url: str) -> None:
        import fsspec

        own = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}
        self._files, self._root = fsspec.core.url_to_fs(url, **own)

    def write(self, path: str, state: dict[str, Any]) -> tuple[str, int]:
        with _temporary(path) as local:
            sha256 = checkpoints.save(local, state)
            with _told(f"cannot write the checkpoint {self._named(path)}"):
                self._files.put_file(str(local), self._key(path))
            return sha256, local.stat().st_size

    def read(self, path: str, sha256: str) -> dict[str, Any]:
        with _temporary(path) as local:
            with _told(f"cannot read the checkpoint {self._named(path)}"):
                self._files.get_file(self._key(path), str(local))
            return checkpoints.load(local, sha256, named=self._named(path))

    def remove(self, path: str) -> None:
        with contextlib.suppress(Exception):  # each kind of bucket has errors of its own
            self._files.rm_file(self._key(path))

    def names(self, folder: str) -> list[str]:
        with contextlib.suppress(Exception):
            self._files.invalidate_cache()
            return [found.rpartition("/")[2] for found in self._files.ls(self._key(folder), detail=False)]
        return []

    def fetch(self, path: str, to: Path) -> None:
        with _temporary(path) as local:
            with _told(f"cannot read the checkpoint {self._named(path)}"):
                self._files.get_file(self._key(path), str(local))
            shutil.copyfile(local, to)

    def clear(self) -> None:
        with _told(f"cannot remove {self._root}"), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._root, recursive=True)

    def _key(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{_within(path)}"

    def _named(self, path: str) -> str:
        return str(self._files.unstrip_protocol(self._key(path)))


def _within(path: str) -> str:
    """A path that leads nowhere else. Raises CheckpointError: a database has it, where anybody may have written it."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"the checkpoint {path!r} on record is not in the folder of its study")
    return path


def open_store(settings: CheckpointSettings, files: Path, study: str) -> Store:
    """The store of a study whose folder has this name. `files`: the root of logs."""
    if settings.is_bucket:
        return Bucket(f"{str(settings.place).rstrip('/')}/{study}")
    return Folder(settings.folder(files) / study)


class Shelf:
    """A worker's checkpoints of one study. What cannot be written is a warning, once until it can be again."""

    def __init__(
        self,
        store: Store,
        limit: int | None = None,
        make_room: Callable[[int, bool], list[str]] = lambda _limit, _last_too: [],
    ) -> None:
        """make_room: forgets what is least worth keeping of more than so many bytes (`storage.retention`)."""
        self._store, self._limit, self._make_room = store, limit, make_room
        self._warned = self._too_small = False

    def write(self, path: str, state: dict[str, Any]) -> tuple[str, int] | None:
        """SHA-256 and size of what was written."""
        try:
            written = self._store.write(path, state)
        except CheckpointError as error:
            if not self._warned:
                _log.warning("%s; training goes on without it", error)
            self._warned = True
            return None
        self._warned = False
        return written

    def read(self, path: str, sha256: str) -> dict[str, Any]:
        """What is on record under this path. Raises CheckpointError."""
        return self._store.read(path, sha256)

    def remove(self, paths: Iterable[str]) -> None:
        """What is on record no more."""
        for path in paths:
            self._store.remove(path)

    def checkpoints(self, folder: str) -> dict[str, CheckpointName]:
        """Paths of a trial's states and weights, of those that are not whole too, and what their names say."""
        named = {f"{folder}/{name}": parse(name) for name in self._store.names(folder)}
        return {path: name for path, name in named.items() if name is not None}

    def discard(self, folder: str, kept: str | None = None) -> None:
        """Remove the states of a settled trial, and all weights but those `kept`: an owner may die with its own."""
        self.remove(path for path in self.checkpoints(folder) if path != kept)

    def prepare(self, size: int) -> bool:
        """Make room for so many bytes by what can be spared; whether they may be written at all."""
        if self._limit is None:
            return True
        if size > self._limit:
            if not self._too_small:
                limit, one = in_words(self._limit), in_words(size)
                _log.warning("--disk %s holds no checkpoint of %s; training goes on without", limit, one)
            self._too_small = True
            return False
        self._forget(self._limit - size, last_too=False)
        return True

    def trim(self) -> None:
        """Keep to the limit, whatever it costs."""
        if self._limit is not None:
            self._forget(self._limit, last_too=True)

    def _forget(self, limit: int, last_too: bool) -> None:
        self.remove(unless_away(lambda: self._make_room(limit, last_too)) or ())


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="dialin-")
    except OSError as error:
        raise CheckpointError(f"cannot make a temporary file: {error}") from error
    with folder as found:
        yield Path(found) / Path(path).name


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Each kind of bucket has errors of its own."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
