"""Checkpoint files against their records: those that are missing or spoilt, those that nothing records.

Part of `dialin storage check`, for a folder of files. Workers may be at work: files are listed before their records are
read, and a file is only left over when no owner can record it any more.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import delete, select

from storage import studies
from storage.file_names import parse, trial_number
from storage.leases import HANDED_BACK
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointKind, CheckpointRow, LeaseRow, TrialRow
from storage.words import counted

# A study's folder: its name and the beginning of its UUID.
_STUDY = re.compile(r".+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Stray:
    """A record whose file is not what it was, or files that nothing records.

    `checkpoint_id` is the record to forget, None for none; `files` are removed.
    """

    what: str
    mending: str
    checkpoint_id: int | None
    files: tuple[Path, ...]


def look(storage: SharedStorage, root: Path) -> tuple[list[Stray], list[str]]:
    """What is wrong with the files of all studies below `root`, and notes on what was left alone."""
    if not root.is_dir():
        return [], [f"there is no folder {root}: no files were looked at (--files names another)"]
    records = studies.records(storage)
    strays: list[Stray] = []
    notes: list[str] = []
    for record in records:
        folder = root / record.folder
        present = [*folder.glob("trial-*/*")]
        spoilt, elsewhere = _spoilt_records(storage, record, folder)
        strays += spoilt
        if elsewhere:
            what = (
                f"{record.name}: {elsewhere} recorded checkpoint{'s are' if elsewhere > 1 else ' is'} not below {root}"
            )
            notes.append(f"{what}: in another place (as --files says), on another machine, or gone")
        strays += _left_over(storage, record, folder, present)
    known = {record.folder for record in records}
    others = [f for f in sorted(root.iterdir()) if f.is_dir() and _STUDY.fullmatch(f.name) and f.name not in known]
    if others:
        more = f" and {len(others) - 1} more beside it" if len(others) > 1 else ""
        notes.append(f"{others[0]}{more}: of no study of this database, but of another one or of a study deleted")
    return strays, notes


def mend(storage: SharedStorage, stray: Stray) -> bool:
    """Forget the record and remove the files; whether all of that could be done."""
    if stray.checkpoint_id is not None:
        with storage.backend.write() as session:
            session.execute(delete(CheckpointRow).where(CheckpointRow.checkpoint_id == stray.checkpoint_id))
    try:
        for file in stray.files:
            file.unlink(missing_ok=True)
    except OSError:
        return False
    return True


_MISSING = "is not there"


def _spoilt_records(storage: SharedStorage, record: StudyRecord, folder: Path) -> tuple[list[Stray], int]:
    """Records whose files are wrong, and the number of those whose files may be in another place.

    That is all of them where none is here, and those of trials that are in training or have no folder here: each worker
    has `--files` of its own. Whoever adopts a trial does without a checkpoint that is gone.
    """
    rows = _recorded(storage, record)
    faults = [(row, _spoilt(folder / row.path, row)) for row in rows]
    nothing_here = all(fault == _MISSING for _, fault in faults)
    strays, elsewhere = [], 0
    for row, fault in faults:
        if not fault or not _still_recorded(storage, row.checkpoint_id):
            continue
        may_be_elsewhere = row.state == TrialState.RUNNING or not (folder / row.path).parent.is_dir()
        if fault == _MISSING and (nothing_here or may_be_elsewhere):
            elsewhere += 1
        else:
            strays.append(_spoilt_record(record, row, folder, fault))
    return strays, elsewhere


@patient
def _recorded(storage: SharedStorage, record: StudyRecord) -> list[Any]:
    trial, row = models.TrialModel, CheckpointRow
    query = (
        select(row.checkpoint_id, row.kind, row.path, row.size, row.sha256, trial.number, trial.state)
        .join(trial, trial.trial_id == row.trial_id)
        .where(trial.study_id == record.study_id)
        .order_by(row.checkpoint_id)
    )
    with storage.backend.read() as session:
        return list(session.execute(query))


@patient
def _still_recorded(storage: SharedStorage, checkpoint_id: int) -> bool:
    """Its owner may have forgotten it since, and removed it."""
    with storage.backend.read() as session:
        return session.get(CheckpointRow, checkpoint_id) is not None


def _spoilt(path: Path, row: Any) -> str:
    """What is wrong with a recorded file; empty for nothing."""
    try:
        with open(path, "rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == row.sha256
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if whole else "is not what was recorded: its SHA-256 is another"


def _spoilt_record(record: StudyRecord, row: Any, folder: Path, fault: str) -> Stray:
    state = row.kind == CheckpointKind.STATE
    return Stray(
        f"{record.name}: {'checkpoint' if state else 'weights'} {row.path} of trial {row.number} {fault}",
        "forgotten: the trial goes on from the one before, or from its beginning" if state else "forgotten",
        row.checkpoint_id,
        () if fault == _MISSING else (folder / row.path,),
    )


def _left_over(storage: SharedStorage, record: StudyRecord, folder: Path, present: list[Path]) -> Iterator[Stray]:
    """Files that were there before the records were read and are in none, a line for each trial."""
    writable = _writable(storage, record)  # before the records: whoever could record no more by then is among them
    recorded = {folder / row.path for row in _recorded(storage, record)}
    found: dict[int, list[Path]] = {}
    for path in present:
        name, number = parse(path.name), trial_number(path.parent.name)
        if name is None or number is None or path in recorded:
            continue
        if name.generation < writable.get(number, 0):  # of a trial not begun: a copy of the database has begun it
            found.setdefault(number, []).append(path)
    for number, paths in sorted(found.items()):
        what = f"{record.name}: trial {number} has {counted(len(paths), 'file')} that nothing records"
        yield Stray(f"{what}, such as {min(paths)}", "removed", None, tuple(sorted(paths)))


@patient
def _writable(storage: SharedStorage, record: StudyRecord) -> dict[int, float]:
    """The lowest generation of each trial that may still record a file: infinity for one that has ended."""
    trial, lease = models.TrialModel, LeaseRow
    query = (
        select(trial.number, trial.state, lease.generation, lease.expires_at, TrialRow.paused)
        .outerjoin(lease, lease.trial_id == trial.trial_id)
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .where(trial.study_id == record.study_id, trial.state != TrialState.WAITING)
    )
    with storage.backend.read() as session:
        rows = session.execute(query).all()
    return {row.number: _lowest(row) if row.state == TrialState.RUNNING else math.inf for row in rows}


def _lowest(row: Any) -> float:
    if row.paused is not None:
        return float(row.paused + 1)
    return float((row.generation or 0) + (row.expires_at == HANDED_BACK))
