"""All studies of a database at a glance, and the trials of one: a fixed number of statements, however many there are.

Called by `storage.queries`, under whose name callers know it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from storage.constraints import feasible
from storage.engine import database_now
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import LeaseRow, StudyRow, StudyState, TrialRow


@dataclass(frozen=True)
class StudyLine:
    """One study. Plain Optuna's have no objective, state, budget, metric or time of their making.

    `settled` trials count towards the budget of `trials`; `running` ones are open, `held` of them by a worker that
    lives and `paused` ones by nobody; `waiting` ones are enqueued. `best` is the best COMPLETE trial's value; None
    without one, and for a study of several objectives, whose `direction` lists them all.
    """

    name: str
    objective: str | None
    state: StudyState | None
    reason: str
    settled: int
    running: int
    waiting: int
    trials: int | None
    finished: bool
    metric: str | None
    direction: str
    best: float | None
    created_at: float | None
    held: int = 0
    paused: int = 0


@dataclass(frozen=True)
class _Counts:
    settled: int = 0
    running: int = 0
    waiting: int = 0
    leased: int = 0
    held: int = 0
    paused: int = 0


@patient
def listing(storage: SharedStorage) -> list[StudyLine]:
    """Every study of the database, plain Optuna's too, the oldest first."""
    with storage.backend.read() as session:
        counts, ranges, directions = _counts(session), _ranges(session), _directions(session)
        rows = session.execute(
            select(models.StudyModel.study_id, models.StudyModel.study_name, StudyRow)
            .outerjoin(StudyRow, StudyRow.study_id == models.StudyModel.study_id)
            .order_by(models.StudyModel.study_id)
        ).all()
        return [
            _line(name, study, counts.get(id_, _Counts()), directions.get(id_, []), ranges.get(id_))
            for id_, name, study in rows
        ]


def _line(
    name: str,
    study: StudyRow | None,
    count: _Counts,
    directions: list[StudyDirection],
    lowest_highest: tuple[float, float] | None,
) -> StudyLine:
    best = None
    if lowest_highest is not None and len(directions) == 1:
        best = lowest_highest[directions[0] == StudyDirection.MAXIMIZE]
    return StudyLine(
        name=name,
        objective=study.objective if study is not None else None,
        state=StudyState(study.state) if study is not None else None,
        reason=study.reason if study is not None else "",
        settled=count.settled - (study.returned if study is not None else 0),
        running=count.running,
        held=count.held,
        paused=count.paused,
        waiting=count.waiting,
        trials=study.trials if study is not None else None,
        finished=study is not None and study.taken >= study.trials and not count.leased + count.paused,
        metric=study.metric if study is not None else None,
        direction=", ".join(direction.name.lower() for direction in directions),
        best=best,
        created_at=study.created_at if study is not None else None,
    )


def _counts(session: Session) -> dict[int, _Counts]:
    trial = models.TrialModel
    rows: Iterable[Row[Any]] = session.execute(
        select(
            trial.study_id,
            func.count().filter(trial.state.in_((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))),
            func.count().filter(trial.state == TrialState.RUNNING),
            func.count().filter(trial.state == TrialState.WAITING),
            func.count(LeaseRow.trial_id).filter(trial.state == TrialState.RUNNING),
            func.count().filter(trial.state == TrialState.RUNNING, LeaseRow.expires_at >= database_now()),
            func.count(TrialRow.paused).filter(trial.state == TrialState.RUNNING),
        )
        .outerjoin(LeaseRow, LeaseRow.trial_id == trial.trial_id)
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .group_by(trial.study_id)
    )
    return {row[0]: _Counts(*row[1:]) for row in rows}


def _ranges(session: Session) -> dict[int, tuple[float, float]]:
    """Lowest and highest value of each study's COMPLETE trials that keep to their constraints."""
    trial, value = models.TrialModel, models.TrialValueModel
    rows = session.execute(
        select(trial.study_id, func.min(value.value), func.max(value.value))
        .join(value, value.trial_id == trial.trial_id)
        .where(
            trial.state == TrialState.COMPLETE,
            value.value_type == value.TrialValueType.FINITE,
            feasible(trial.trial_id),
        )
        .group_by(trial.study_id)
    )
    return {study_id: (lowest, highest) for study_id, lowest, highest in rows}


def _directions(session: Session) -> dict[int, list[StudyDirection]]:
    directed = models.StudyDirectionModel
    found: dict[int, list[StudyDirection]] = {}
    for study_id, direction in session.execute(
        select(directed.study_id, directed.direction).order_by(directed.study_id, directed.objective)
    ):
        found.setdefault(study_id, []).append(direction)
    return found


@patient
def logged(storage: SharedStorage, study: StudyRecord) -> list[tuple[int, str]]:
    """Number and state of every trial that was started, the newest first: those that may have a log.

    The state is an outcome's name ("complete", "out_of_memory", ...), "running", "paused" or "adoptable" (its worker is
    gone).
    """
    trial = models.TrialModel
    query = (
        select(trial.number, trial.state, TrialRow.outcome, LeaseRow.expires_at < database_now(), TrialRow.paused)
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(LeaseRow, LeaseRow.trial_id == trial.trial_id)
        .where(trial.study_id == study.study_id, trial.state != TrialState.WAITING)
        .order_by(trial.number.desc())
    )
    with storage.backend.read() as session:
        return [(number, state_of(*said)) for number, *said in session.execute(query)]


def state_of(state: TrialState, outcome: str | None, expired: bool | None, paused: int | None) -> str:
    """A trial's state in a word: its outcome, else "running", "adoptable", "paused" or "waiting".

    `expired`: whether its lease has; None without a lease. `paused`: the generation that let it go.
    """
    if state.is_finished():
        return outcome or Outcome.of(state).value
    if paused is not None:
        return "paused"
    return "adoptable" if state == TrialState.RUNNING and expired else state.name.lower()
