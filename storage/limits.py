"""What ends a study before its trials are spent: a value that is good enough, or a budget or a time that is used up.

Called inside the transactions that settle a trial and record an epoch, after all else: everybody locks our study last.
The first to reach a limit stops the study with its reason, and settles what is paused; whoever comes later finds it
stopped.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Float, Integer, bindparam, or_, select, update
from sqlalchemy.orm import Session

from storage import paused
from storage.claims import EpochsSpent, Lease
from storage.constraints import feasible
from storage.engine import database_now
from storage.errors import UsageError
from storage.optuna_internals import models
from storage.tables import StudyRow, StudyState
from storage.words import counted

_UNITS = ((3600, "h"), (60, "min"), (1, "s"))


def amount(seconds: float) -> str:
    """Device time for people, in the largest unit of which there is one: "8 h", "1.5 min", "20 s"."""
    size, unit = next((row for row in _UNITS if seconds >= row[0]), _UNITS[-1])
    return f"{round(seconds / size, 2):g} {unit}"


def moment(seconds: float) -> str:
    """A deadline (seconds since 1970) for people, by this machine's time zone: "2026-11-21 18:30"."""
    when = datetime.fromtimestamp(round(seconds))
    return f"{when:%Y-%m-%d %H:%M:%S}" if when.second else f"{when:%Y-%m-%d %H:%M}"


def past(deadline: float) -> str:
    """The reason of a study that its deadline has stopped."""
    return f"the deadline of {moment(deadline)} is past"


def in_time() -> ColumnElement[bool]:
    """The condition that a study's deadline, where it has one, is still to come."""
    return or_(StudyRow.deadline.is_(None), StudyRow.deadline > database_now())


@dataclass(frozen=True)
class Remaining:
    """What a study has left: its state, epochs and device seconds of its budgets, and seconds until its deadline.

    Infinity for no limit.
    """

    state: StudyState
    epochs: float = math.inf
    seconds: float = math.inf
    until_deadline: float = math.inf


def spend(session: Session, study_id: int, seconds: float, epochs: int = 0) -> Remaining | None:
    """Add device time, and epochs new on record, to what the study has spent, and stop it at its limits.

    What it has left in return, None without a study.

    Raises:
        EpochsSpent: these epochs would be more than its budget has. The transaction must be rolled back.
    """
    given = {"of_study": study_id, "more_seconds": seconds, "more_epochs": epochs}
    row = session.connection().execute(_spend(epochs > 0), given).one_or_none()
    if row is None:
        budget = session.scalar(select(StudyRow.budget_epochs).where(StudyRow.study_id == study_id))
        if budget is not None:
            raise EpochsSpent(f"the budget of {counted(budget, 'epoch')} is on record")
        return None
    limits_left = (row.epochs, row.seconds, row.until_deadline)
    left = Remaining(StudyState(row.state), *(math.inf if one is None else one for one in limits_left))
    reason = _reached(row, left)
    if reason and left.state is not StudyState.STOPPED:
        stop(session, study_id, reason)
        return replace(left, state=StudyState.STOPPED)
    return left


@functools.cache
def _spend(epochs: bool) -> Any:
    """The statement of `spend`, made once: it comes with every epoch."""
    row = StudyRow
    seconds = row.spent_seconds + bindparam("more_seconds", type_=Float(53))
    count = row.spent_epochs + bindparam("more_epochs", type_=Integer)
    room = [or_(row.budget_epochs.is_(None), count <= row.budget_epochs)] if epochs else []
    return (
        update(row)
        .where(row.study_id == bindparam("of_study", type_=Integer), *room)
        .values(spent_seconds=seconds, spent_epochs=count)
        .returning(
            row.budget_seconds,
            row.budget_epochs,
            row.deadline,
            row.state,
            (row.budget_seconds - row.spent_seconds).label("seconds"),
            (row.budget_epochs - row.spent_epochs).label("epochs"),
            (row.deadline - database_now()).label("until_deadline"),
        )
    )


def _reached(row: Any, left: Remaining) -> str:
    """Which limit a study's row has reached, in words; empty for none."""
    if left.seconds <= 0:
        return f"the budget of {amount(row.budget_seconds)} of device time is spent"
    if left.epochs <= 0:
        return f"the budget of {counted(row.budget_epochs, 'epoch')} is trained"
    return past(row.deadline) if left.until_deadline <= 0 else ""


def stop_at_deadline(session: Session, study_id: int) -> None:
    """Stop a study whose deadline is past."""
    deadline = session.scalar(select(StudyRow.deadline).where(StudyRow.study_id == study_id, ~in_time()))
    if deadline is not None:
        stop(session, study_id, past(deadline))


def value_reached(session: Session, lease: Lease, value: float) -> None:
    """A trial is COMPLETE with this value: stop the study where it is as good as `until`."""
    study, trial, directed = StudyRow, models.TrialModel, models.StudyDirectionModel
    row = session.execute(
        select(study.until, study.metric, directed.direction, trial.number)
        .join(directed, directed.study_id == study.study_id)
        .join(trial, trial.study_id == study.study_id)
        .where(
            feasible(trial.trial_id),
            study.study_id == lease.study_id,
            study.state != StudyState.STOPPED,
            study.until.is_not(None),
            trial.trial_id == lease.trial_id,
        )
        .with_for_update(of=study)
    ).one_or_none()
    if row is None:
        return
    until, metric, direction, number = row
    if _as_good(value, until, direction):
        stop(session, lease.study_id, f"{metric} reached {until:g} in trial {number}")


