"""Whether an objective is the one that a study was made with; asked by whoever is about to train it."""

from __future__ import annotations

from pathlib import Path

from storage.errors import UsageError
from storage.studies import NOTEBOOK, StudyRecord
from storage.words import counted


def check_same(record: StudyRecord, reference: str, metric: str, direction: str) -> None:
    """Is this the objective that the study searches, and does it still want the same?

    Files are compared by name, since machines keep them in different places. A notebook's may have become a file.

    Raises:
        UsageError: another objective, metric or direction than the study was made with.
    """
    anywhere = any(one.startswith(NOTEBOOK) for one in (record.objective, reference))
    if not anywhere and Path(record.objective).name != Path(reference).name:
        raise UsageError(
            f"study {record.name!r} searches {record.objective}, not {reference} "
            "(any folder will do, but the file keeps its name)"
        )
    if (metric, direction) != (record.metric, record.direction):
        raise UsageError(
            f"study {record.name!r} was made to {record.direction} {record.metric}, but {reference} now says "
            f"{direction} {metric}: start a new study for that"
        )


def check_folds(record: StudyRecord, folds: int) -> None:
    """Are there as many folds as the study was made with?

    Raises:
        UsageError: no; a trial's epochs would be numbered otherwise than those before.
    """
    if folds != record.folds:
        raise UsageError(
            f"data() returns {counted(folds, 'fold')}, but study {record.name!r} was made with {record.folds}: "
            "start a new study for that"
        )
