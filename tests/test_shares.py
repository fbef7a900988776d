"""Which study a worker takes: shares at one moment by weighted max-min fairness, over time by stride scheduling."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest

from storage.shares import Contender, choose, is_wanted_elsewhere, next_study, shares

PLENTY = 10**6


def contender(
    study_id: int, priority: int = 1, workers: int = 0, room: int = PLENTY, time: float = 0.0, paused: int = 0
) -> Contender:
    return Contender(study_id, priority, workers, room, time, paused)


def test_shares_are_in_proportion_to_priority() -> None:
    three = [contender(1, 3), contender(2, 2), contender(3, 1)]
    assert shares(three, 4) == {1: 2, 2: Fraction(4, 3), 3: Fraction(2, 3)}
    assert shares(three, 12) == {1: 6, 2: 4, 3: 2}


def test_what_a_study_cannot_use_the_others_get_by_their_priority() -> None:
    three = [contender(1, 3, room=1), contender(2, 2), contender(3, 1)]
    assert shares(three, 7) == {1: 1, 2: 4, 3: 2}
    assert shares([contender(1, room=2), contender(2, room=3)], 100) == {1: 2, 2: 3}


def test_nobody_gets_more_than_a_share_while_another_has_less_than_it_could_use() -> None:
    """Max-min: to raise one study's share for its priority, that of a study that has no more would have to fall."""
    draw = random.Random(0)
    for _ in range(300):
        several = [contender(n, draw.randint(1, 9), room=draw.randint(0, 9)) for n in range(draw.randint(1, 6))]
        workers = draw.randint(0, 30)
        dealt = shares(several, workers)
        assert sum(dealt.values()) == min(workers, sum(one.room for one in several))
        assert all(0 <= dealt[one.study_id] <= one.room for one in several)
        levels = [dealt[one.study_id] / one.priority for one in several]
        not_full = [dealt[one.study_id] / one.priority for one in several if dealt[one.study_id] < one.room]
        assert all(level <= low for low in not_full for level in levels)


def test_a_free_worker_goes_where_a_whole_worker_is_missing_before_it_evens_out_time() -> None:
    assert choose([contender(1, workers=2), contender(2, time=100.0)]) == contender(2, time=100.0)
    behind = contender(2, workers=1, time=5.0)
    assert choose([contender(1, workers=1, time=9.0), behind]) == behind


def test_studies_that_begin_level_are_served_in_the_order_of_their_priority() -> None:
    open_, served = [contender(1, 1), contender(2, 3), contender(3, 2)], []
    for _ in range(2):
        served.append((choose(open_) or open_[0]).study_id)
        open_ = [replace(one, workers=served.count(one.study_id)) for one in open_]
    assert served == [2, 3]


def test_a_worker_that_nobody_has_use_for_gets_nothing() -> None:
    assert choose([]) is None
    assert choose([contender(1, workers=2, room=2)]) is None


def test_a_study_of_higher_priority_takes_workers_from_trials_in_training_only_as_whole_ones() -> None:
    even = [contender(1, workers=2), contender(2, workers=2)]
    assert not is_wanted_elsewhere(even, 1)
    raised = [contender(1, workers=2), contender(2, priority=3, workers=2)]
    assert is_wanted_elsewhere(raised, 1)
    assert not is_wanted_elsewhere(raised, 2)
    submitted = [contender(1, workers=3), contender(2, workers=0), contender(3, workers=0)]
    assert is_wanted_elsewhere(submitted, 1)
    fraction = [contender(1, workers=1), contender(2, workers=0)]
    assert not is_wanted_elsewhere(fraction, 1), "of one worker both have a half: it stays to the trial's end"


def test_a_study_that_has_no_whole_worker_of_its_share_gets_one_of_those_that_have_a_fraction_more() -> None:
    third = [contender(1, workers=2), contender(2, workers=2), contender(3, workers=0)]
    assert is_wanted_elsewhere(third, 1)
    assert is_wanted_elsewhere(third, 2)
    served = [contender(1, workers=1), contender(2, workers=2), contender(3, workers=1)]
    assert not any(is_wanted_elsewhere(served, one.study_id) for one in served)


def test_no_trial_is_handed_back_for_the_sake_of_those_that_a_strategy_has_paused() -> None:
    """It may let none of them go on, and the worker would come back at once."""
    here, there = contender(1, workers=2), contender(2, workers=3, room=8, paused=5)
    assert not is_wanted_elsewhere([here, there], 1)
    assert is_wanted_elsewhere([here, contender(2, workers=0, room=8, paused=5)], 1), "three wait to be trained"
    assert choose([here, contender(2, workers=0, room=5, paused=5)]) is not None, "whoever is free has a look"


def test_a_worker_that_came_for_what_is_paused_is_not_sent_back() -> None:
    """Nor is another of its study called away while it looks for the next."""
    busy = contender(1, workers=2)
    assert not is_wanted_elsewhere([busy, contender(2, workers=2, room=3, paused=2)], 2)
    assert not is_wanted_elsewhere([busy, contender(2, priority=5, workers=1, room=2, paused=2)], 2)
    assert is_wanted_elsewhere([contender(1, workers=0), contender(2, workers=4, room=6, paused=3)], 2)


def test_after_a_trial_a_worker_leaves_for_a_fraction_only_when_it_has_stayed_a_while() -> None:
    ahead, behind = contender(1, workers=1, time=50.0), contender(2, time=10.0)
    assert next_study([ahead, behind], 1, may_move=False) == contender(1, time=50.0)
    assert next_study([ahead, behind], 1, may_move=True) == behind
    done = contender(1, workers=1, room=0)
    assert next_study([done, behind], 1, may_move=False) == behind
    assert next_study([done], 1, may_move=False) is None


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("priorities", [(3, 2, 1), (5, 3, 1), (1, 1, 1, 1, 1), (10, 1)])
def test_over_time_each_study_has_its_share_of_the_workers(workers: int, priorities: tuple[int, ...]) -> None:
    """Simulated: trials of very different length, and at every moment no study off its share by a whole worker."""
    draw = random.Random(1)
    studies = [contender(n, priority) for n, priority in enumerate(priorities)]
    fair = shares(studies, workers)
    has: Counter[int] = Counter()
    ends: list[tuple[float, int]] = []
    now, spent = 0.0, dict.fromkeys(range(len(priorities)), 0.0)

    def take() -> None:
        chosen = choose([replace(one, workers=has[one.study_id], virtual_time=time_of(one)) for one in studies])
        assert chosen is not None
        has[chosen.study_id] += 1
        ends.append((now + draw.expovariate(1 / (60.0 if chosen.study_id else 20.0)), chosen.study_id))

    def time_of(one: Contender) -> float:
        return spent[one.study_id] / one.priority

    for _ in range(workers):
        take()
    while now < 60_000:
        ends.sort(reverse=True)
        then, study_id = ends.pop()
        for one in studies:
            spent[one.study_id] += (then - now) * has[one.study_id]
        now = then
        has[study_id] -= 1
        take()
        for one in studies:
            share = fair[one.study_id]
            assert has[one.study_id] <= math.ceil(share)
    for one in studies:
        assert spent[one.study_id] / (now * workers) == pytest.approx(float(fair[one.study_id]) / workers, rel=0.05)
