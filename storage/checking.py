"""`dialin storage check`: everything that can be wrong, looked at and mended; called by `search.cli_storage`.

`look` reads one moment of the database, so that a trial that is settled meanwhile is not half of each. `mend` looks at
one thing again under the locks that its owners take, and puts right what is still wrong then: workers may go on.
What can be wrong is listed in `storage.faults`, and for files in `storage.stray_files`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage import faults, stray_files
from storage.engine import one_moment
from storage.faults import Fault, Finder
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.stray_files import Stray
from storage.tables import LeaseRow, StudyRow

# Each after those whose mending it may have to follow: a trial that gets a ticket is one more to count.
FINDERS: tuple[Finder, ...] = (
    faults.left_over,
    faults.torn_trials,
    faults.owners_never_ended,
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
    damage = [_line(fault) for fault in look(storage, [faults.damaged])]
    if damage:
        return Checked(damage, ["nothing else was looked at: a damaged file answers wrongly"])
    lines: list[Line] = []
    found = look(storage, FINDERS)
    for _ in range(ROUNDS if mend else 0):
        lines += [_line(fault, mended=True) for fault in found if _mended(storage, fault)]
        if not any(fault.mending for fault in found):
            break
        found = look(storage, FINDERS)
    lines += [_line(fault) for fault in found]
    if root is None:
        return Checked(lines, ["only files in a folder are looked at, not those in a bucket"])
    strays, notes = stray_files.look(storage, root)
    lines += [_line(stray, mended=mend and stray_files.mend(storage, stray)) for stray in strays]
    return Checked(lines, notes)


def _line(wrong: Fault | Stray, mended: bool = False) -> Line:
    return Line(wrong.what, wrong.mending, mended)


def _mended(storage: SharedStorage, fault: Fault) -> bool:
    return bool(fault.mending) and mend(storage, fault)


@patient
def look(storage: SharedStorage, finders: Iterable[Finder]) -> list[Fault]:
    """All that is wrong at this moment. Changes nothing."""
    with one_moment(storage.backend.engine) as connection, Session(connection) as session:
        return [fault for finder in finders for fault in finder(session, None)]


def mend(storage: SharedStorage, fault: Fault) -> bool:
    """Put it right in one transaction; False where it was right by then.

    Raises:
        ReadOnly: the database may only be read.
    """
    with storage.backend.write() as session:
        _lock(session, fault)
        still = next((found for found in fault.kind(session, fault.key) if found.key == fault.key), None)
        if still is None or still.mend is None:
            return False
        still.mend(session)
    return True


def _lock(session: Session, fault: Fault) -> None:
    """As workers do: Optuna's study, its trial, our lease, our study."""
    if fault.trial_id is not None:
        trial = models.TrialModel.trial_id
        session.execute(select(trial).where(trial == fault.trial_id).with_for_update())
        session.execute(select(LeaseRow.claim).where(LeaseRow.trial_id == fault.trial_id).with_for_update())
    elif fault.study_id is not None:
        study = models.StudyModel.study_id
        session.execute(select(study).where(study == fault.study_id).with_for_update())
        session.execute(select(StudyRow.uid).where(StudyRow.study_id == fault.study_id).with_for_update())
