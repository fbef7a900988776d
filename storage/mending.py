"""What does not fit together in a database, and what puts it right; called by `dialin storage check`.

`look` reads one moment of the database, so that a trial that is settled meanwhile is not half of each. `mend` looks at
one thing again under the locks that its owners take, and puts right what is still wrong then: workers may go on.
What can be wrong is listed in `storage.faults`, and for files in `storage.stray_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.engine import one_moment
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import LeaseRow, StudyRow


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        kind: the function of `faults` that found it, and `key` what it finds this one again by.
        what: one line for people; `mending`: what is so after it was mended, empty where nothing mends it.
        study_id, trial_id: what is locked while it is mended.
        mend: the statements.
    """

    kind: Finder
    key: Any
    what: str
    mending: str = ""
    study_id: int | None = None
    trial_id: int | None = None
    mend: Callable[[Session], None] | None = field(default=None, compare=False)


# Finds all faults of its kind, or the one with this key.
Finder = Callable[[Session, Any], Iterable[Fault]]


def runs(*statements: Any) -> Callable[[Session], None]:
    """What executes them, one after the other."""

    def run(session: Session) -> None:
        for statement in statements:
            session.execute(statement.execution_options(synchronize_session=False))

    return run


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
