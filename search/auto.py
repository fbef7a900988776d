"""The default strategy: recipes that won before, then half promotion by rank, half a model of the learning curves.

A trial trains from rung to rung (`search.grace` finds the first one, each other is twice as far, none is in the second
half of a training) and is paused where something else promises more; a paused trial costs nothing. Half of the
decisions promote by plain rank, because a model alone gets over-confident: the best paused trial of the top third at
the highest rung goes on, and else a neighbour of one of the best starts. The other half take what most improves on the
best value for its cost, by a Gaussian process over (recipe, epoch).
What is on record decides; only the model's fit is kept between decisions, since it takes longest.

Where only a number of trials is given, they may train `Rules.share` of what they would all take in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.curve_points import Curves
from search.grace import PROBES, grace
from search.improvement import MODEL, NEIGHBOUR, RANDOM, Improver
from search.strategy import GoOn, Left, Seen, SeenState, Start, Verdict

Choice = Start | GoOn | None


@dataclass(frozen=True)
class Rules:
    """What was found by measurement (benchmarks/quality.py).

    Args:
        by_rank: the share of decisions that ask no model.
        random: of the new recipes of the other half, the share that is random.
        first: so many trials start before a model is asked.
        keeps: one of so many trials goes on at each rung, by rank.
        leaders: so many of the best are trained to the end, whatever else happens.
        share: of the epochs that all trials would take in full, those to train where no other limit is given.
    """

    by_rank: float = 0.5
    random: float = 0.25
    first: int = 12
    keeps: int = 3
    leaders: int = 3
    share: float = 1 / 3


class Auto:
    """Implements `search.strategy.Strategy`, for one worker."""

    def __init__(self, *, epochs: int, seed: int, worker: int = 0, rules: Rules | None = None) -> None:
        """`epochs`: of a full training, 0 where only the objective knows."""
        self._epochs, self._seed, self._worker = epochs, seed, worker
        self._rules = rules or Rules()
        self._curves = Curves()
        self._improver = Improver()
        self._decided: tuple[tuple[int, int], Choice] | None = None

    def next(self, seen: Sequence[Seen], left: Left) -> Choice:
        """What a worker without anything to do trains."""
        self._curves.learn(seen)
        decided, self._decided = self._decided, None
        if decided is not None and decided[0] == self._state(seen):  # what this worker's trial was paused for
            choice = decided[1]
            if isinstance(choice, Start) and left.trials > 0:
                return choice
            if isinstance(choice, GoOn) and self._by_number(seen, choice.number).state is SeenState.PAUSED:
                return choice
        return self._choose(seen, left, None)

    def verdict(self, number: int, seen: Sequence[Seen], left: Left, may_pause: bool = True) -> Verdict:
        """PAUSE at a rung, where something else is to go on. STOP what violates a constraint.

        What could not go on later is stopped at a rung where it is not among the best third.
        """
        self._curves.learn(seen)
        self._decided = None
        if not self._by_number(seen, number).feasible:
            return Verdict.STOP
        reached, (first, until) = self._curves.reached(number), self._grace(seen)
        if not self._length or reached not in self._rungs(first):
            return Verdict.GO_ON
        if reached < until and number in self._probes(seen):
            return Verdict.GO_ON
        if not may_pause:
            there = self._curves.ranked(reached)
            return Verdict.GO_ON if number in there[: -(-len(there) // self._rules.keeps)] else Verdict.STOP
        choice = self._choose(seen, left, number)
        if choice == GoOn(number) or choice is None:
            return Verdict.GO_ON if choice else Verdict.PAUSE
        self._decided = self._state(seen), choice
        return Verdict.PAUSE

    @property
    def _length(self) -> int:
        """Of a full training; 0 while nobody knows."""
        return self._epochs or self._curves.longest_complete

    def _state(self, seen: Sequence[Seen]) -> tuple[int, int]:
        return len(seen), self._curves.total

    def _probes(self, seen: Sequence[Seen]) -> list[int]:
        return [one.number for one in seen if one.state is not SeenState.FAILED][:PROBES]

    def _grace(self, seen: Sequence[Seen]) -> tuple[int, int]:
        runs = [run for number in self._probes(seen) if len(run := self._curves.run(number))]
        return grace(runs, self._length)

    def _rungs(self, first: int) -> list[int]:
        """But the first none in the second half: the rest costs little there, and schedules make their best of it."""
        rungs = [first]
        while rungs[-1] * 4 <= self._length:
            rungs.append(rungs[-1] * 2)
        return [rung for rung in rungs if rung < self._length]

    def _choose(self, seen: Sequence[Seen], left: Left, number: int | None) -> Choice:
        """`number`: a trial that trains and is decided on, as if it were paused."""
        paused = [one for one in seen if one.state is SeenState.PAUSED or one.number == number]
        if not self._length:
            return GoOn(paused[0].number) if paused else _random(left)
        ending = self._ending(seen, paused, left)
        if ending is not None:
            return GoOn(ending[0]) if ending else None
        racing = self._racing(seen, {one.number for one in paused})
        if racing is not None:
            return racing
        rng = np.random.default_rng([self._seed, self._worker, *self._state(seen)])
        may_start = left.trials > 0 and not (paused and self._ahead(seen, left))
        first = len(seen) < self._rules.first
        if first or rng.random() < self._rules.by_rank:
            promoted = self._promoted(seen, {one.number for one in paused})
            if promoted is not None:
                return promoted
            if may_start:
                return Start(None, RANDOM) if first else self._improver.neighbour(seen, self._curves, rng)
        timed = math.isinf(left.epochs)  # else epochs are what runs out
        chosen = self._improver.choose(seen, paused, self._curves, self._length, may_start, rng, timed)
        if isinstance(chosen, Start) and rng.random() < self._rules.random:
            return Start(None, RANDOM)
        return chosen

    def _racing(self, seen: Sequence[Seen], paused: set[int]) -> GoOn | None:
        """Until one of the given recipes is trained out, the better half of those at a rung goes on before all else.

        Given is what is neither random nor near another nor the model's: what a study begins with, or was enqueued.
        """
        given = [one.number for one in seen if one.origin not in ("", RANDOM, NEIGHBOUR, MODEL)]
        if any(self._curves.reached(number) >= self._length for number in given):
            return None
        return self._promoted(seen, paused, given)

    def _promoted(self, seen: Sequence[Seen], paused: set[int], among: Sequence[int] | None = None) -> GoOn | None:
        """Of the highest rung where one of the best third is paused, the best one.

        Asynchronous successive halving (Li et al. 2020), with the values that are there now. `among` the given recipes
        it is the better half.
        """
        for rung in reversed(self._rungs(self._grace(seen)[0])):
            there = self._curves.ranked(rung)
            best = there[: len(there) // self._rules.keeps]
            if among is not None:
                there = [number for number in there if number in among]
                best = there[: (len(there) + 1) // 2]
            for number in best:
                if number in paused and self._curves.reached(number) < 2 * rung:
                    return GoOn(number)
        return None

    def _allowed(self, seen: Sequence[Seen], left: Left) -> tuple[float, bool]:
        """Epochs that all trials together may train, and whether it is only this strategy that says so."""
        total, seconds = self._curves.total, sum(one.seconds for one in seen)
        hard = total + left.epochs
        if seconds and total and math.isfinite(left.seconds):
            hard = min(hard, total + left.seconds * total / seconds)
        soft = self._rules.share * self._length * (len(seen) + left.trials)
        return (soft, True) if soft < hard else (hard, False)

    def _ahead(self, seen: Sequence[Seen], left: Left) -> bool:
        """Whether more of the trials than of the epochs is used up, so that a new one can wait until more is known."""
        allowed, first = self._allowed(seen, left)[0], self._rules.first
        if not math.isfinite(left.trials) or len(seen) < first:
            return False
        used = (len(seen) - first + 1) / max(len(seen) + left.trials - first, 1)
        return used > self._curves.total / allowed

    def _ending(self, seen: Sequence[Seen], paused: Sequence[Seen], left: Left) -> list[int] | None:
        """Which of the best trials wait, once just enough is left to train them to their end; None before that."""
        allowed, soft = self._allowed(seen, left)
        alive = {one.number for one in seen if one.state in (SeenState.RUNNING, SeenState.PAUSED)}
        lost = {one.number for one in seen if one.state in (SeenState.FAILED, SeenState.PRUNED)}
        leaders = [number for number in self._curves.ranked() if number not in lost][: self._rules.leaders]
        unfinished = [number for number in leaders if number in alive]
        needed = sum(self._length - self._curves.reached(number) for number in unfinished)
        if self._curves.total + needed < allowed or (soft and left.trials > 0):
            return None
        waiting = {one.number for one in paused}
        return [number for number in unfinished if number in waiting]

    @staticmethod
    def _by_number(seen: Sequence[Seen], number: int) -> Seen:
        if number < len(seen) and seen[number].number == number:
            return seen[number]
        return next(one for one in seen if one.number == number)


def _random(left: Left) -> Start | None:
    return Start(None, RANDOM) if left.trials > 0 else None
