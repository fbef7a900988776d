"""What a view is told of a study: every trial that ends while it looks, and none twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from storage_places import DONE, fresh, make_study, optuna_study, run_trial, worker_on

from search.feed import Feed
from storage import queries
from storage.queries import RankedTrial, SettledTrial, StudyStatus
from storage.shared import SharedStorage

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


class Told:
    """A view that remembers the numbers of the trials that it was told of."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def update(self, status: StudyStatus, best: RankedTrial | None, settled: Sequence[SettledTrial]) -> None:
        self.numbers += [trial.number for trial in settled]

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def close(self) -> None:
        pass


def test_each_trial_is_told_once_and_none_of_before(worker: SharedStorage) -> None:
    record, told = make_study(worker, trials=4), Told()
    run_trial(worker, record)
    feed = Feed(worker, fresh(worker, record))
    for _ in range(2):
        run_trial(worker, record)
        feed.show(told)
        feed.show(told)
    assert told.numbers == [1, 2]


def test_a_trial_that_ends_the_study_between_two_readings_is_told_with_the_end(
    worker: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, told = make_study(worker, trials=2), Told()
    feed = Feed(worker, record)
    run_trial(worker, record)
    study = optuna_study(worker, record)
    last = [study.ask()]
    where_it_stands = queries.status

    def after_the_last_trial(*asked: object) -> StudyStatus:
        if last:
            worker.settle(study, last.pop(), DONE, 0.5)
        return where_it_stands(*asked)  # type: ignore[arg-type]  # what it is given is handed on

    monkeypatch.setattr(queries, "status", after_the_last_trial)
    shown = feed.show(told)
    assert shown is not None
    assert shown.over
    assert told.numbers == [0, 1]


def test_looking_takes_a_twentieth_of_the_time_and_no_rest_is_long(worker: SharedStorage) -> None:
    now = iter([0.0, 0.001, 10.0, 10.1, 20.0, 29.0])
    feed, rests = Feed(worker, make_study(worker), clock=lambda: next(now)), []
    for _ in range(3):
        feed.show(Told())
        rests.append(feed.rest(0.25))
    assert rests == [0.25, pytest.approx(2.0), 5.0]
