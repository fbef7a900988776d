"""What a study's trials have cost: epochs, seconds, device time, samples, memory; and what was spared.

Asked by `dialin status`, by `storage.overview` for each trial, and by the report.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from storage.attributes import PEAK_MEMORY, bytes_of
from storage.engine import database_now
from storage.listing import state_of
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import EpochRow, LeaseRow, TrialRow


@dataclass(frozen=True)
class Cost:
    """Of a trial or of several: what is on record of their epochs, under all their owners.

    Attributes:
        seconds: of wall time. device_seconds: each epoch's times the devices that trained it.
        samples: that training has seen, each as often as it has.
        peak_memory: the most bytes that one of them had in use: of a GPU by its tensors, on a CPU by the process. None
            where nobody knows.
        device: what trained a trial, the last by name where several did; "" of several trials.
    """

    epochs: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    samples: int = 0
    peak_memory: int | None = None
    device: str = ""


@dataclass(frozen=True)
class Saved:
    """Training that was spared: epochs, and the seconds they would have taken at each trial's own pace."""

    epochs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class StudyCosts:
    """A study's costs. `by_state`: trials and their cost by outcome, in the order of `Outcome`, then of open ones.

    `pruning` and `patience`: what stopping trials early has saved, because others were better and because they got no
    better themselves.
    """

    by_state: Mapping[str, tuple[int, Cost]]
    pruning: Saved
    patience: Saved

    @property
    def total(self) -> Cost:
        """Of all trials together."""
        return summed(cost for _, cost in self.by_state.values())


def summed(costs: Iterable[Cost]) -> Cost:
    """Of several together; the memory is the highest, as they need not have run at once."""
    all_of_them = [*costs]
    peaks = [one.peak_memory for one in all_of_them if one.peak_memory is not None]
    return Cost(
        epochs=sum(one.epochs for one in all_of_them),
        seconds=sum(one.seconds for one in all_of_them),
        device_seconds=sum(one.device_seconds for one in all_of_them),
        samples=sum(one.samples for one in all_of_them),
        peak_memory=max(peaks, default=None),
    )


@patient
def of_study(storage: SharedStorage, study: StudyRecord) -> StudyCosts:
    """What the study has cost so far, in three statements."""
    with storage.backend.read() as session:
        states = {trial_id: state_of(*said) for trial_id, *said in session.execute(_states(study.study_id)).all()}
        costs = of_trials(session, study.study_id)
    grouped: dict[str, list[Cost]] = defaultdict(list)
    for trial_id, state in states.items():
        grouped[state].append(costs.get(trial_id, Cost()))
    order = [*(outcome.value for outcome in Outcome), "running", "adoptable", "paused"]
    by_state = {state: (len(grouped[state]), summed(grouped[state])) for state in order if state in grouped}
    # A trial without an epoch was refused by its model, or somebody else told it: nothing stopped its training.
    return StudyCosts(
        by_state,
        pruning=_saved(grouped.get(Outcome.PRUNED, ()), study.length),
        patience=_saved(grouped.get(Outcome.COMPLETE, ()), study.length),
    )


def _saved(costs: Iterable[Cost], length: int) -> Saved:
    short = [one for one in costs if 0 < one.epochs < length]
    spared = [length - one.epochs for one in short]
    return Saved(sum(spared), sum(n * one.seconds / one.epochs for n, one in zip(spared, short, strict=True)))


def _states(study_id: int) -> Select[Any]:
    """Of every trial that was started."""
    trial = models.TrialModel
    return (
        select(trial.trial_id, trial.state, TrialRow.outcome, LeaseRow.expires_at < database_now(), TrialRow.paused)
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .outerjoin(LeaseRow, LeaseRow.trial_id == trial.trial_id)
        .where(trial.study_id == study_id, trial.state != TrialState.WAITING)
    )


def chosen(study_id: int, numbers: range | None) -> list[ColumnElement[bool]]:
    """The conditions on Optuna's trials: of this study, and with one of these numbers where there are any."""
    trial = models.TrialModel
    within = [] if numbers is None else [trial.number >= numbers.start, trial.number < numbers.stop]
    return [trial.study_id == study_id, *within]


def of_trials(session: Session, study_id: int, numbers: range | None = None) -> dict[int, Cost]:
    """By trial (with one of these numbers), of those that have an epoch or a peak of memory on record."""
    trial = models.TrialModel
    query = (
        select(
            EpochRow.trial_id,
            func.count(),
            func.sum(EpochRow.seconds),
            func.sum(EpochRow.seconds * EpochRow.devices),
            func.sum(EpochRow.samples),
            func.max(EpochRow.device),
        )
        .join(trial, trial.trial_id == EpochRow.trial_id)
        .where(*chosen(study_id, numbers))
        .group_by(EpochRow.trial_id)
    )
    peaks = _peaks(session, study_id, numbers)
    found = {trial_id: Cost(peak_memory=peak) for trial_id, peak in peaks.items()}
    for trial_id, epochs, seconds, device_seconds, samples, device in session.execute(query).all():
        sums = epochs, float(seconds), float(device_seconds), int(samples)
        found[trial_id] = Cost(*sums, peaks.get(trial_id), device)
    return found


def _peaks(session: Session, study_id: int, numbers: range | None) -> dict[int, int]:
    trial, attr = models.TrialModel, models.TrialUserAttributeModel
    query = (
        select(attr.trial_id, attr.value_json)
        .join(trial, trial.trial_id == attr.trial_id)
        .where(*chosen(study_id, numbers), attr.key == PEAK_MEMORY)
    )
    read = ((trial_id, bytes_of(json.loads(text))) for trial_id, text in session.execute(query).all())
    return {trial_id: peak for trial_id, peak in read if peak is not None}
