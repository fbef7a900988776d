"""What a trial is made with: its number, what it is to suggest and what for; called by `storage.backend`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage import attributes
from storage.optuna_internals import FIXED_PARAMS, models
from storage.tables import StudyRow

if TYPE_CHECKING:
    from storage.backend import Backend

# The system attribute that tells trials apart which were enqueued with the same parameters.
_ENQUEUED = "dialin:enqueued"


def waiting(params: Mapping[str, Any], key: str, origin: str, told: Mapping[str, Any] | None = None) -> FrozenTrial:
    """A WAITING trial that will suggest `params`, as `enqueue_trial` makes it. `key` tells it from others."""
    noted = {_ENQUEUED: key} if key else {}
    attrs = {**(told or {}), **({attributes.ORIGIN: origin} if origin else {})}
    fixed = {FIXED_PARAMS: dict(params)}
    return create_trial(state=TrialState.WAITING, system_attrs=fixed | noted, user_attrs=attrs)


def enqueued(session: Session, study_id: int, key: str) -> int | None:
    """The number of the trial that was enqueued with this key."""
    trial, attr = models.TrialModel, models.TrialSystemAttributeModel
    query = select(trial.number).join(attr, attr.trial_id == trial.trial_id)
    mine = query.where(trial.study_id == study_id, attr.key == _ENQUEUED, attr.value_json == json.dumps(key))
    return session.scalar(mine)


@contextmanager
def beginning(backend: Backend, params: Mapping[str, Any] | None, origin: str) -> Iterator[None]:
    """A trial that is claimed in this block, and was not enqueued, will suggest `params` and says what it is for.

    Both are on record with its claim: an owner that dies before it has sampled leaves them to its adopter.
    """
    backend.beginning = params or {}, origin
    try:
        yield
    finally:
        backend.beginning = None


def note_beginning(session: Session, trial_id: int, beginning: tuple[Mapping[str, Any], str] | None) -> None:
    """With its claim, what it will suggest and what for: whoever adopts it before it was sampled knows it too."""
    params, origin = beginning or ({}, "")
    attributes.write(session, [(trial_id, {attributes.ORIGIN: origin} if origin else {})])
    fixed = {FIXED_PARAMS: dict(params)} if params else {}
    attributes.write(session, [(trial_id, fixed)], models.TrialSystemAttributeModel)


def next_number(session: Session, study_id: int) -> int:
    """One that no trial of the study has or, where all were claimed by workers, ever had."""
    trial = models.TrialModel
    last = select(func.max(trial.number)).where(trial.study_id == study_id).scalar_subquery()
    claimed = select(StudyRow.taken + StudyRow.returned).where(StudyRow.study_id == study_id).scalar_subquery()
    highest, claims = session.execute(select(last, claimed)).one()
    return max(-1 if highest is None else highest, (claims or 0) - 1) + 1


def frozen(trial: Any, template: FrozenTrial | None) -> FrozenTrial:
    """A trial that was made this moment as Optuna hands it out, without reading it."""
    made: Any = copy.deepcopy(template) if template is not None else create_trial(state=TrialState.RUNNING)
    made.number, made.datetime_start, made._trial_id = trial.number, trial.datetime_start, trial.trial_id
    found: FrozenTrial = made
    return found
