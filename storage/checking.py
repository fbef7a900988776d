"""`dialin storage check`: everything that can be wrong, looked at and mended; called by `search.cli_storage`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage import faults, stray_files, trial_faults
from storage.mending import Fault, Finder, look, mend
from storage.shared import SharedStorage

# Each after those whose mending it may have to follow: a trial that gets a ticket is one more to count.
FINDERS: tuple[Finder, ...] = (
    faults.left_over,
    trial_faults.torn_trials,
    trial_faults.owners_never_ended,
    faults.workers_never_ended,
    faults.wrong_counters,
)
# Mending one thing may show another.
ROUNDS = 3


@dataclass(frozen=True)
class Line:
    """One thing that was wrong. `mending`: what is so once it is mended; empty where nothing mends it."""

    what: str
    mending: str
    mended: bool


@dataclass(frozen=True)
class Checked:
    """All that was found, and `notes` on what was not looked at or is left alone."""

    lines: list[Line]
    notes: list[str]


def check(storage: SharedStorage, root: Path | None, *, mend: bool = False) -> Checked:
    """Look at the database and at the files below `root`, None for a bucket; with `mend` put right what can be.

    Raises:
        ReadOnly: to be mended, and the database may only be read.
    """
    damage = [Line(fault.what, fault.mending, False) for fault in look(storage, [faults.damaged])]
    if damage:
        return Checked(damage, ["nothing else was looked at: a damaged file answers wrongly"])
    lines: list[Line] = []
    found = look(storage, FINDERS)
    for _ in range(ROUNDS if mend else 0):
        lines += [Line(fault.what, fault.mending, True) for fault in found if _mended(storage, fault)]
        if not any(fault.mending for fault in found):
            break
        found = look(storage, FINDERS)
    lines += [Line(fault.what, fault.mending, False) for fault in found]
    if root is None:
        return Checked(lines, ["only files in a folder are looked at, not those in a bucket"])
    strays, notes = stray_files.look(storage, root)
    for stray in strays:
        lines.append(Line(stray.what, stray.mending, mend and stray_files.mend(storage, stray)))
    return Checked(lines, notes)


def _mended(storage: SharedStorage, fault: Fault) -> bool:
    return bool(fault.mending) and mend(storage, fault)