def reached_by(session: Session, study_id: int, until: float) -> tuple[int, float] | None:
    """Number and value of the best COMPLETE trial that keeps to its constraints, where it is as good as `until`."""
    value, trial, directed = models.TrialValueModel, models.TrialModel, models.StudyDirectionModel
    direction = session.scalar(select(directed.direction).where(directed.study_id == study_id))
    order = value.value.desc() if direction == StudyDirection.MAXIMIZE else value.value.asc()
    row = session.execute(
        select(trial.number, value.value)
        .join(value, value.trial_id == trial.trial_id)
        .where(
            trial.study_id == study_id,
            trial.state == TrialState.COMPLETE,
            value.value_type == models.TrialValueModel.TrialValueType.FINITE,
            feasible(trial.trial_id),
        )
        .order_by(order, trial.number)
        .limit(1)
    ).one_or_none()
    if row is None or not _as_good(row[1], until, direction):
        return None
    return row[0], row[1]


def _as_good(value: float, until: float, direction: StudyDirection | None) -> bool:
    """No infinite value is good enough: it is no number to rank either."""
    reached = value >= until if direction == StudyDirection.MAXIMIZE else value <= until
    return reached and math.isfinite(value)


def stop(session: Session, study_id: int, reason: str) -> None:
    """End a study that is running, or that somebody has paused; paused trials settle PRUNED. The first reason stands.

    While a study is being paused its last epochs are recorded, and may reach what it is for.
    """
    stopped: Any = session.execute(
        update(StudyRow)
        .where(StudyRow.study_id == study_id, StudyRow.state != StudyState.STOPPED)
        .values(state=StudyState.STOPPED, reason=reason)
    )
    if stopped.rowcount:
        paused.settle(session, study_id, reason)


# What an integer column holds.
MOST = 2**31 - 1


@dataclass(frozen=True)
class Limits:
    """New limits of a study that goes on; None: as it was.

    `budget_seconds` of device time and `budget_epochs` count from the study's beginning. `deadline` is a moment
    (seconds since 1970), infinity for none.
    """

    until: float | None = None
    budget_seconds: float | None = None
    budget_epochs: int | None = None
    deadline: float | None = None

    def in_words(self) -> list[str]:
        """Each that is new: "until 0.95", "2 h of training in all"."""
        said = [f"until {self.until:g}"] if self.until is not None else []
        said += [f"{amount(self.budget_seconds)} of training in all"] if self.budget_seconds is not None else []
        said += [f"{counted(self.budget_epochs, 'epoch')} in all"] if self.budget_epochs is not None else []
        if self.deadline is not None:
            said += [f"a deadline of {moment(self.deadline)}" if math.isfinite(self.deadline) else "no deadline"]
        return said


def renew(session: Session, row: StudyRow, name: str, new: Limits) -> None:
    """Set the limits of a study that is resumed: the new ones, else its own, but for an `until` that is reached.

    Raises:
        UsageError: under these limits the study would stop at once.
    """
    row.budget_seconds = _renewed_seconds(row, name, new.budget_seconds)
    row.budget_epochs = _renewed_epochs(row, name, new.budget_epochs)
    row.deadline = _renewed_deadline(session, row, name, new.deadline)
    goal = row.until if new.until is None else new.until
    best = None if goal is None else reached_by(session, row.study_id, goal)
    if best is not None and new.until is not None:
        raise UsageError(f"--until {new.until:g} is reached already, by trial {best[0]} with {best[1]:g}")
    row.until = None if best is not None else goal


def _renewed_seconds(row: StudyRow, name: str, new: float | None) -> float | None:
    budget = row.budget_seconds if new is None else new
    if budget is None or row.spent_seconds < budget:
        return budget
    spent = amount(row.spent_seconds)
    if new is not None:
        raise UsageError(f"--budget {amount(budget)} is not more than the {spent} of device time already spent")
    larger = amount(2 * row.spent_seconds).replace(" ", "").replace("min", "m")  # as --budget takes it
    raise UsageError(
        f"the budget of {amount(budget)} of device time is spent ({spent}): "
        f"enlarge it, as by `dialin resume {name} --budget {larger}`"
    )


def _renewed_epochs(row: StudyRow, name: str, new: int | None) -> int | None:
    budget = row.budget_epochs if new is None else new
    if budget is None or row.spent_epochs < budget:
        return budget
    if new is not None:
        raise UsageError(
            f"--total-epochs {new} is not more than the {counted(row.spent_epochs, 'epoch')} already on record"
        )
    raise UsageError(
        f"the budget of {counted(budget, 'epoch')} is trained: "
        f"enlarge it, as by `dialin resume {name} --total-epochs +{max(1, budget)}`"
    )


def _renewed_deadline(session: Session, row: StudyRow, name: str, new: float | None) -> float | None:
    deadline = row.deadline if new is None else new
    if deadline is None or math.isinf(deadline):
        return None
    if deadline > (session.scalar(select(database_now())) or 0.0):
        return deadline
    if new is not None:
        raise UsageError(f"--deadline {moment(deadline)} is past already")
    raise UsageError(f"{past(deadline)}: set another, as by `dialin resume {name} --deadline 2h`, or `--deadline none`")
