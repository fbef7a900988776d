"""The training loop's way to the database and the disk: epochs, verdicts, interruptions.

`search.training` knows only the protocol; `search.trainer` makes one of these for each trial it trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from optuna.trial import FrozenTrial, Trial

from search import strategy
from search.checkpointer import Checkpointer, State
from search.interrupt import Interrupt
from search.judge import Judge
from search.outbox import Outbox
from search.reporting import EpochResult, Verdict
from search.telling import Listener
from storage.attributes import PEAK_MEMORY, bytes_of
from storage.claims import Epoch, Lease
from storage.optuna_internals import frozen_of
from storage.patience import unless_away
from storage.shared import SharedStorage
from storage.tables import StudyState

# How much more memory than on record is put on record after an epoch: a trial's first epoch mostly needs all it will.
GROWN = 1.05


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
        judge: Judge | None = None,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`beat` is called before each batch and after each epoch: training makes steps.

        `judge`: says whether the trial goes on; by default the study's pruner does. `clock`: the outbox's.
        `memory`: the most bytes in use so far.
        """
        self._storage = storage
        self._trial = trial
        self._lease = lease
        self._epochs = epochs
        self._device = device
        self.checkpointer = checkpointer
        self._interrupt = interrupt
        self._beat = beat
        self._listener = listener or Listener()
        self._outbox = Outbox(storage, lease, interrupt, clock)
        self._recorded_at = time.monotonic()
        self._epoch = 0  # the last one reported, or that training goes on after
        self._judge = judge or Judge(storage, trial.study)
        self._losing = False
        self._known: FrozenTrial | None = None  # the trial as its pruner sees it
        self._before = 0  # as far as an owner before this one got
        self._memory = memory
        self._peak = bytes_of(trial.user_attrs.get(PEAK_MEMORY)) or 0  # on record, perhaps of an owner before

    def restore(self) -> dict[str, Any] | None:
        """The newest recorded checkpoint that can be read."""
        self._epoch, state = self.checkpointer.restore() or (0, None)
        self._listener.restored(self._epoch)
        return state

    def report(self, result: EpochResult, state: State | None) -> Verdict:
        """Record the epoch, soon, and say whether to go on. A checkpoint that is due is written while training does.

        Raises:
            LeaseLost: the trial is another's.
            Interrupted: the study's budget of epochs is on record without this one.
            DatabaseAway: the database went away, and has not come back within the limit.
        """
        ended, ending = time.monotonic(), self._interrupt.requested
        self._epoch = result.epoch
        self.checkpointer.check()
        verdict, noted = (strategy.Verdict.GO_ON, {}) if ending else self._asked(result)
        checkpoint = None
        # In a checkpoint or not at all: what cannot be gone on with is trained on.
        pausing = verdict is strategy.Verdict.PAUSE and result.resumable and result.epoch < self._epochs
        if (ending or pausing) and state is not None:
            checkpoint = self.checkpointer.save(result.epoch, 0, state)
        pausing = pausing and checkpoint is not None
        if checkpoint is None and not (ending and state is not None):
            checkpoint = self.checkpointer.take_unrecorded()
        cost = result.seconds, result.samples, self._device
        told = self.peak_memory(GROWN)
        epoch = Epoch(result.epoch, result.value, result.metrics, *cost, noted=noted, ended=ended, told=told)
        at_once = result.at_once or ending or self._losing or 0 < self._epochs <= result.epoch
        study = self._outbox.record(epoch, checkpoint, at_once=at_once)
        if study is not None and checkpoint is not None:
            self.checkpointer.superseded()
        self._recorded_at = time.monotonic()
        self._beat()
        self._listener.recorded(result)
        if ending:
            return Verdict.HAND_BACK
        stopped = study not in (None, StudyState.RUNNING)
        if stopped:
            self._interrupt.request(f"the study was {study}")
        if study is not None and self._losing:
            self._losing = False
            return Verdict.PRUNE
        if result.epoch >= self._epochs:
            return Verdict.GO_ON
        if stopped:  # an epoch more would be one beyond the limit that this one has reached
            if state is not None and not pausing and self._outbox.write_held():
                self.checkpointer.save_and_record(result.epoch, 0, state)
            return Verdict.HAND_BACK
        if pausing and study is not None:
            return Verdict.PAUSE
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

    def _asked(self, result: EpochResult) -> tuple[strategy.Verdict, dict[str, Any]]:
        """What the strategy says, before the epoch is recorded: what a pruner notes goes with it.

        An owner before this one may have got further than its last checkpoint: that is not looked at, but until it is
        there again it is not paused, which would leave on record what is in no checkpoint. It goes on too where the
        database is away or goes away before there is an answer: training does not wait.
        """
        go_on: tuple[strategy.Verdict, dict[str, Any]] = strategy.Verdict.GO_ON, {}
        if result.value is None:
            return go_on
        if self._known is None:
            self._known = frozen_of(self._trial)
            self._before = max(self._known.intermediate_values, default=0)
        known = self._known
        before = {step: one for step, one in known.intermediate_values.items() if step < result.epoch}
        known.intermediate_values = before | {result.epoch: result.value}
        if self._outbox.behind or self._losing:
            return go_on

        def ask() -> tuple[strategy.Verdict, dict[str, Any]]:
            last = 0 < self._epochs <= result.epoch
            record = self._outbox.write_held
            said, noted = self._judge.verdict(known, last=last, may_pause=result.resumable, record=record)
            known.system_attrs = known.system_attrs | noted
            return said, noted

        said, noted = unless_away(ask) or go_on
        if said is strategy.Verdict.PAUSE and result.epoch < self._before:
            said = strategy.Verdict.GO_ON
        self._losing = said is strategy.Verdict.STOP
        return said, noted

    def peak_memory(self, grown: float = 1.0) -> dict[str, int]:
        """The most memory in use so far as a trial's attribute; empty while it is not that much more than on record."""
        now = self._memory()
        if now is None or now <= grown * self._peak:
            return {}
        self._peak = now
        return {PEAK_MEMORY: now}

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
        elif not self._interrupt.lost and self._outbox.write_held():
            self.checkpointer.save_and_record(self._epoch, batch, state)

    def _keep_if_due(self, batch: int, state: State, ahead: float = 0.0) -> None:
        # What it goes on after must be on record before it, else it would be of no use.
        if not self._outbox.behind and self.checkpointer.is_due(ahead) and self._outbox.write_held():
            self.checkpointer.keep(self._epoch, batch, state)
