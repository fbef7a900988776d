"""The training loop's way to the database and the disk: epochs, verdicts, interruptions.

`search.training` knows only the protocol; `search.trainer` makes one of these for each trial it trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from optuna.trial import FrozenTrial, Trial

from search.checkpointer import Checkpointer, State
from search.interrupt import Interrupt
from search.outbox import Outbox
from search.reporting import EpochResult, Verdict
from search.telling import Listener
from storage.claims import Epoch, Lease
from storage.optuna_internals import frozen_of
from storage.patience import unless_away
from storage.shared import SharedStorage
from storage.tables import StudyState


class TrialReporter:
    """Implements `search.reporting.Reporter` for one trial held under one lease."""

    def __init__(
        self,
        storage: SharedStorage,
        trial: Trial,
        lease: Lease,
        *,
        epochs: int,
        device: str,
        checkpointer: Checkpointer,
        interrupt: Interrupt,
        listener: Listener | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`beat` is called before each batch and after each epoch: training makes steps."""
        self._storage = storage
        self._trial = trial
        self._lease = lease
        self._epochs = epochs
        self._device = device
        self.checkpointer = checkpointer
        self._interrupt = interrupt
        self._beat = beat
        self._listener = listener or Listener()
        self._outbox = Outbox(storage, lease, interrupt)
        self._recorded_at = time.monotonic()
        self._epoch = 0  # the last one reported, or that training goes on after
        self._losing = False
        self._known: FrozenTrial | None = None  # the trial as its pruner sees it

    def restore(self) -> dict[str, Any] | None:
        """The newest recorded checkpoint that can be read."""
        self._epoch, state = self.checkpointer.restore() or (0, None)
        self._listener.restored(self._epoch)
        return state

    def report(self, result: EpochResult, state: State | None) -> Verdict:
        """Record the epoch and say whether to go on. A checkpoint that is due is written while training does.

        Raises:
            LeaseLost: the trial is another's.
            Interrupted: the study's budget of epochs is on record without this one.
            DatabaseAway: the database went away, and has not come back within the limit.
        """
        ending = self._interrupt.requested
        self._epoch = result.epoch
        self.checkpointer.check()
        if ending and state is not None:
            checkpoint = self.checkpointer.save(result.epoch, 0, state)
        else:
            checkpoint = self.checkpointer.take_unrecorded()
        noted = {} if ending else self._judge(result)
        cost = result.seconds, result.samples, self._device
        study = self._outbox.record(Epoch(result.epoch, result.value, result.metrics, *cost, noted=noted), checkpoint)
        if study is not None and checkpoint is not None:
            self.checkpointer.superseded()
        self._recorded_at = time.monotonic()
        self._beat()
        self._listener.recorded(result)
        if ending:
            return Verdict.HAND_BACK
        stopped = study is StudyState.STOPPED
        if stopped:
            self._interrupt.request("the study was stopped")
        if study is not None and self._losing:
            self._losing = False
            return Verdict.PRUNE
        if result.epoch >= self._epochs:
            return Verdict.GO_ON
        if stopped:  # an epoch more would be one beyond the limit that this one has reached
            if state is not None:
                self.checkpointer.save_and_record(result.epoch, 0, state)
            return Verdict.HAND_BACK
        if state is not None:
            self._keep_if_due(0, state, ahead=result.seconds)
        return Verdict.GO_ON

    def finish(self) -> None:
        """Wait until everything is on record. To be called before the trial is settled or given back.

        Raises:
            LeaseLost, Interrupted, DatabaseAway: as `report`.
        """
        self.checkpointer.wait()
        self._outbox.flush()

    def _judge(self, result: EpochResult) -> dict[str, Any]:
        """What `Trial.should_prune` asks, before the epoch is recorded: what the pruner notes goes with it.

        An owner before this one may have got further than its last checkpoint: that is not looked at. Not losing,
        where the database is away or goes away before it has answered: training does not wait.
        """
        if result.value is None:
            return {}
        known = self._known = self._known or frozen_of(self._trial)
        before = {step: one for step, one in known.intermediate_values.items() if step < result.epoch}
        known.intermediate_values = before | {result.epoch: result.value}
        if self._outbox.behind or self._losing:
            return {}
        study = self._trial.study

        def prune() -> tuple[bool, dict[str, Any]]:
            with self._storage.noting(self._lease.trial_id) as noted:
                losing = study.pruner.prune(study, known)
            known.system_attrs = known.system_attrs | noted
            return losing, noted

        self._losing, noted = unless_away(prune) or (False, {})
        return noted

    @property
    def unrecorded_seconds(self) -> float:
        """Device time since the last epoch was recorded, or since the trial came here."""
        return time.monotonic() - self._recorded_at

    def interrupted(self) -> bool:
        """Whether to stop between two batches."""
        self._beat()
        return self._interrupt.overdue

    def between_batches(self, batch: int, state: State) -> None:
        """So many batches after the last epoch: a checkpoint where one is due, or where training must stop."""
        if not self._interrupt.overdue:
            self._keep_if_due(batch, state)
        elif not self._interrupt.lost:
            self.checkpointer.save_and_record(self._epoch, batch, state)

    def _keep_if_due(self, batch: int, state: State, ahead: float = 0.0) -> None:
        if not self._outbox.behind:  # else it would not be on record, and so of no use
            self.checkpointer.keep_if_due(self._epoch, batch, state, ahead)
