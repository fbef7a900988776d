"""Where a study's checkpoints go and how many bytes they may take: what --checkpoints and --disk say.

Imports no torch, so that whoever starts workers can check it first; a worker opens a `search.shelf.Shelf` with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from storage.errors import UsageError

# Powers of 1000 as on a disk's label, of 1024 as in memory.
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_NAMES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)b?")


@dataclass(frozen=True)
class CheckpointSettings:
    """place: a folder, or a bucket's URL (s3://NAME/PREFIX); None: among the logs. limit: bytes of a study, or None.

    UsageError: the place is of a kind that this machine has no package for.
    """

    place: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.is_bucket:
            _refuse_unknown(str(self.place))

    @property
    def is_bucket(self) -> bool:
        """Whether the place is no folder of this machine."""
        return self.place is not None and "://" in self.place

    def folder(self, files: Path) -> Path:
        """The root of checkpoints in a folder; `files` where nothing was said."""
        return files if self.place is None else Path(self.place).expanduser().absolute()

    def make(self, files: Path) -> None:
        """Make the folder if need be. Raises UsageError: it cannot be made."""
        if not self.is_bucket:
            try:
                self.folder(files).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"cannot make the folder {self.place} ({error.strerror}): see --checkpoints") from None


def settings_of(place: str | None, disk: str | None) -> CheckpointSettings:
    """What a person says. Raises UsageError."""
    return CheckpointSettings(place or None, bytes_of(disk))


def bytes_of(size: str | None) -> int | None:
    """`50GB` -> 50000000000; None stays None. Raises UsageError: no unit, or nothing at all."""
    if size is None:
        return None
    found = _SIZE.fullmatch(size.strip().lower())
    count = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if count < 1:
        raise UsageError(f"--disk must be a size such as 50GB, 500MB or 1.5TB, but got {size!r}")
    return count


def in_words(count: int) -> str:
    """50000000000 -> 50 GB."""
    size, name = next(((size, name) for size, name in _NAMES if count >= size), _NAMES[-1])
    return f"{round(count / size, 1):g} {name}"


def _refuse_unknown(url: str) -> None:
    """fsspec comes with torch, and each kind of bucket with a package of its own (s3fs, gcsfs, adlfs)."""
    try:
        import fsspec

        fsspec.get_filesystem_class(url.partition("://")[0])
    except ImportError as error:
        known = "pip install s3fs" if url.startswith(("s3:", "s3a:")) else str(error).splitlines()[0]
        raise UsageError(f"--checkpoints {url} needs a package that is not installed: {known}") from None
    except ValueError:
        raise UsageError(
            f"--checkpoints must be a folder or a bucket such as s3://NAME/PREFIX, but got {url!r}"
        ) from None
