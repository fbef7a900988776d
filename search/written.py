"""A file that a command was told to write: as a whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from storage.errors import UsageError


def file_name(study: str) -> str:
    """A study's name as one of a file: any name will do for a study."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", study).lstrip(".") or "study"


def refuse_unwritable(path: Path) -> None:
    """Before anything that takes long. Raises UsageError."""
    path = path.expanduser()
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: permission denied")


def write(path: Path, text: str) -> None:
    """In UTF-8. What was there before stays until the new one is whole.

    Raises:
        UsageError: it cannot be written.
    """
    path = path.expanduser()
    refuse_unwritable(path)
    whole = path.resolve()  # a link stays one
    begun = whole.with_name(f".{whole.name}.{os.getpid()}.part")
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_text(text, encoding="utf-8")
            return
        begun.write_text(text, encoding="utf-8")
        begun.replace(whole)
    except OSError as error:
        with suppress(OSError):
            begun.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
