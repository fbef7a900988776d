"""What a call from Python means in the words of the commands; `search.api` is thin over it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search import notebook, searches
from search.by_value import ByValue, by_value
from search.checkpoint_settings import CheckpointSettings, settings_of
from search.errors import ObjectiveError
from search.failures import RaisedError
from search.launch import Ending
from search.loading import being_imported
from search.preflight import Placement
from search.printing import Terminal
from search.wishes import Around, to_json
from storage.errors import UsageError
from storage.urls import DEFAULT_URL

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

    from search.objective import Objective

    Searched = str | Path | Objective | Callable[[optuna.Trial], float]


def place(
    storage: str | None,
    files: str | Path | None,
    data: str | Path | None,
    placement: Placement,
    log: tuple[str, ...],
    checkpoints: CheckpointSettings,
    on: str | None = None,
) -> searches.Place:
    """Where a search trains; what is not said comes from the environment."""
    given = files or os.environ.get("DIALIN_FILES")
    return searches.Place(
        storage or os.environ.get("DIALIN_STORAGE") or DEFAULT_URL,
        Path(given) if given else None,
        Path(data) if data is not None else None,
        placement,
        log,
        checkpoints=checkpoints,
        on=on,
    )


def checkpoint_settings(checkpoints: str | Path | None, disk: str | None) -> CheckpointSettings:
    """Where checkpoints go; what is not said comes from the environment. Raises UsageError."""
    said = str(checkpoints) if checkpoints is not None else os.environ.get("DIALIN_CHECKPOINTS")
    return settings_of(said, disk)


def placement(
    workers: int | None, devices: str | int | Sequence[str | int] | None, per_device: int | None
) -> Placement:
    """Devices and workers as the commands take them."""
    several = [devices] if isinstance(devices, str | int) else devices
    return Placement(workers, None if several is None else ",".join(map(str, several)), per_device)


def space(fix: Mapping[str, Any], ranges: Mapping[str, Any]) -> dict[str, Any]:
    """Narrowed knobs as they are stored. UsageError: a knob has both, or the wrong one of two."""
    for name, value in fix.items():
        if isinstance(value, list | tuple | Around):
            raise UsageError(f"fix has {name}={value!r}, which is more than one value: put it into ranges")
    for name, value in ranges.items():
        if not isinstance(value, list | tuple | Around):
            raise UsageError(f"ranges has {name}={value!r}: write (low, high), a list of choices, or around(value)")
        if name in fix:
            raise UsageError(f"{name} is in fix and in ranges: leave one out")
    return to_json({**fix, **ranges})


def sent(objective: Searched) -> str | ByValue:
    """The reference as it is, anything else by value."""
    if isinstance(objective, str | Path):
        return str(objective)
    from search import bare
    from search.objective import Objective

    if isinstance(objective, Objective):
        return by_value(objective)
    if bare.takes_a_trial(objective):
        return by_value(bare.objective_of(objective, bare.Script()), written=objective)
    raise UsageError(
        "run takes an Objective, a function of a trial, or the name of one (digits, my_model.py, pkg.module:name), "
        f"but got {objective!r:.80}"
    )


def here(objective: Searched) -> str | ByValue:
    """As `sent`, but the value itself for whoever uses it in this process."""
    told = sent(objective)
    if isinstance(told, str):
        return told
    from search import bare
    from search.objective import Objective

    value = objective if isinstance(objective, Objective) else bare.objective_of(objective, bare.Script())  # type: ignore[arg-type]  # nothing else is sent by value
    return replace(told, objective=value)


def console(quiet: bool) -> Console:
    """Plain lines in a notebook, which has its own view: rich would take it for a terminal, or for a web page."""
    return Terminal(quiet=quiet, force_jupyter=False, force_terminal=False if notebook.is_here() else None)


def with_frames(error: RaisedError) -> RaisedError:
    """A person's own frames in a traceback, instead of ours."""
    told = RaisedError(str(error), error.frames)
    if "\n" in error.frames.rstrip():
        told.add_note(error.frames.rstrip())
    return told


def refuse_while_imported() -> None:
    """A file that searches when it is imported would do so in the middle of another command."""
    path = being_imported()
    if path is not None:
        raise ObjectiveError(
            f'{path.name} starts a search when it is imported: put search.run(...) under `if __name__ == "__main__":`'
        )


def more(count: int | str | None) -> str | None:
    """A new total, or "+20", as --trials takes it."""
    return None if count is None else str(count)


def lasting(time: float | str | None) -> str | None:
    """Seconds, or "8h", as --budget takes it."""
    return f"{time}s" if isinstance(time, int | float) else time


def until_when(moment: float | str | datetime | None) -> str | None:
    """Seconds from now, "18:30", "2h" or a moment, as --deadline takes it."""
    return moment.astimezone().isoformat() if isinstance(moment, datetime) else lasting(moment)


def heed(ending: Ending | None) -> None:
    """The trials are safe now: what ended training means what it always does, but for a notebook's interrupt."""
    if ending is None or ending.signal is None:
        return
    if not (ending.signal == signal.SIGINT and notebook.is_here()):
        signal.raise_signal(ending.signal)
