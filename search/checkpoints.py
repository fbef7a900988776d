"""Checkpoint files: written whole or not at all, opened only when their checksum is the one on record.

Called by whoever keeps a trial's state (the worker's reporter); what is in a state is the trainer's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from storage.errors import DialinError


class CheckpointError(DialinError):
    """A checkpoint cannot be written, or is not the one that was: the message names the file."""


def save(path: Path, state: dict[str, Any]) -> str:
    """Write `state` to `path` and return its SHA-256. After a crash `path` is whole or as it was before.

    CheckpointError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w+b") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        partial.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        with contextlib.suppress(OSError):  # what keeps a file from being written may keep it from being removed
            partial.unlink()
        raise CheckpointError(f"cannot write the checkpoint {path}: {_said(error)}") from error
    return checksum


def load(path: Path, sha256: str, named: str = "") -> dict[str, Any]:
    """The state in `path`, tensors on the CPU. Nothing in the file is executed (`weights_only`).

    named: what errors call it, where it is a copy.

    CheckpointError: it is missing, truncated, or not what was recorded.
    """
    name = named or path
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise CheckpointError(f"the checkpoint {name} is not what was recorded: its SHA-256 is {found}")
            file.seek(0)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {name}: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise CheckpointError(f"the checkpoint {name} holds no state: {reason}") from error
    return state


def _said(error: BaseException) -> str:
    """What the system said: torch's writer only tells that it is not where it should be in the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return next(iter(str(error).splitlines()), "")


def _flush_folder(folder: Path) -> None:
    """Makes the rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
