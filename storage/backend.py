"""Optuna's SQL storage as Dialin uses it: opened without races, and a trial's claim and settlement in one transaction.

`storage.shared.SharedStorage` puts Optuna's cache before it; nobody else makes one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from storage import leases, limits, urls
from storage.claims import Claimant, Lease, Settlement
from storage.engine import make_engine, writing
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.reading import PatientStorage, again
from storage.schema import prepare


def _as_writer(method: Callable[..., Any]) -> Any:
    """The same method, its transaction begun as a writer's."""

    @functools.wraps(method)
    def write(*args: Any, **kwargs: Any) -> Any:
        with writing():
            return method(*args, **kwargs)

    return write


class Backend(PatientStorage):
    """RDBStorage on Dialin's engine. With a `claimant`, every trial that starts takes a ticket and a lease with it.

    Raises:
        UsageError, StorageUnavailable, WrongVersion: from opening, each with its one line.
    """

    def __init__(self, url: str, claimant: Claimant | None = None) -> None:
        # RDBStorage's own constructor is not called: it would create tables unlocked on an engine of its own.
        self.url = urls.full(urls.parse(url))
        self.engine_kwargs: dict[str, Any] = {}
        self.skip_compatibility_check = False
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.claimant = claimant
        self.leases: dict[int, Lease] = {}
        self.settlements: dict[int, Settlement] = {}
        self._open()

    def _open(self) -> None:
        url = urls.parse(self.url)
        self.engine = make_engine(url)
        self.scoped_session = scoped_session(sessionmaker(bind=self.engine))
        self._version_manager = prepare(url, self.engine, self.scoped_session)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    create_new_study = _as_writer(RDBStorage.create_new_study)
    # Done twice they leave the same.
    set_study_user_attr = again(_as_writer(RDBStorage.set_study_user_attr))
    set_study_system_attr = again(_as_writer(RDBStorage.set_study_system_attr))
    set_trial_user_attr = again(_as_writer(RDBStorage.set_trial_user_attr))
    set_trial_system_attr = again(_as_writer(RDBStorage.set_trial_system_attr))
    set_trial_intermediate_value = again(_as_writer(RDBStorage.set_trial_intermediate_value))
    _set_trial_param = again(_as_writer(RDBStorage._set_trial_param))

    def delete_study(self, study_id: int) -> None:
        """As Optuna's, which on PostgreSQL leaves the study in silence when an epoch is recorded meanwhile."""
        with self.write() as session:
            study = models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial = models.TrialModel
            session.execute(select(trial.trial_id).where(trial.study_id == study_id).with_for_update())
            session.delete(study)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        with writing():
            return super()._create_new_trial(study_id, template_trial)

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> Any:
        """Called by Optuna inside the transaction that creates a trial: the claim joins in."""
        trial: Any = super()._get_prepared_new_trial(study_id, template_trial, session)
        self.leases.pop(trial.trial_id, None)  # SQLite gives the ids of deleted trials again
        if template_trial is None and self.claimant is not None:
            session.flush()
            self.leases[trial.trial_id] = leases.take(session, self.claimant, study_id, trial.trial_id)
        return trial

    def enqueue(self, session: Session, study_id: int, params: Mapping[str, Any]) -> int:
        """A WAITING trial that will suggest `params`, as `enqueue_trial` makes it, in the caller's transaction.

        Its number in return.
        """
        template = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": dict(params)})
        trial = self._get_prepared_new_trial(study_id, template, session)
        session.flush()
        return int(trial.number)

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """As Optuna's, but without a second look at the database, which would wait for its own transaction."""
        if trial_state.is_finished():
            raise UpdateFinishedTrialError(f"trial {trial_id} is {trial_state.name} and cannot be changed")

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; starting a WAITING trial claims it, and finishing a claimed one settles it."""
        try:
            with self.write() as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                self.check_trial_is_updatable(trial_id, trial.state)
                if state == TrialState.RUNNING and trial.state != TrialState.WAITING:
                    return False
                for objective, value in enumerate(values or ()):
                    self._set_trial_value_without_commit(session, trial, objective, value)
                if state == TrialState.RUNNING:
                    self._start(session, trial)
                elif state.is_finished():
                    self._finish(session, trial, state, values)
                trial.state = state
        except IntegrityError:
            return False
        if state.is_finished():
            self.leases.pop(trial_id, None)
        return True

    def _start(self, session: Session, trial: Any) -> None:
        trial.datetime_start = datetime.now()
        trial.state = TrialState.RUNNING
        session.flush()
        if self.claimant is not None:
            self.leases[trial.trial_id] = leases.take(session, self.claimant, trial.study_id, trial.trial_id)

    def _finish(self, session: Session, trial: Any, state: TrialState, values: Sequence[float] | None) -> None:
        lease = self.leases.get(trial.trial_id)
        settlement = self.settlements.get(trial.trial_id) or Settlement(Outcome.of(state))
        if lease is not None:
            self.set_attrs(session, trial.trial_id, settlement.attrs)
        # Written once and before our study: a second UPDATE of a row locks what it refers to, Optuna's study.
        trial.datetime_complete, trial.state = datetime.now(), state
        session.flush()
        if lease is None:
            return
        leases.settle(session, lease, settlement)
        if settlement.seconds > 0:
            limits.spend(session, lease.study_id, settlement.seconds)
        if settlement.outcome is Outcome.COMPLETE and values:
            limits.value_reached(session, lease, values[0])

    def set_attrs(
        self, session: Session, trial_id: int, attrs: Mapping[str, Any], table: Any = models.TrialUserAttributeModel
    ) -> None:
        """Attributes of a trial, a user's or Optuna's own, inside the caller's transaction."""
        for key, value in attrs.items():
            self._set_trial_attr_without_commit(session, table, trial_id, key, value)
