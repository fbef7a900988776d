"""A study with pauses ends right wherever a worker or its connection is cut off, and no epoch of it is lost."""

from __future__ import annotations

import pytest
from storage_faults import (
    Point,
    commit_and_cut,
    cut,
    die_at_new_points,
    endings,
    killed_at,
    live_with_pauses,
    points_of,
    portrait,
)
from storage_places import make_study, worker_on

from storage import patience, workers
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
    return make_study(storage, trials=4, first=1)


def undisturbed(worker: SharedStorage) -> tuple[StudyRecord, list[Point]]:
    study = a_study(worker)
    with points_of(worker, lambda _point: None) as points:
        live_with_pauses(worker, study)
    return study, points


def test_undisturbed_some_are_complete_and_the_rest_pruned(worker: SharedStorage) -> None:
    twin, _ = undisturbed(worker)
    assert [row[1][0] for row in portrait(worker, twin)["settled"]] == ["pruned", "complete", "complete", "pruned"]
    assert endings(worker, twin) == {"paused": 4, "settled": 2}


def test_with_pauses_a_study_ends_right_when_the_connection_dies_before_every_write(worker: SharedStorage) -> None:
    twin, points = undisturbed(worker)
    reached = 0

    def cut_further_each_time(point: Point) -> None:
        nonlocal reached
        if point.writes and point.place == reached:
            reached += 1
            cut(point.connection)
        elif point.committing:
            reached = 0

    study = a_study(worker)
    with points_of(worker, cut_further_each_time) as attempted:
        live_with_pauses(worker, study)
    assert len(attempted) > 2 * len(points)
    assert portrait(worker, study) == portrait(worker, twin)
    assert endings(worker, study) == endings(worker, twin)


def test_with_pauses_a_study_ends_right_when_the_answer_to_every_commit_is_lost(worker: SharedStorage) -> None:
    twin, points = undisturbed(worker)
    lost, again = 0, False

    def lose_the_answer(point: Point) -> None:
        nonlocal lost, again
        if point.committing and again:
            again = False
        elif point.committing and point.writes:
            lost, again = lost + 1, True
            commit_and_cut(point.connection)

    study = a_study(worker)
    with points_of(worker, lose_the_answer):
        live_with_pauses(worker, study)
    assert lost == sum(point.committing for point in points)
    assert portrait(worker, study) == portrait(worker, twin)
    assert endings(worker, study) == endings(worker, twin)


def test_with_pauses_a_study_ends_right_when_its_worker_dies_at_any_point(worker: SharedStorage) -> None:
    """Others, which see it die, go on. On PostgreSQL only at the borders of transactions, which is dear."""
    everywhere = worker.backend.engine.name == "sqlite"
    seen: set[tuple[tuple[str, ...], bool]] = set()
    twin, points = undisturbed(worker)
    expected, died = portrait(worker, twin), True
    while died:
        study = a_study(worker)
        died = bool(die_at_new_points(worker.backend.url, study, live_with_pauses, seen, everywhere))
        assert portrait(worker, study) == expected, seen
    assert {(point.written, point.committing) for point in points if everywhere or point.committing} <= seen
    assert len(seen) >= 10


def test_with_pauses_a_study_ends_right_when_sigkill_ends_its_workers_at_some_points(worker: SharedStorage) -> None:
    """As a machine sees it: nothing is rolled back or closed by whoever dies."""
    twin, all_points = undisturbed(worker)
    points = [*range(3, len(all_points), 4)]
    study = a_study(worker)
    killed = killed_at(worker.backend.url, study.name, points, live_with_pauses)
    assert len(killed) > 2
    for worker_id in killed:
        workers.end(worker, worker_id)
    live_with_pauses(worker, study)
    assert portrait(worker, study) == portrait(worker, twin)
