"""Which study a worker of the queue takes: weighted fair shares, as cluster schedulers deal them out.

Arithmetic alone; `storage.queue` brings the numbers and holds the lock. Two rules that are in every textbook:

- *Weighted max-min fairness* (Bertsekas and Gallager, Data Networks, 1992; YARN's fair scheduler) says how many workers
  a study should have at this moment: in proportion to its priority, none more than it can use; what it cannot use is
  dealt out among the others. The answer is a fraction.
- *Stride scheduling* (Waldspurger, 1995; Linux's CFS) deals out the workers that fractions leave: a worker that becomes
  free goes to the study with the least virtual time, which is worker time divided by priority.

So a study always has its share of the workers rounded down or up, and over time exactly its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction


@dataclass(frozen=True)
class Contender:
    """An open study. `workers` it has now, `room` for how many it has use, `virtual_time` in seconds.

    `paused` trials are in `room` that only its strategy goes on with, which may have other plans.
    """

    study_id: int
    priority: int
    workers: int
    room: int
    virtual_time: float
    paused: int


def shares(contenders: Sequence[Contender], workers: int) -> Mapping[int, Fraction]:
    """How many of so many workers each study should have, as weighted max-min fairness has it."""
    dealt: dict[int, Fraction] = {}
    left, open_ = Fraction(workers), [*contenders]
    while open_:
        weight = sum(one.priority for one in open_)
        full = [one for one in open_ if left * one.priority >= one.room * weight]
        if not full:
            return dealt | {one.study_id: left * one.priority / weight for one in open_}
        for one in full:
            dealt[one.study_id] = Fraction(one.room)
            left -= one.room
        open_ = [one for one in open_ if one not in full]
    return dealt


def choose(contenders: Sequence[Contender]) -> Contender | None:
    """What a worker takes that is at none of the studies; None where none has use for it.

    First a study that has less than its share rounded down, then one that has less than its share rounded up; of those
    the one with the least virtual time.
    """
    fair = shares(contenders, 1 + sum(one.workers for one in contenders))
    below = [one for one in contenders if one.workers < math.floor(fair[one.study_id])]
    near = [one for one in contenders if one.workers < math.ceil(fair[one.study_id])]
    return min(below or near, key=_turn, default=None)


def _turn(one: Contender) -> tuple[float, Fraction, int, int]:
    """Studies that begin level are served in the order of their priority."""
    return one.virtual_time, Fraction(one.workers, one.priority), -one.priority, one.study_id


def surely(contenders: Sequence[Contender], study_id: int) -> list[Contender]:
    """As a worker of this study sees them in mid-trial: of the others only what is certainly to be done counts."""
    sure = {one.study_id: one.room - one.paused for one in contenders if one.study_id != study_id}
    return [replace(one, room=sure.get(one.study_id, one.room)) for one in contenders]


def is_wanted_elsewhere(contenders: Sequence[Contender], study_id: int) -> bool:
    """Whether another study has `surely` less than its share rounded down, and this one more than its share.

    Then it is worth handing a trial back in the middle; fractions wait for the trial's end. Whoever has more than its
    share, though not more than that rounded up, has its share rounded down without this worker.
    """
    contenders = surely(contenders, study_id)
    fair = shares(contenders, sum(one.workers for one in contenders))
    mine = next((one for one in contenders if one.study_id == study_id), None)
    if mine is None or mine.workers <= fair[study_id]:
        return False
    return any(one.workers < math.floor(fair[one.study_id]) for one in contenders)


def next_study(contenders: Sequence[Contender], study_id: int, may_move: bool) -> Contender | None:
    """What a worker of this study takes after a trial; None where none has use for it.

    `may_move`: whether it has been here long enough to leave for a fraction of a worker. Where whole workers are
    missing elsewhere, or there is nothing to do here, it leaves at any time.
    """
    without = [replace(one, workers=max(0, one.workers - 1)) if one.study_id == study_id else one for one in contenders]
    chosen = choose(without)
    mine = next((one for one in without if one.study_id == study_id), None)
    if chosen is None or mine is None or chosen.study_id == study_id or may_move:
        return chosen
    fair = shares(without, 1 + sum(one.workers for one in without))
    due_elsewhere = chosen.workers < math.floor(fair[chosen.study_id])
    may_stay = mine.workers < math.ceil(fair[study_id])
    return mine if may_stay and not due_elsewhere else chosen
