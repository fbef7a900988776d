"""The storage that everything opens: Optuna's, cached, with leases and epochs; `open_storage(url)` makes one.

Samplers, pruners and optuna-dashboard see an Optuna storage. Workers, which open it with a `Claimant`, also use the
methods at the end: each is one transaction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna import distributions
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from storage import epochs, leases, limits, owners, state_files, twins
from storage.backend import Backend
from storage.claims import Checkpoint, Claimant, Epoch, EpochsSpent, GivenUp, Lease, LeaseLost, Settlement
from storage.epochs import Written
from storage.optuna_internals import frozen_of, models, tell, trial_id_of
from storage.outcomes import Outcome
from storage.patience import patient
from storage.recipe_draw import RecipeDraw, parameter_rows
from storage.space_view import SpaceView
from storage.tables import CheckpointKind, CheckpointRow, StudyRow, StudyState
from storage.trial_cache import TrialCache

# An epoch renews a lease of which less than this share is left: many short epochs need not write it each time.
RENEW_BELOW = 0.9


class SharedStorage(TrialCache):
    """Optuna's storage with Dialin's leases. One a process; safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._draw: RecipeDraw | None = None
        self._ids: dict[str, int] = {}
        self._uids: dict[int, str] = {}  # of the studies that this process was asked about
        self._got_further: str | None = None  # the claim whose owner is known to have left something
        # Set where trials are trained: what samplers see of trials from another space. Then any space goes on record.
        self.view: SpaceView | None = None

    @property
    def backend(self) -> Backend:
        """Transactions and tables, for the modules of this package."""
        return self._backend

    def lease_of(self, trial: BaseTrial) -> Lease:
        """The lease under which this process trains a trial that it claimed or adopted."""
        return self._backend.leases[trial_id_of(trial)]

    # -- A recipe is sampled in memory and written in one transaction.

    @contextmanager
    def sampling(self, trial: Trial, once: bool = False) -> Iterator[None]:
        """Parameters and attributes set on a claimed trial in this block are written together at its end.

        Reads by this process see them at once. Nothing is written when the block raises.

        Raises:
            DrawnMeanwhile: `once`, and another worker has drawn the same parameters meanwhile. Nothing is written.
        """
        before = frozen_of(trial)
        self._draw = draw = RecipeDraw(copy.deepcopy(before))
        try:
            yield
            # Of a range without an end of values two workers do not draw the same: that need not be looked for.
            may_have_a_twin = once and self.view is not None and not self.view.endless
            seen = draw.recorded.get(self.lease_of(trial).study_id) if may_have_a_twin else None
        finally:
            self._draw = None
        self._write_sampled(self.lease_of(trial), before, draw.trial, seen)

    def _write_sampled(
        self, lease: Lease, before: FrozenTrial, sampled: FrozenTrial, seen: list[FrozenTrial] | None
    ) -> None:
        """`seen`: the trials that were on record when the recipe was drawn, none of which has the same."""
        rows = parameter_rows(sampled, lease.trial_id, before.params)
        names = [row["param_name"] for row in rows]
        user_attrs = {k: v for k, v in sampled.user_attrs.items() if before.user_attrs.get(k) != v}
        system_attrs = {k: v for k, v in sampled.system_attrs.items() if before.system_attrs.get(k) != v}

        def attempt(session: Session, again: bool) -> None:
            if rows and seen is not None and not again:
                twins.refuse(session, lease, rows, seen)
            self._check_and_renew(session, lease)
            param = models.TrialParamModel
            mine = select(param.param_name).where(param.trial_id == lease.trial_id, param.param_name.in_(names))
            landed = again and session.scalar(mine.limit(1)) is not None
            if rows and not landed:
                session.execute(insert(param), rows)
            self._backend.set_attrs(session, lease.trial_id, user_attrs)
            self._backend.set_attrs(session, lease.trial_id, system_attrs, models.TrialSystemAttributeModel)

        self._backend.write_once(attempt)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: distributions.BaseDistribution,
    ) -> None:
        trial = self._sampled(trial_id)
        if trial is None and self.view is not None:
            of_before = distribution  # what it may differ from: Optuna takes no other choices than those on record
            self._backend._set_trial_param(trial_id, param_name, param_value_internal, distribution, of_before)
            return
        if trial is None:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            return
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._sampled(trial_id)
        if trial is None:
            super().set_trial_user_attr(trial_id, key, value)
        else:
            trial.user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Samplers note here what they did (TPE: the parameters it drew together)."""
        trial = self._sampled(trial_id)
        if self._noting is not None and self._noting[0] == trial_id:
            self._noting[1][key] = value
        elif trial is None:
            super().set_trial_system_attr(trial_id, key, value)
        else:
            trial.system_attrs[key] = value

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = self._sampled(trial_id)
        return copy.deepcopy(trial) if trial is not None else super().get_trial(trial_id)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """While a recipe is sampled all reads see what the first one saw: one is as good for all its parameters."""
        draw = self._draw
        if draw is None and (self.view is None or self._noting is not None):  # pruners judge by all trials
            return super().get_all_trials(study_id, deepcopy, states)
        among = tuple(state for state in TrialState if states is None or state in states)
        if draw is None:
            trials = self._seen_by_samplers(study_id, among)
        else:
            key = study_id, among, self.view.changes if self.view is not None else 0
            if key not in draw.shown:
                draw.shown[key] = self._seen_by_samplers(study_id, among)
            trials = draw.among(draw.shown[key])
        return copy.deepcopy(trials) if deepcopy else trials

    def _seen_by_samplers(self, study_id: int, states: tuple[TrialState, ...]) -> list[FrozenTrial]:
        """The trials in some states as samplers see them."""
        trials = [trial for trial in self.recorded(study_id) if trial.state in states]
        return trials if self.view is None else self.view(trials)

    def recorded(self, study_id: int) -> list[FrozenTrial]:
        """All trials as they are on record, whatever samplers see of them. They are not to be changed."""
        if self._draw is None:
            return super().get_all_trials(study_id, deepcopy=False)
        if study_id not in self._draw.recorded:
            self._draw.recorded[study_id] = super().get_all_trials(study_id, deepcopy=False)
        return self._draw.recorded[study_id]

    def get_study_id_from_name(self, study_name: str) -> int:
        """Hyperband asks at every parameter and decision: of a study whose trial is held here the id is known."""
        known = self._ids.get(study_name)
        if known is None or known not in {lease.study_id for lease in [*self._backend.leases.values()]}:
            known = self._ids[study_name] = super().get_study_id_from_name(study_name)
        return known

    @contextmanager
    def noting(self, trial_id: int) -> Iterator[dict[str, Any]]:
        """What a pruner notes on the trial that it judges is put here, not written; nothing of that trial is read."""
        self._noting = trial_id, {}
        try:
            yield self._noting[1]
        finally:
            self._noting = None

    def _sampled(self, trial_id: int) -> FrozenTrial | None:
        draw = self._draw
        return draw.trial if draw is not None and trial_id_of(draw.trial) == trial_id else None

    # -- A worker's transactions.

    @property
    def _claimant(self) -> Claimant:
        claimant = self._backend.claimant
        assert claimant is not None, "only a storage opened with a claimant trains"
        return claimant

    @property
    def _lease_seconds(self) -> float:
        return self._claimant.lease_seconds

    def adopt(self, study_id: int) -> Lease | GivenUp | None:
        """Take over a trial that its worker left, under its own number; None where there is none.

        GivenUp: one that kills its workers was settled as lost instead, and there may be another.
        """
        return self._backend.adopt(study_id)

    def record_epoch(self, lease: Lease, epoch: Epoch, checkpoint: Checkpoint | None = None) -> StudyState:
        """One epoch, as `record_epochs`; the study's state in return."""
        return self.record_epochs(lease, [epoch], checkpoint).state

    def record_epochs(
        self, lease: Lease, several: Sequence[Epoch], checkpoint: Checkpoint | None = None
    ) -> limits.Remaining:
        """Epochs of different numbers, with a checkpoint after the last, and the lease renewed if due: one transaction.

        They and their device time count towards the study's budgets, which they may end; what is left in return.

        Raises:
            LeaseLost: another worker owns the trial, or somebody settled or deleted it. Nothing is recorded.
            EpochsSpent: they are more than the study's budget has. As many as it has are recorded, the first ones, and
                no checkpoint.
        """
        try:
            left, new = self._backend.write_once(
                lambda session, _: self._write_epochs(session, lease, several, checkpoint)
            )
        except EpochsSpent:
            if len(several) == 1:
                raise
            half = len(several) // 2  # not all fit: find out how many do
            self.record_epochs(lease, several[:half])
            return self.record_epochs(lease, several[half:], checkpoint)
        if new:
            self._got_further = lease.claim
        return left

    def _write_epochs(
        self, session: Session, lease: Lease, several: Sequence[Epoch], checkpoint: Checkpoint | None
    ) -> tuple[limits.Remaining, int]:
        """What the study has left, and how many epochs are new. Raises LeaseLost, EpochsSpent."""
        left = epochs.append(session, lease, several[0])
        if left is None:
            self._check_and_renew(session, lease)
            written = [epochs.write(session, lease, epoch) for epoch in several]
        else:
            written = [Written.NEW, *epochs.add(session, lease, several[1:])]
            if left < RENEW_BELOW * self._lease_seconds:
                leases.renew(session, lease, self._lease_seconds)
        new = written.count(Written.NEW)
        unlanded = [epoch for epoch, how in zip(several, written, strict=True) if how is not Written.ALREADY]
        if new and lease.claim != self._got_further:
            owners.left_something(session, lease)
        if unlanded and checkpoint is not None:
            state_files.record(session, lease, checkpoint)
        noted = {key: value for epoch in unlanded for key, value in epoch.noted.items()}
        self._backend.set_attrs(session, lease.trial_id, noted, models.TrialSystemAttributeModel)
        told = {key: value for epoch in unlanded for key, value in epoch.told.items()}
        self._backend.set_attrs(session, lease.trial_id, told)
        spent = sum(epoch.seconds * epoch.devices for epoch in unlanded)
        return limits.spend(session, lease.study_id, spent, epochs=new) or limits.Remaining(StudyState.RUNNING), new

    def _check_and_renew(self, session: Session, lease: Lease) -> None:
        """Locks the trial before its lease, as whoever deletes it does. Raises LeaseLost."""
        if leases.lock(session, lease.trial_id) != TrialState.RUNNING:
            raise LeaseLost("it was settled or deleted elsewhere")
        leases.renew(session, lease, self._lease_seconds)

    @patient
    def record_checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> list[str] | None:
        """A state checkpoint by itself; in return the paths of older ones that nothing needs any more.

        None: nothing is recorded, since the epoch that it goes on after is not on record yet.

        Raises:
            LeaseLost: another worker owns the trial, or somebody settled or deleted it. Nothing is recorded.
        """
        with self._backend.write() as session:
            self._check_and_renew(session, lease)
            if not state_files.follows_the_record(session, lease, checkpoint):
                return None
            return state_files.record(session, lease, checkpoint)

    @patient
    def renew(self, lease: Lease | None) -> None:
        """Between epochs: the worker is alive, and so is its lease. Raises LeaseLost.

        Without a lease to name, as while a new trial is being sampled, whatever the worker holds is renewed, as far as
        it knows: one that it never heard of, as the answer to its COMMIT was lost, expires.
        """
        with self._backend.write() as session:
            if lease is not None:
                leases.renew(session, lease, self._lease_seconds)
            else:
                leases.renew_all(session, [*self._backend.leases.values()], self._lease_seconds)
            leases.seen(session, self._claimant.worker_id)

    @patient
    def study_state(self, study_id: int) -> StudyState | None:
        """What workers should do; None when the study is gone. One whose deadline is past is stopped by this.

        Gone is also one whose id another has now: SQLite gives those of deleted studies again.
        """
        query = select(StudyRow.state, limits.in_time(), StudyRow.uid).where(StudyRow.study_id == study_id)
        with self._backend.read() as session:
            row = session.execute(query).one_or_none()
        if row is None or self._uids.setdefault(study_id, row[2]) != row[2]:
            return None
        if row[1] or row[0] != StudyState.RUNNING:
            return StudyState(row[0])
        with self._backend.write() as session:
            limits.stop_at_deadline(session, study_id)
        return StudyState.STOPPED

    def hand_back(self, lease: Lease) -> None:
        """Leave a trial for any worker to go on with, from its last checkpoint."""
        self._backend.write_once(lambda session, _again: leases.hand_back(session, lease))
        self._backend.leases.pop(lease.trial_id, None)
        self._noted.add(lease.trial_id)  # its last rows are this worker's own, which it has not read

    @patient
    def let_go(self, lease: Lease) -> TrialState | None:
        """The state that another program told a trial while it was trained here, which is on record after this.

        None where nobody did, or the lease is another worker's.
        """
        with self._backend.write() as session:
            told = leases.let_go(session, lease)
        self._backend.leases.pop(lease.trial_id, None)
        return told

    def settle(self, study: Study, trial: Trial, settlement: Settlement, value: float | None = None) -> None:
        """End a trial through Optuna's `tell`, so that samplers hear of it; one transaction.

        Raises:
            LeaseLost: another worker owns the trial, or it was settled or deleted elsewhere.
        """
        trial_id = trial_id_of(trial)
        if trial_id not in self._backend.leases:
            raise LeaseLost("it is no longer this worker's")
        self._backend.settlements[trial_id] = settlement
        try:
            tell(study, trial, value if settlement.outcome is Outcome.COMPLETE else None, settlement.outcome.state)
        except (KeyError, ValueError, UpdateFinishedTrialError) as error:
            if self._is_mine(trial_id):
                raise
            raise LeaseLost("it was settled or deleted elsewhere") from error
        finally:
            self._backend.settlements.pop(trial_id, None)

    @patient
    def cost(self, lease: Lease) -> tuple[int, float]:
        """Epochs on record of a trial, under all its owners, and their seconds."""
        with self._backend.read() as session:
            return epochs.cost(session, lease.trial_id)

    @patient
    def kills_in_a_row(self, lease: Lease) -> int:
        """How many owners of a trial just before this one were killed for want of memory, one after the other."""
        if lease.generation == 1:
            return 0
        with self._backend.read() as session:
            return owners.kills_in_a_row(session, lease)

    @patient
    def checkpoints(self, lease: Lease) -> list[Checkpoint]:
        """Recorded state checkpoints of a trial, the newest first."""
        row = CheckpointRow
        query = select(row.epoch, row.path, row.sha256, row.batch, row.size).order_by(row.checkpoint_id.desc())
        query = query.where(row.trial_id == lease.trial_id, row.kind == CheckpointKind.STATE)
        with self._backend.read() as session:
            return [Checkpoint(*found) for found in session.execute(query)]

    @patient
    def _is_mine(self, trial_id: int) -> bool:
        lease = self._backend.leases.get(trial_id)
        if lease is None:
            return False
        with self._backend.read() as session:
            state = session.scalar(select(models.TrialModel.state).where(models.TrialModel.trial_id == trial_id))
        return state == TrialState.RUNNING


def open_storage(url: str, claimant: Claimant | None = None, beside: SharedStorage | None = None) -> SharedStorage:
    """Open the database of a URL, creating its tables where there are none.

    Args:
        url: as a person types it, `sqlite:///FILE.db` or `postgresql://...`.
        claimant: the worker for which trials are claimed; None to look, to enqueue and to manage.
        beside: one of the same URL in this process, with which it shares connections.

    Raises:
        UsageError, StorageUnavailable, WrongVersion: one line each.
    """
    return SharedStorage(Backend(url, claimant, beside.backend.engine if beside is not None else None))
