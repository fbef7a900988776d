"""Optuna's SQL storage as Dialin uses it: opened without races, and a trial's claim and settlement in one transaction.

`storage.shared.SharedStorage` puts Optuna's cache before it; nobody else makes one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from storage import attributes, epochs, leases, limits, new_trials, owners, urls
from storage.claims import Claimant, GivenUp, Lease, Settlement, new_uuid
from storage.engine import asked_first, make_engine, writing
from storage.optuna_internals import models, trial_id_of
from storage.outcomes import Outcome
from storage.patience import Patience, is_back_soon, patient
from storage.schema import StorageUnavailable, prepare
from storage.transactions import PatientStorage, as_patient


def _as_writer(method: Callable[..., Any]) -> Any:
    """The same method, its transaction begun as a writer's."""

    @functools.wraps(method)
    def write(*args: Any, **kwargs: Any) -> Any:
        with writing():
            return method(*args, **kwargs)

    return write


class _Missed(Enum):
    """What an attempt to adopt says that found a trial and could not take it: there may be another."""

    MISSED = "missed"


class Backend(PatientStorage):
    """RDBStorage on Dialin's engine. With a `claimant`, every trial that starts takes a ticket and a lease with it.

    Raises:
        UsageError, StorageUnavailable, WrongVersion: from opening, each with its one line.
    """

    def __init__(self, url: str, claimant: Claimant | None = None, engine: Engine | None = None) -> None:
        """`engine` of the same URL, whose connections are shared; None: one of its own."""
        # RDBStorage's own constructor is not called: it would create tables unlocked on an engine of its own.
        self.url = urls.full(urls.parse(url))
        self.engine_kwargs: dict[str, Any] = {}
        self.skip_compatibility_check = False
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.claimant = claimant
        self._given = engine
        self.leases: dict[int, Lease] = {}
        self.settlements: dict[int, Settlement] = {}
        self.beginning: tuple[Mapping[str, Any], str] | None = None  # what a trial that is claimed next is for
        self._open()

    def _open(self) -> None:
        """A database that is starting or locked is waited for, one that does not answer at all is not."""
        patience = Patience()
        while True:
            try:
                return self._open_now()
            except StorageUnavailable as error:
                self.engine.dispose()
                if not is_back_soon(error):
                    raise
                patience.wait(error)

    def _open_now(self) -> None:
        url = urls.parse(self.url)
        self.engine = self._given or make_engine(url)
        self.scoped_session = scoped_session(sessionmaker(bind=self.engine))
        self._version_manager = prepare(url, self.engine, self.scoped_session)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """As Optuna's, which cannot run again: nothing tells a study that landed from another's of that name."""
        with writing(), asked_first():
            return super().create_new_study(directions, study_name)

    # Done twice they leave the same.
    set_study_user_attr = as_patient(_as_writer(RDBStorage.set_study_user_attr))
    set_study_system_attr = as_patient(_as_writer(RDBStorage.set_study_system_attr))

    # What a person's own code writes through its `Trial`, as Optuna's but only while this process may.

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._note_attr(models.TrialUserAttributeModel, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._note_attr(models.TrialSystemAttributeModel, trial_id, key, value)

    def _note_attr(self, table: Any, trial_id: int, key: str, value: Any) -> None:
        write = self._set_trial_attr_without_commit
        self._note(trial_id, lambda session: write(session, table, trial_id, key, value))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        write = self._set_trial_intermediate_value_without_commit
        self._note(trial_id, lambda session: write(session, trial_id, step, intermediate_value))

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        param = trial_id, param_name, param_value_internal, distribution, previous_distribution
        self._note(trial_id, lambda session: self._set_trial_param_without_commit(session, *param))

    def _note(self, trial_id: int, write: Callable[[Session], None]) -> None:
        """Write what leaves the same when it is written twice. Raises LeaseLost."""

        def attempt(session: Session, _again: bool) -> None:
            if self.claimant is not None:
                leases.fence(session, trial_id, self.leases.get(trial_id))
            write(session)

        with suppress(IntegrityError):  # as Optuna: it is there already
            self.write_once(attempt)

    def delete_study(self, study_id: int) -> None:
        """As Optuna's, which on PostgreSQL leaves the study in silence when an epoch is recorded meanwhile."""

        def attempt(session: Session, again: bool) -> None:
            try:
                study = models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            except KeyError:
                if again:
                    return
                raise
            trial = models.TrialModel
            session.execute(select(trial.trial_id).where(trial.study_id == study_id).with_for_update())
            session.delete(study)

        self.write_once(attempt)
        for lease in [*self.leases.values()]:
            if lease.study_id == study_id:
                del self.leases[lease.trial_id]

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """As Optuna's, but that tries again after a lost COMMIT and makes two trials."""
        ids = new_uuid(), new_uuid()
        lease: Lease | None = None

        def attempt(session: Session, again: bool) -> FrozenTrial:
            nonlocal lease
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)  # one number a trial
            lease = owners.of_claim(session, ids[1]) if again else None
            if lease is not None:
                landed = models.TrialModel.find_or_raise_by_id(lease.trial_id, session)
                return self._build_frozen_trial_from_trial_model(landed)
            trial: Any = self._get_prepared_new_trial(study_id, template_trial, session)
            session.flush()
            if template_trial is None and self.claimant is not None:
                new_trials.note_beginning(session, trial.trial_id, self.beginning)
                lease = leases.take(session, self.claimant, study_id, trial.trial_id, *ids)
            return new_trials.frozen(trial, template_trial)

        if template_trial is None:
            created = self.write_once(attempt)
        else:  # nothing tells two of them apart
            with asked_first(), self.write() as session:
                created = attempt(session, False)
        self._hold(trial_id_of(created), lease)
        return created

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> Any:
        """As Optuna's, which counts trials for a number: after one was deleted it gave a number twice."""
        if template_trial is None:
            number, start = new_trials.next_number(session, study_id), datetime.now()
            trial: Any = models.TrialModel(study_id=study_id, number=number, state=TrialState.RUNNING)
            trial.datetime_start = start
            session.add(trial)
            return trial
        trial = super()._get_prepared_new_trial(study_id, template_trial, session)
        with session.no_autoflush:  # its row has no number yet
            trial.number = new_trials.next_number(session, study_id)
        return trial

    def _hold(self, trial_id: int, lease: Lease | None) -> None:
        """Under which lease this process trains it; under none, as SQLite gives the ids of deleted trials again."""
        self.leases.pop(trial_id, None)
        if lease is not None:
            self.hold(lease)

    def hold(self, lease: Lease) -> None:
        """This process trains the lease's trial from now on."""
        self.leases[lease.trial_id] = lease

    def enqueue(
        self,
        session: Session,
        study_id: int,
        params: Mapping[str, Any],
        key: str = "",
        origin: str = "",
        told: Mapping[str, Any] | None = None,
    ) -> int:
        """A WAITING trial that will suggest `params`, as `enqueue_trial` makes it, in the caller's transaction.

        Its number in return. `key`: a UUID by which `enqueued` finds it when the answer to the COMMIT was lost.
        `origin`: what it is for, as people are told. `told`: more of its user attributes.
        """
        template = new_trials.waiting(params, key, origin, told)
        trial = self._get_prepared_new_trial(study_id, template, session)
        session.flush()
        return int(trial.number)

    def enqueued(self, session: Session, study_id: int, key: str) -> int | None:
        """The number of the trial that was enqueued with this key, where its COMMIT has arrived."""
        return new_trials.enqueued(session, study_id, key)

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """As Optuna's, but without a second look at the database, which would wait for its own transaction."""
        if trial_state.is_finished():
            raise UpdateFinishedTrialError(f"trial {trial_id} is {trial_state.name} and cannot be changed")

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; starting a WAITING trial claims it, and finishing a claimed one settles it."""
        if state == TrialState.RUNNING:
            try:
                return self._start(trial_id, values)
            except IntegrityError:
                return False
        settlement = self.settlements.get(trial_id) or Settlement(Outcome.of(state))
        self.write_once(partial(self._end, trial_id, state, values, settlement, new_uuid()))
        if state.is_finished():
            self.leases.pop(trial_id, None)
        return True

    def _start(self, trial_id: int, values: Sequence[float] | None) -> bool:
        ids = new_uuid(), new_uuid()
        lease: Lease | None = None

        def attempt(session: Session, again: bool) -> bool:
            nonlocal lease
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            lease = owners.of_claim(session, ids[1]) if again else None
            if lease is not None:
                return True
            self.check_trial_is_updatable(trial_id, trial.state)
            if trial.state != TrialState.WAITING:
                return False
            self._set_values(session, trial, values)
            _set_state(session, trial, TrialState.RUNNING)
            if self.claimant is not None:
                lease = leases.take(session, self.claimant, trial.study_id, trial_id, *ids)
            return True

        started = self.write_once(attempt)
        if started:
            self._hold(trial_id, lease)
        return started

    def _end(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
        settlement: Settlement,
        key: str,
        session: Session,
        again: bool,
    ) -> None:
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        lease = self.leases.get(trial_id)
        if again and trial.state == state and (lease is None or leases.is_settled(session, key)):
            return
        self.check_trial_is_updatable(trial_id, trial.state)
        if self.claimant is not None and lease is None:
            leases.fence(session, trial_id, None)
        self._set_values(session, trial, values)
        if state.is_finished() and lease is not None:
            self.set_attrs(session, trial_id, settlement.attrs)
        _set_state(session, trial, state)
        if state.is_finished() and lease is not None:
            leases.settle(session, lease, settlement, key)
            if settlement.seconds > 0:
                limits.spend(session, lease.study_id, settlement.seconds)
            if settlement.outcome is Outcome.COMPLETE and values:
                limits.value_reached(session, lease, values[0])

    def _set_values(self, session: Session, trial: Any, values: Sequence[float] | None) -> None:
        for objective, value in enumerate(values or ()):
            self._set_trial_value_without_commit(session, trial, objective, value)

    def adopt(self, study_id: int) -> Lease | GivenUp | None:
        """Take over a trial that its owner left; None where there is none. One that kills its owners is settled."""
        if not self._anything_left(study_id):
            return None
        claim, cut_off = new_uuid(), False

        def attempt(session: Session, again: bool) -> Lease | GivenUp | _Missed | None:
            nonlocal cut_off
            cut_off = cut_off or again  # also while it looks for another: what was cut off may arrive yet
            return self._adopt(study_id, claim, session, cut_off)

        while (found := self.write_once(attempt)) is _Missed.MISSED:
            pass
        if isinstance(found, Lease):
            self.hold(found)
        return found

    @patient
    def _anything_left(self, study_id: int) -> bool:
        """There seldom is, and a look is less than a writing transaction: on SQLite nobody waits for it."""
        with self.read() as session:
            return leases.anything_left(session, study_id)

    def _adopt(self, study_id: int, claim: str, session: Session, again: bool) -> Lease | GivenUp | _Missed | None:
        # A trial that an attempt cut off has locked is waited for: then its COMMIT has arrived or never will.
        left = leases.adoptable(session, study_id, skip_locked=not again)
        lease = owners.of_claim(session, claim) if again else None
        if lease is not None or left is None:
            return lease
        if owners.poisoned(session, left.trial_id):
            return self._give_up(session, left)
        assert self.claimant is not None, "only a storage opened with a claimant trains"
        return leases.adopt(session, self.claimant, left, claim) or _Missed.MISSED

    def _give_up(self, session: Session, left: Lease) -> GivenUp | _Missed:
        """Settle a trial as lost that kills whoever trains it."""
        if not leases.call_dead(session, left):
            return _Missed.MISSED
        reason = f"the last {owners.POISON_OWNERS} workers that trained it died without a new epoch"
        count, seconds = epochs.cost(session, left.trial_id)
        told = {"outcome": Outcome.LOST.value, "reason": reason, "epochs": count, "seconds": round(seconds, 3)}
        self.set_attrs(session, left.trial_id, told)
        trial = models.TrialModel.find_or_raise_by_id(left.trial_id, session)
        given_up = GivenUp(trial.number, reason)
        _set_state(session, trial, Outcome.LOST.state)
        leases.settle(session, left, Settlement(Outcome.LOST, reason), new_uuid())
        return given_up

    def set_attrs(
        self, session: Session, trial_id: int, attrs: Mapping[str, Any], table: Any = models.TrialUserAttributeModel
    ) -> None:
        """Attributes of a trial, a user's or Optuna's own, inside the caller's transaction."""
        attributes.write(session, [(trial_id, attrs)], table)


def _set_state(session: Session, trial: Any, state: TrialState) -> None:
    """Written once and before our study: a second UPDATE of a row locks what it refers to, Optuna's study."""
    if state == TrialState.RUNNING:
        trial.datetime_start = datetime.now()
    elif state.is_finished():
        trial.datetime_complete = datetime.now()
    trial.state = state
    session.flush()
