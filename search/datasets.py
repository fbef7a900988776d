"""Where data sets lie: the root handed to an objective's `data`, the cache, and a public dataset's files in them.

Called by objectives (`find_dataset`) and by the options of the command line (`data_root`, `cache_folder`).
Imports no torch.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from storage.errors import UsageError


class DataMissing(UsageError):
    """A dataset is in none of the places looked at: the message says what, where, and how to get it."""


class DataCorrupt(UsageError):
    """A dataset's file is there but is not what was published: the message names it."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where dialin unpacks what it finds packed: $XDG_CACHE_HOME/dialin, by default ~/.cache/dialin."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dialin"


def data_root(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder `Objective.data` is called with: the explicit one, else $DIALIN_DATA, else the cache."""
    if explicit is not None:
        return explicit.expanduser()
    return Path(environ["DIALIN_DATA"]).expanduser() if environ.get("DIALIN_DATA") else cache_folder(environ)


def find_dataset(
    name: str,
    files: Iterable[tuple[str, str | None]],
    root: Path,
    *,
    get: str,
    cache: Path | None = None,
) -> Path:
    """The folder below which `name` holds every file of the dataset unpacked: torchvision's root.

    name: the folder of the files, as "FashionMNIST/raw"; files: (file name, md5) pairs, torchvision's
    `resources`; a name that ends in .gz is wanted unpacked, and its md5 (None: unknown) is the packed
    file's. get: the command that gets the data, for the error; "{cache}" in it stands for the cache. Looked
    at are `root`, then the cache. Where only the packed files are (`root` may be read-only), they are
    unpacked into the cache: once, with any number of processes at once, and again after a crash.
    DataMissing, DataCorrupt: one line.
    """
    wanted = dict(files)
    cache = cache_folder() if cache is None else cache
    places = list(dict.fromkeys([root, cache]))
    for place in places:
        if all((place / name / file.removesuffix(".gz")).is_file() for file in wanted):
            return place
    for packed in (folder for place in places for folder in (place / name, place)):
        if all((packed / file).is_file() for file in wanted):
            with _locked(cache, name):
                _unpack(packed, cache / name, wanted)
            return cache
    where = " and ".join(str(place / name) for place in places)
    command = get.format(cache=cache)
    raise DataMissing(f"no {name}: looked for {', '.join(wanted)} (packed or not) in {where}; get it with: {command}")


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when the process ends, however it ends."""
    lock = cache / name / ".unpacking"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UsageError(
            f"cannot write to the cache {cache} ({error.strerror}): set XDG_CACHE_HOME to a writable folder"
        ) from error
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _unpack(packed: Path, folder: Path, wanted: Mapping[str, str | None]) -> None:
    """Each file appears in `folder` whole or not at all: checked, written beside its place, and renamed."""
    for file, md5 in wanted.items():
        target = folder / file.removesuffix(".gz")
        if target.is_file():  # another process was first, or a run before a crash got this far
            continue
        try:
            _check(packed / file, md5)
            partial = target.with_name(target.name + ".partial")
            unpack = gzip.open if file.endswith(".gz") else open
            with unpack(packed / file, "rb") as source, open(partial, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(target)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataCorrupt(f"corrupt file {packed / file}: {error}; get it again") from error
        except OSError as error:
            raise UsageError(f"cannot unpack {packed / file} into {folder}: {error.strerror}") from error


def _check(path: Path, md5: str | None) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if md5 not in (None, found):
        raise DataCorrupt(f"corrupt file {path}: its md5 is {found}, not {md5}; get it again")
