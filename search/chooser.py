"""What a worker trains next: a trial that another left, one that a person enqueued, or what the strategy says.

Called by `search.worker` between two trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna
from optuna.trial import Trial

from search.interrupt import Interrupt
from search.judge import Judge
from search.keeper import LeaseKeeper
from search.strategy import GoOn
from storage import new_trials, pausing
from storage.claims import BudgetSpent, GivenUp, StudyFull, StudyStopped
from storage.pausing import Standing
from storage.shared import SharedStorage

# While other workers train the last trials, how often to look whether one of them left something to do.
WAIT_SECONDS = 1.0
# Another worker was faster.
AGAIN_SECONDS = 0.02


class Chooser:
    """For one worker on one study."""

    def __init__(
        self,
        storage: SharedStorage,
        study: optuna.Study,
        judge: Judge,
        interrupt: Interrupt,
        give_up: Callable[[GivenUp], None],
        close_if_done: Callable[[], bool] = lambda: False,
        stays: Callable[[], bool] | None = None,
    ) -> None:
        """`give_up` is told of a trial that was settled since it kills its workers.

        `close_if_done` ends a study in which no trial is to start any more. Whether it has found one that is enqueued.
        `stays` is asked before every trial but the first whether the worker stays with the study; then it does not wait
        for one either. None: it is the study's own, and waits as long as there may be something to do.
        """
        self._storage, self._study, self._study_id = storage, study, study._study_id
        self._judge, self._interrupt = judge, interrupt
        self._give_up, self._close_if_done = give_up, close_if_done
        self._stays, self._began = stays, False

    def next(self, keeper: LeaseKeeper) -> Trial | None:
        """A trial that is this worker's now; None when the study is over, stopped or deleted, or the worker ends.

        None too for a worker that is not the study's own when it is wanted elsewhere, or has nothing to do now.
        """
        if self._began and self._stays is not None and not self._stays():
            return None
        self._began = True
        while not self._interrupt.requested:
            try:
                found = None if keeper.returning else self._storage.adopt(self._study_id)
            except StudyFull:
                found = None
            if isinstance(found, GivenUp):
                self._give_up(found)
                continue
            if found is not None:
                return Trial(self._study, found.trial_id)
            standing = pausing.standing(self._storage, self._study_id)
            if standing is None or (not standing.running and not self._waits(standing)):
                return None
            trial, pause = (None, WAIT_SECONDS) if standing.on_hold else self._try(standing)
            if trial is not None or pause is None:
                return trial
            time.sleep(pause)
        return None

    def _waits(self, standing: Standing) -> bool:
        """Whether to wait for a study that takes no trials now."""
        self._storage.study_state(self._study_id)  # which stops it where its deadline is past
        return standing.on_hold and self._stays is None

    def _try(self, standing: Standing) -> tuple[Trial | None, float | None]:
        """A trial, or so many seconds after which to look again; neither where there is nothing to wait for."""
        try:
            trial, nothing = (None, True) if standing.full else self._begin(standing)
        except StudyStopped:
            return None, AGAIN_SECONDS
        except StudyFull:
            trial, nothing = None, True
        if trial is not None or not nothing:
            return trial, AGAIN_SECONDS
        if standing.leased or standing.full:
            return None, WAIT_SECONDS if self._stays is None else None
        return None, None if self._finish(standing) else AGAIN_SECONDS

    def _begin(self, standing: Standing) -> tuple[Trial | None, bool]:
        """A trial, and where there is none whether nothing is to be done: otherwise another worker was faster.

        Raises StudyStopped.
        """
        try:
            if standing.may_start and self._close_if_done() and not standing.waiting:
                return None, False
            if standing.waiting and standing.may_start:
                return self._study.ask(), False
            chosen = self._judge.next(standing)
            if isinstance(chosen, GoOn):
                return self._go_on(chosen.number), False
            if chosen is None or not standing.may_start:
                return None, True
            with new_trials.beginning(self._storage.backend, chosen.recipe, chosen.origin):
                return self._study.ask(), False
        except BudgetSpent:
            return None, False
        except KeyError:  # Optuna's way to say that the study was deleted
            if self._storage.study_state(self._study_id) is not None:
                raise
            return None, False

    def _go_on(self, number: int) -> Trial | None:
        by = self._judge.paused_by(number)
        lease = pausing.go_on(self._storage, self._study_id, number, by) if by is not None else None
        return Trial(self._study, lease.trial_id) if lease is not None else None

    def _finish(self, standing: Standing) -> bool:
        """Nobody trains, and the strategy sees nothing worth training: whether that is the end."""
        why = "the strategy saw nothing worth training any more"
        return pausing.finish(self._storage, self._study_id, why, standing)
