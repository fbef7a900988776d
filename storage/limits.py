"""What ends a study before its trials are spent: a value that is good enough, or device time that is used up.

Called inside the transactions that settle a trial and record an epoch, after all else: everybody locks our study last.
The first to reach a limit stops the study with its reason; whoever comes later finds it stopped.
"""

from __future__ import annotations

import math

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage.claims import Lease
from storage.errors import UsageError
from storage.optuna_internals import models
from storage.tables import StudyRow, StudyState

_UNITS = ((3600, "h"), (60, "min"), (1, "s"))


def amount(seconds: float) -> str:
    """Device time for people, in the largest unit of which there is one: "8 h", "1.5 min", "20 s"."""
    size, unit = next((row for row in _UNITS if seconds >= row[0]), _UNITS[-1])
    return f"{round(seconds / size, 2):g} {unit}"


def spend(session: Session, study_id: int, seconds: float) -> StudyState | None:
    """Add device time to what the study has spent, and stop it at its budget; its state, None without a study."""
    row = session.execute(
        update(StudyRow)
        .where(StudyRow.study_id == study_id)
        .values(spent_seconds=StudyRow.spent_seconds + seconds)
        .returning(StudyRow.spent_seconds, StudyRow.budget_seconds, StudyRow.state)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return None
    spent, budget, state = row
    if budget is not None and spent >= budget and state == StudyState.RUNNING:
        _stop(session, study_id, f"the budget of {amount(budget)} of device time is spent")
        return StudyState.STOPPED
    return StudyState(state)


def value_reached(session: Session, lease: Lease, value: float) -> None:
    """A trial is COMPLETE with this value: stop the study where it is as good as `until`."""
    study, trial, directed = StudyRow, models.TrialModel, models.StudyDirectionModel
    row = session.execute(
        select(study.until, study.metric, directed.direction, trial.number)
        .join(directed, directed.study_id == study.study_id)
        .join(trial, trial.study_id == study.study_id)
        .where(
            study.study_id == lease.study_id,
            study.state == StudyState.RUNNING,
            study.until.is_not(None),
            trial.trial_id == lease.trial_id,
        )
        .with_for_update(of=study)
    ).one_or_none()
    if row is None:
        return
    until, metric, direction, number = row
    if _as_good(value, until, direction):
        _stop(session, lease.study_id, f"{metric} reached {until:g} in trial {number}")


def reached_by(session: Session, study_id: int, until: float) -> tuple[int, float] | None:
    """Number and value of the best COMPLETE trial where it is as good as `until`."""
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


def _stop(session: Session, study_id: int, reason: str) -> None:
    session.execute(
        update(StudyRow)
        .where(StudyRow.study_id == study_id, StudyRow.state == StudyState.RUNNING)
        .values(state=StudyState.STOPPED, reason=reason)
    )


def renewed(
    session: Session, row: StudyRow, name: str, budget_seconds: float | None, until: float | None
) -> tuple[float | None, float | None]:
    """`budget_seconds` and `until` of a study that is resumed: the new ones, else its own; None for one reached.

    Raises:
        UsageError: under these limits the study would stop at once.
    """
    budget = row.budget_seconds if budget_seconds is None else budget_seconds
    spent = amount(row.spent_seconds)
    if budget is not None and row.spent_seconds >= budget:
        if budget_seconds is not None:
            raise UsageError(f"--budget {amount(budget)} is not more than the {spent} of device time already spent")
        larger = amount(2 * row.spent_seconds).replace(" ", "").replace("min", "m")  # as --budget takes it
        raise UsageError(
            f"the budget of {amount(budget)} of device time is spent ({spent}): "
            f"enlarge it, as by `dialin resume {name} --budget {larger}`"
        )
    goal = row.until if until is None else until
    best = None if goal is None else reached_by(session, row.study_id, goal)
    if best is not None and until is not None:
        raise UsageError(f"--until {until:g} is reached already, by trial {best[0]} with {best[1]:g}")
    return budget, None if best is not None else goal
