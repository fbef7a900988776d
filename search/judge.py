"""What a strategy is shown of a study, and what it says: what to train next, and whether a trial goes on.

`search.chooser` asks it between two trials, `search.reporter` after each epoch. A worker makes one for its life.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.outbox import HELD_SECONDS
from search.samplers import OptunaStrategy
from search.strategy import GoOn, Left, Seen, SeenState, Start, Strategy, Verdict
from storage import pausing
from storage.attributes import ORIGIN
from storage.constraints import violations
from storage.optuna_internals import FIXED_PARAMS, trial_id_of
from storage.pausing import Standing
from storage.shared import SharedStorage
from storage.trial_cache import Observed

# Between epochs the study is read again when training has lasted so many times as long as that took: 5% of the time.
# And not before HELD_SECONDS, for which others hold their epochs too.
TRAINING_SHARE = 20.0

# Makes a study's strategy. It is handed a trial by its number as its pruner is to see it.
MakeStrategy = Callable[[optuna.Study, Callable[[int], FrozenTrial]], Strategy]

_STATES = {
    TrialState.RUNNING: SeenState.RUNNING,
    TrialState.COMPLETE: SeenState.COMPLETE,
    TrialState.PRUNED: SeenState.PRUNED,
    TrialState.FAIL: SeenState.FAILED,
}


class Judge:
    """Shows one study to its strategy. An object of a trial is made again only where something has happened to it."""

    def __init__(
        self,
        storage: SharedStorage,
        study: optuna.Study,
        make_strategy: MakeStrategy = OptunaStrategy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage, self._study_id, self._clock = storage, study._study_id, clock
        self._strategy = make_strategy(study, self._own)
        self._alone = isinstance(self._strategy, OptunaStrategy)  # it reads the study itself, and seldom
        self._sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        self._known: FrozenTrial | None = None  # the trial that is judged
        self._made: dict[int, tuple[Observed, Seen]] = {}
        self._seen: list[Seen] = []
        self._left = Left()
        self._looked = -math.inf
        self._took = 0.0
        self._changes = 0
        self._judged = -1  # the trial that was judged last
        self._unseen = 0  # epochs of it that are not in what was looked at

    def next(self, standing: Standing) -> Start | GoOn | None:
        """What to train, by all that is on record now."""
        self._left, self._judged = _left(standing), -1
        if not self._alone or standing.paused:
            self._look()
        return self._strategy.next(self._seen, self._left)

    def paused_by(self, number: int) -> int | None:
        """The generation that had let a trial go when `next` looked at it."""
        found = self._made.get(number)
        return found[0].paused if found is not None else None

    def verdict(
        self, known: FrozenTrial, *, last: bool, may_pause: bool = True, record: Callable[[], bool] = lambda: True
    ) -> tuple[Verdict, dict[str, Any]]:
        """Whether a trial goes on that has these values, and the system attributes that its pruner notes on it.

        `last`: after its last epoch, of which only pruners hear: by its values they judge others. `may_pause`: it could
        go on later. `record()` puts on record what of the trial is not yet, before the study is read again; False where
        it cannot.
        """
        if last and not self._alone:
            return Verdict.GO_ON, {}
        self._known = known
        mine = self._as_seen(Observed(known, None, 0.0))
        seen = [mine] if self._alone else self._with(mine, record)
        with self._storage.noting(trial_id_of(known)) as noted:
            left = replace(self._left, epochs=self._left.epochs - self._unseen)
            return self._strategy.verdict(known.number, seen, left, may_pause), noted

    def _own(self, number: int) -> FrozenTrial:
        known = self._known
        assert known is not None, "only a trial in training is judged"
        assert known.number == number
        return known

    def _with(self, mine: Seen, record: Callable[[], bool]) -> Sequence[Seen]:
        """All trials, this one with its last epoch."""
        # Always at a trial's first: what is left depends on which trial was taken, not on how long that took.
        again = self._looked + max(TRAINING_SHARE * self._took, HELD_SECONDS)
        if (mine.number != self._judged or self._clock() >= again) and record():
            self._judged = mine.number
            standing = pausing.standing(self._storage, self._study_id)
            if standing is not None:
                self._left = _left(standing)
            self._look()
        else:
            self._unseen += 1
        before = next((one for one in self._seen if one.number == mine.number), mine)
        others = [one for one in self._seen if one.number != mine.number]
        return sorted([*others, replace(mine, seconds=before.seconds)], key=lambda one: one.number)

    def _look(self) -> None:
        began = self._clock()
        found, view = self._storage.observe(self._study_id), self._storage.view
        if view is not None and view.changes != self._changes:
            self._made.clear()
            self._changes = view.changes
        self._seen = [self._remembered(one) for one in found if one.trial.state != TrialState.WAITING]
        self._unseen = 0
        self._looked = self._clock()
        self._took = self._looked - began

    def _remembered(self, now: Observed) -> Seen:
        found = self._made.get(now.trial.number)
        if found is not None and found[0].is_like(now):
            return found[1]
        made = self._as_seen(now)
        self._made[now.trial.number] = now, made
        return made

    def _as_seen(self, now: Observed) -> Seen:
        trial, view = now.trial, self._storage.view
        today = trial if view is None else view.one_today(trial)
        return Seen(
            number=trial.number,
            recipe=(today.params or trial.system_attrs.get(FIXED_PARAMS, {})) if today is not None else {},
            values=_flipped(trial.intermediate_values, self._sign),
            state=SeenState.PAUSED if now.paused is not None else _STATES[trial.state],
            seconds=now.seconds,
            distributions=today.distributions if today is not None else {},
            origin=str(trial.user_attrs.get(ORIGIN, "")),
            feasible=not violations(trial.constraints),
        )


def _flipped(values: Mapping[int, float], sign: int) -> Mapping[int, float]:
    return values if sign > 0 else {epoch: -value for epoch, value in values.items()}


def _left(standing: Standing) -> Left:
    seconds = min(standing.seconds, standing.until_deadline * max(1, standing.workers))
    return Left(standing.tickets, standing.epochs, seconds)
