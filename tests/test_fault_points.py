"""A study ends right wherever a worker or its connection is cut off: between any two writes, and after any COMMIT."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from storage_faults import (
    Point,
    bury,
    commit_and_cut,
    cut,
    die_at_new_points,
    endings,
    killed_at,
    live,
    points_of,
    portrait,
)
from storage_places import make_study, optuna_study, worker_on

from storage import patience, workers
from storage.owners import POISON_OWNERS
from storage.shared import SharedStorage
from storage.studies import StudyRecord

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test", "impatient")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(patience, "LONGEST_SECONDS", 0.001)


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def a_study(storage: SharedStorage) -> StudyRecord:
    """Of one trial; the first, which is enqueued, ends in an error, and a second takes its ticket."""
    return make_study(storage, trials=1, first=1)


def a_study_left_by_a_dead_worker(storage: SharedStorage) -> StudyRecord:
    """The same with three trials more: one that has killed five owners, and two to be adopted."""
    study = make_study(storage, trials=4, first=4)
    killed, left = worker_on(storage.backend.url), optuna_study(worker_on(storage.backend.url), study)
    optuna_study(killed, study).ask()
    for _ in range(POISON_OWNERS - 1):
        bury(killed)
        killed.adopt(study.study_id)
    left.ask()
    left.ask()
    bury(killed)
    bury(left._storage)
    return study


Make = Callable[[SharedStorage], StudyRecord]


def undisturbed(worker: SharedStorage, make: Make) -> tuple[StudyRecord, list[Point]]:
    study = make(worker)
    with points_of(worker, lambda _point: None) as points:
        live(worker, study)
    return study, points


def test_a_study_ends_right_when_the_connection_dies_before_every_write(worker: SharedStorage) -> None:
    """Each transaction fails before its first write, then before its second, and so on, until it comes through."""
    twin, points = undisturbed(worker, a_study_left_by_a_dead_worker)
    reached = 0

    def cut_further_each_time(point: Point) -> None:
        nonlocal reached
        if point.writes and point.place == reached:
            reached += 1
            cut(point.connection)
        elif point.committing:
            reached = 0

    study = a_study_left_by_a_dead_worker(worker)
    with points_of(worker, cut_further_each_time) as attempted:
        live(worker, study)
    assert len(attempted) > 2 * len(points)
    assert portrait(worker, study) == portrait(worker, twin)
    assert endings(worker, study) == endings(worker, twin)


def test_a_study_ends_right_when_the_answer_to_every_commit_is_lost(worker: SharedStorage) -> None:
    twin, points = undisturbed(worker, a_study_left_by_a_dead_worker)
    lost, again = 0, False

    def lose_the_answer(point: Point) -> None:
        nonlocal lost, again
        if point.committing and again:
            again = False
        elif point.committing and point.writes:
            lost, again = lost + 1, True
            commit_and_cut(point.connection)

    study = a_study_left_by_a_dead_worker(worker)
    with points_of(worker, lose_the_answer):
        live(worker, study)
    assert lost == sum(point.committing for point in points) - 1  # trying again to give up a trial found another
    assert portrait(worker, study) == portrait(worker, twin)
    assert endings(worker, study) == endings(worker, twin)


def test_a_study_ends_right_when_its_worker_dies_at_any_point(worker: SharedStorage) -> None:
    """Others, which see it die, go on. On PostgreSQL only at the borders of transactions, which is dear."""
    everywhere = worker.backend.engine.name == "sqlite"
    seen: set[tuple[tuple[str, ...], bool]] = set()
    for make in (a_study, a_study_left_by_a_dead_worker):
        twin, points = undisturbed(worker, make)
        expected, died = portrait(worker, twin), True
        while died:
            study = make(worker)
            died = bool(die_at_new_points(worker.backend.url, study, live, seen, everywhere))
            assert portrait(worker, study) == expected, seen
            assert endings(worker, study)["settled"] == endings(worker, twin)["settled"]
        assert {(point.written, point.committing) for point in points if everywhere or point.committing} <= seen


def test_a_study_ends_right_when_sigkill_ends_its_workers_at_some_points(worker: SharedStorage) -> None:
    """As a machine sees it: nothing is rolled back or closed by whoever dies."""
    points = [2, 5, 7, 11, 16, 19, 25]  # in claims, the sampling, an epoch, a checkpoint and settlements
    twin, study = (make_study(worker, trials=len(points), first=1) for _ in range(2))
    live(worker, twin)
    killed = killed_at(worker.backend.url, study.name, points)
    assert len(killed) == len(points)
    for worker_id in killed:
        workers.end(worker, worker_id)
    live(worker, study)
    expected, seen = portrait(worker, twin), portrait(worker, study)
    assert expected.pop("study")[:2] == seen.pop("study")[:2] == (len(points), 2)
    assert seen == expected
