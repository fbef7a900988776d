"""What a person does to a study while workers are at it: pause, resume, stop, another budget, another priority.

Called by the commands, and by the server on behalf of who signed in. Workers notice within seconds. Each is one
transaction, with the event that says who did it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage import attributes, events, limits, queue
from storage.attributes import NOTHING
from storage.errors import UsageError
from storage.events import Did
from storage.limits import Limits
from storage.optuna_internals import models
from storage.shared import SharedStorage
from storage.tables import StudyRow, StudyState
from storage.words import counted

# A study of priority 100 beside one of 1 has all the workers that there are; more says nothing more.
HIGHEST = 1000


@dataclass(frozen=True)
class Wish:
    """What is to be another; None: as it is.

    Attributes:
        trials: the new budget; `more`: so many on top of the old one.
        limits: the other budgets, from the study's beginning.
        priority: from 1 to HIGHEST.
        concurrency: trials at once; 0 for any number.

    UsageError: a number is out of range.
    """

    trials: int | None = None
    more: int = 0
    limits: Limits = field(default_factory=Limits)
    priority: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        check_place(self.priority, self.concurrency)

    def __str__(self) -> str:
        """In words, as an event has it: "priority 3, 20 more trials"."""
        said = []
        if self.priority is not None:
            said.append(f"priority {self.priority}")
        if self.concurrency is not None:
            at_once = counted(self.concurrency, "trial")
            said.append(f"at most {at_once} at once" if self.concurrency else "any number of trials at once")
        if self.trials is not None:
            said.append(f"{counted(self.trials, 'trial')} in all")
        if self.more:
            said.append(counted(self.more, "more trial"))
        return ", ".join([*said, *self.limits.in_words()])


def check_place(priority: int | None, concurrency: int | None) -> None:
    """Raises UsageError: a study cannot have that place in the queue."""
    if priority is not None and not 1 <= priority <= HIGHEST:
        raise UsageError(f"--priority must be from 1 to {HIGHEST}, but got {priority}")
    if concurrency is not None and concurrency < 0:
        raise UsageError(f"--concurrency must be at least 1, or 0 for any number, but got {concurrency}")


def pause(storage: SharedStorage, study_id: int, by: str) -> None:
    """Workers hand back what they train; those of the queue go elsewhere, the others wait. Again it does no harm.

    Raises:
        UsageError: the study is gone, or stopped already.
    """
    with storage.backend.write() as session:
        row, name = _locked(session, study_id)
        if row.state == StudyState.STOPPED:
            raise UsageError(f"{name} is stopped already: {row.reason}")
        if row.state == StudyState.RUNNING:
            row.state, row.reason = StudyState.PAUSED, f"by {by}"
            events.note(session, study_id, Did.PAUSED, by)


def stop(storage: SharedStorage, study_id: int, reason: str, by: str) -> None:
    """Workers hand back what they train and end; `resume` goes on. Raises UsageError: the study is gone."""
    with storage.backend.write() as session:
        row, _ = _locked(session, study_id)
        row.state, row.reason = StudyState.STOPPED, reason
        events.note(session, study_id, Did.STOPPED, by, reason)


def resume(storage: SharedStorage, study_id: int, wish: Wish, by: str, attrs: Mapping[str, Any] = NOTHING) -> None:
    """Let workers go on; an old `until` that was reached is cleared. `attrs`: new system attributes of Optuna's study.

    Raises:
        UsageError: a new budget is below what is already taken or spent, an old one of device time or epochs is spent
            or the deadline past and there is no new one, a new `until` is reached already, or the study is gone.
    """
    with storage.backend.write() as session:
        row, name = _locked(session, study_id, wish.priority)
        limits.renew(session, row, name, wish.limits)
        _grant(session, row, wish)
        row.state, row.reason, row.errors_in_a_row = StudyState.RUNNING, "", 0
        attributes.set_study(session, study_id, attrs)
        session.flush()
        queue.enter(session, study_id)
        events.note(session, study_id, Did.RESUMED, by, str(wish))


def change(storage: SharedStorage, study_id: int, wish: Wish, by: str) -> None:
    """Another budget or another place in the queue, whatever the study does: it goes on with that, or waits with it.

    One that is stopped stays so; one that has finished goes on when it has trials again.

    Raises:
        UsageError: as `resume`.
    """
    with storage.backend.write() as session:
        row, name = _locked(session, study_id, wish.priority)
        had_ended = row.taken >= row.trials
        if wish.limits != Limits():
            limits.renew(session, row, name, wish.limits)
        _grant(session, row, wish)
        session.flush()
        if had_ended:
            queue.enter(session, study_id)
        events.note(session, study_id, Did.CHANGED, by, str(wish))


def _locked(session: Session, study_id: int, priority: int | None = None) -> tuple[StudyRow, str]:
    """The study's row, to be changed, and its name; a new `priority` wants the queue's lock too.

    Optuna's row comes before ours, as in every claim: an event refers to it.

    Raises:
        UsageError: it is gone.
    """
    if priority is not None:
        queue.lock(session)
    theirs, study = models.StudyModel, StudyRow
    query = select(theirs.study_name).where(theirs.study_id == study_id)
    name = session.scalar(query.with_for_update(read=True, key_share=True))
    row = session.scalar(select(study).where(study.study_id == study_id).with_for_update())
    if name is None or row is None:
        raise UsageError("the study is gone: somebody deleted it")
    return row, name


def _grant(session: Session, row: StudyRow, wish: Wish) -> None:
    trials = row.trials + wish.more if wish.trials is None else wish.trials
    if trials < row.taken:
        raise UsageError(f"--trials {trials} is less than the {row.taken} trials already started")
    if trials > limits.MOST:
        raise UsageError(f"--trials must be at most {limits.MOST} in all, but {trials} are asked for")
    row.trials = trials
    if wish.concurrency is not None:
        row.concurrency = wish.concurrency or None
    if wish.priority is not None and wish.priority != row.priority:
        queue.settle_accounts(session, row.study_id)  # which is written in SQL, past this object
        session.refresh(row, ["virtual_time"])
        row.priority = wish.priority
