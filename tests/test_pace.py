"""When the next checkpoint is due."""

from __future__ import annotations

from search import pace


def test_five_seconds_or_twenty_times_what_the_last_one_cost() -> None:
    times = iter([0.0, 4.9, 5.0, 5.0, 5.5, 15.4, 15.5, 15.5])
    pacing = pace.Pace(lambda: next(times))
    assert [pacing.due(), pacing.due()] == [False, True]
    pacing.took(pacing.now())
    assert [pacing.due(), pacing.due()] == [False, True]
    pacing.cost(1.0)
    assert not pacing.due()


def test_an_epoch_that_would_end_too_late_counts_when_the_one_before_ends() -> None:
    times = iter([0.0, 2.0, 2.0])
    pacing = pace.Pace(lambda: next(times))
    assert [pacing.due(ahead=2.9), pacing.due(ahead=3.1)] == [False, True]
