"""Which studies a worker of the queue may train: code comes from its own machine, and only what it was told to allow.

The database holds names of objectives, never code. A name stands for a built-in one, or for what `--objective` allows;
and what is found here must be the very source that the study was made, or last resumed, with.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from search.by_value import DEFAULT_NAME
from search.failures import HOME
from search.loading import append_to_path, builtin_objectives, split
from storage.errors import UsageError
from storage.studies import NOTEBOOK


class Allowed:
    """For one worker's life: it remembers with which source a module was imported, which Python does once."""

    def __init__(self, given: Sequence[str]) -> None:
        """`given`: files and modules of a person's own, each with :name behind it to allow that one alone."""
        self._given = tuple(given)
        self._imported: dict[str, str] = {}

    def reference(self, stored: str, agreed: str = "") -> str | None:
        """What finds the objective on this machine that a study knows by this name; None where it is not allowed.

        Of several files of one name that whose source is the `agreed` one, if any is.
        """
        target, name = split(stored)
        if target in _builtin():
            return stored
        found = []
        for one in self._given:
            here, allowed = split(one)
            if Path(here).name == Path(target).name and (allowed == name or one == here):
                found.append(here if name == DEFAULT_NAME else f"{here}:{name}")
        return next((one for one in found if len(found) > 1 and _is(one, agreed)), found[0] if found else None)

    def why_not(self, stored: str, agreed: str) -> str:
        """Why a study is left alone; empty where it may be trained. `agreed`: SHA-256 of the source that it wants."""
        reference = self.reference(stored, agreed)
        if reference is None and stored.startswith(NOTEBOOK):
            return f"{stored} was written in a notebook, whose own workers train it"
        if reference is None:
            return f"{stored} is not allowed here: --objective {stored} would allow it"
        path = _source(reference)
        try:
            found = source_sha256(reference)
        except OSError as error:
            return f"cannot read {path}: {error.strerror}"
        if found is None:
            return f"there is no source of {reference} here"
        if found != agreed:
            differs = f"the source of {reference} here ({found[:8]}) is not the study's ({agreed[:8]})"
            return f"{differs}: have the same file here, or resume the study with this one"
        imported = self._imported.get(str(path), found)
        if imported != found:
            return f"the source of {reference} has changed since this worker imported it: start the worker again"
        return ""

    def imports(self, reference: str) -> None:
        """The worker is about to import it. A file is run anew each time; a module stays as it was imported first."""
        found = source_sha256(reference)
        if found is not None and not _is_file(split(reference)[0]):
            self._imported.setdefault(str(_source(reference)), found)


def source_sha256(reference: str) -> str | None:
    """Of the file that an allowed reference stands for; None where there is none. Raises OSError: it cannot be read."""
    path = _source(reference)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None


def refuse_missing(given: Sequence[str]) -> None:
    """Raises UsageError: one of these is not there, or cannot be read."""
    for one in given:
        try:
            found = source_sha256(one)
        except OSError as error:
            raise UsageError(f"cannot read the objective {one}: {error.strerror}") from None
        if found is None:
            raise UsageError(f"there is no objective {one} here")


def _is(reference: str, agreed: str) -> bool:
    try:
        return source_sha256(reference) == agreed
    except OSError:
        return False


@cache
def _builtin() -> dict[str, str]:
    return builtin_objectives()


def _is_file(target: str) -> bool:
    return target.endswith(".py") or "/" in target


def _source(reference: str) -> Path | None:
    """The file that an allowed reference stands for."""
    target, _ = split(reference)
    if _is_file(target):
        return Path(target).expanduser().resolve()
    if target in _builtin():
        return HOME / "objectives" / f"{target}.py"
    append_to_path(Path.cwd())
    try:
        spec = importlib.util.find_spec(target)
    except (Exception, SystemExit):  # finding a.b imports a, which may raise anything
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
