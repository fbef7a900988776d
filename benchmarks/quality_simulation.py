"""A search in simulated time: asynchronous workers that train recorded curves, one epoch after the other.

Whatever decides is the very object that real workers drive (`search.strategy.Strategy`), and an Optuna study in memory
is the study of record. Called by `benchmarks/quality.py`.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import Trial, TrialState

from benchmarks.quality_tasks import Curve, Task
from search.strategy import GoOn, Left, Seen, SeenState, Start, Strategy, Verdict

# How a strategy is made for one search: the study of record, the task, the recipes it starts with by origin, the seed.
Make = Callable[[optuna.Study, Task, Sequence[tuple[str, Mapping[str, Any]]], int], Strategy]


@dataclass
class Outcome:
    """One search: the best value so far after each epoch of all trials, and what deciding took."""

    task: str
    strategy: str
    seed: int
    best: list[float] = field(default_factory=list)
    decisions: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """When a search ends: after so many epochs of all its trials, which its strategy is told if they are `known`.

    `trials`: so many may start.
    """

    epochs: int
    workers: int = 4
    trials: float = math.inf
    known: bool = False


class Simulation:
    """Drives one strategy on one task until so many epochs are on record."""

    def __init__(self, task: Task, study: optuna.Study, strategy: Strategy, limits: Limits) -> None:
        self._task, self._study, self._strategy, self._limits = task, study, strategy, limits
        self._budget, self._workers = limits.epochs, limits.workers
        self._runs = task.runs()
        self._seen: list[Seen] = []
        self._curves: list[Curve] = []
        self._trials: list[Trial] = []
        self._now = 0.0
        self._lowest = math.inf
        self.outcome = Outcome(task.name, "", 0)

    def run(self) -> Outcome:
        """Until the budget is spent or no worker finds anything to do."""
        busy: list[tuple[float, int, int]] = []
        idle = list(range(self._workers))
        while len(self.outcome.best) < self._budget:
            idle = [worker for worker in idle if not self._begin(worker, busy)]
            if not busy:
                break
            self._now, worker, number = heapq.heappop(busy)
            if self._epoch(number):
                self._train(worker, number, busy)
            else:
                idle.append(worker)
        self.outcome.lengths = [len(one.values) for one in self._seen]
        self.outcome.origins = [one.origin for one in self._seen]
        return self.outcome

    def _left(self) -> Left:
        epochs = self._budget - len(self.outcome.best) if self._limits.known else math.inf
        return Left(self._limits.trials - len(self._seen), epochs)

    def _begin(self, worker: int, busy: list[tuple[float, int, int]]) -> bool:
        """What that worker does next; False: nothing."""
        begun = time.perf_counter()
        chosen = self._strategy.next(self._seen, self._left())
        number = self._start(chosen) if isinstance(chosen, Start) else None
        self.outcome.decisions.append(time.perf_counter() - begun)
        if chosen is None:
            return False
        if isinstance(chosen, GoOn):
            number = chosen.number
            assert self._seen[number].state is SeenState.PAUSED, f"trial {number} is not paused"
            self._seen[number] = replace(self._seen[number], state=SeenState.RUNNING)
        assert number is not None
        self._train(worker, number, busy)
        return True

    def _start(self, start: Start) -> int:
        if start.recipe is not None:
            self._study.enqueue_trial(dict(start.recipe))
        trial = self._study.ask()
        for name, d in self._task.space.items():
            if isinstance(d, IntDistribution):
                trial.suggest_int(name, d.low, d.high, log=d.log)
            else:
                trial.suggest_float(name, d.low, d.high, log=d.log)
        curve = self._runs.curve(trial.params)
        self._record_recipe(trial, curve)
        self._trials.append(trial)
        self._curves.append(curve)
        space = self._task.space
        self._seen.append(Seen(trial.number, curve.recipe, {}, SeenState.RUNNING, 0.0, space, start.origin))
        return trial.number

    def _record_recipe(self, trial: Trial, curve: Curve) -> None:
        """The recorded run that stands for the trial's recipe is what a sampler learns from."""
        for name, d in self._task.space.items():
            value = d.to_internal_repr(curve.recipe[name])
            self._study._storage.set_trial_param(trial._trial_id, name, value, d)

    def _train(self, worker: int, number: int, busy: list[tuple[float, int, int]]) -> None:
        """An epoch ends one unit of time later: the budget is one of epochs."""
        heapq.heappush(busy, (self._now + 1.0, worker, number))

    def _epoch(self, number: int) -> bool:
        """One epoch is over: whether its trial goes on at once."""
        one, curve, trial = self._seen[number], self._curves[number], self._trials[number]
        epoch = len(one.values) + 1
        value = float(curve.values[epoch - 1])
        if math.isnan(value):
            self.outcome.best.append(self._lowest)
            self._settle(number, SeenState.PRUNED)
            return False
        values = {**one.values, epoch: value}
        seconds = one.seconds + float(curve.seconds[epoch - 1])
        self._seen[number] = one = replace(one, values=values, seconds=seconds)
        trial.report(value, epoch)
        self._lowest = min(self._lowest, value)
        self.outcome.best.append(self._lowest)
        if epoch == self._task.epochs:
            self._settle(number, SeenState.COMPLETE)
            return False
        begun = time.perf_counter()
        verdict = self._strategy.verdict(number, self._seen, self._left())
        self.outcome.decisions.append(time.perf_counter() - begun)
        if verdict is Verdict.STOP:
            self._settle(number, SeenState.PRUNED)
        elif verdict is Verdict.PAUSE:
            self._seen[number] = replace(one, state=SeenState.PAUSED)
        return verdict is Verdict.GO_ON

    def _settle(self, number: int, state: SeenState) -> None:
        """As Dialin does: a trial's value is its best epoch's; one that diverged at once has none."""
        one = self._seen[number]
        self._seen[number] = replace(one, state=state)
        if state is SeenState.COMPLETE:
            self._study.tell(self._trials[number], min(one.values.values()))
        else:
            self._study.tell(self._trials[number], state=TrialState.PRUNED)


def search(
    task: Task,
    name: str,
    make: Make,
    starts: Sequence[tuple[str, Mapping[str, Any]]],
    seed: int,
    limits: Limits,
) -> Outcome:
    """One search on a task, of a strategy that is first made for it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=f"{task.name}-{seed}")
    strategy = make(study, task, starts, seed)
    outcome = Simulation(task, study, strategy, limits).run()
    return replace(outcome, strategy=name, seed=seed)
