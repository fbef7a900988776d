"""Workers that serve every study: what each takes, when it moves on, and what a person's word does to it."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress, repeat

import pytest
from optuna.trial import Trial
from pauses import paused
from sqlalchemy import update
from storage_faults import Point, commit_and_cut, points_of
from storage_places import (
    DONE,
    adopted_by,
    fresh,
    make_study,
    newcomer,
    optuna_study,
    rows,
    worker_on,
)

from storage import pausing, queue, queue_page, steering, workers
from storage.claims import LEASE_SECONDS, StudyFull, new_uuid
from storage.optuna_internals import trial_id_of
from storage.patience import DATABASE_ERRORS, waiting
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.studies import StudyRecord
from storage.tables import QueueWorkerRow, StudyRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

PLENTY = 1000


def at_work(storage: SharedStorage) -> dict[str, int]:
    """Workers of each open study."""
    return {one.name: one.workers for one in queue_page.look(storage).studies}


def had_worked(storage: SharedStorage, crew: Sequence[str], seconds: float) -> None:
    """As if these workers had taken their studies so much earlier."""
    row = QueueWorkerRow
    values = {"since": row.since - seconds, "charged_at": row.charged_at - seconds}
    with storage.backend.write() as session:
        session.execute(update(row).where(row.queue_worker_id.in_(crew)).values(**values))


def has_died(storage: SharedStorage, me: str) -> None:
    """As if nothing had been heard of it for a lease's length."""
    row = QueueWorkerRow
    with storage.backend.write() as session:
        silent = row.last_seen - LEASE_SECONDS - 1
        session.execute(update(row).where(row.queue_worker_id == me).values(last_seen=silent))


def virtual_time(storage: SharedStorage, study: StudyRecord) -> float:
    [row] = rows(storage, StudyRow, StudyRow.study_id == study.study_id)
    return float(row.virtual_time)


class TestShares:
    def test_three_studies_of_different_priority_on_four_workers(self, storage: SharedStorage) -> None:
        three = [make_study(storage, trials=PLENTY, priority=priority) for priority in (3, 2, 1)]
        for _ in range(4):
            queue.take(storage, newcomer(storage))
        assert [at_work(storage)[study.name] for study in three] == [2, 1, 1]
        found = {one.name: one.share for one in queue_page.look(storage).studies}
        assert [found[study.name] for study in three] == pytest.approx([1 / 2, 1 / 3, 1 / 6])

    def test_over_time_each_has_its_share_of_the_workers_time(self, storage: SharedStorage) -> None:
        """Four workers, trials of very different length, as if time had passed: a second of it takes no second."""
        three = {make_study(storage, trials=10**6, priority=priority).study_id: priority for priority in (3, 2, 1)}
        draw, spent = random.Random(0), Counter[int]()
        crew = [newcomer(storage) for _ in range(4)]
        serves = {me: queue.take(storage, me) for me in crew}
        left = {me: draw.uniform(30, 120) for me in crew}
        for _ in range(120):
            me, seconds = min(left.items(), key=lambda one: one[1])
            had_worked(storage, crew, seconds)
            for other, study_id in serves.items():
                assert study_id is not None
                left[other] -= seconds
                spent[study_id] += round(seconds)
            serves[me] = queue.take(storage, me)
            left[me] = draw.uniform(10, 40) * (3 if three[serves[me] or 0] == 1 else 1)
        total = sum(spent.values())
        for study_id, priority in three.items():
            assert spent[study_id] / total == pytest.approx(priority / 6, abs=0.04), spent

    def test_a_worker_comes_only_where_there_is_something_to_do_for_it(self, storage: SharedStorage) -> None:
        study = make_study(storage, trials=1)
        trial = optuna_study(storage, study).ask()
        owner = storage.lease_of(trial).worker_id
        workers.register(storage, owner, study.study_id, [workers.Place("cpu", None)])
        me = newcomer(storage)
        assert queue.take(storage, me) is None, "its only trial is trained by a worker of its own"
        storage.hand_back(storage.lease_of(trial))
        workers.end(storage, owner)
        assert queue.take(storage, me) == study.study_id

    def test_a_study_that_it_cannot_serve_is_left_to_others(self, storage: SharedStorage) -> None:
        study = make_study(storage)
        assert queue.take(storage, newcomer(storage), without={study.study_id}) is None
        assert queue.take(storage, newcomer(storage)) == study.study_id

    def test_workers_of_a_study_of_its_own_count_too(self, storage: SharedStorage) -> None:
        first, second = make_study(storage, trials=PLENTY), make_study(storage, trials=PLENTY)
        for _ in range(2):
            workers.register(storage, new_uuid(), first.study_id, [workers.Place("cpu", None)])
        assert [queue.take(storage, newcomer(storage)) for _ in range(2)] == [second.study_id] * 2


class TestMoving:
    def test_a_worker_is_called_away_when_whole_workers_are_missing_elsewhere(self, storage: SharedStorage) -> None:
        first = make_study(storage, trials=PLENTY)
        crew = [newcomer(storage) for _ in range(4)]
        assert {queue.take(storage, me) for me in crew} == {first.study_id}
        assert not any(queue.wanted_elsewhere(storage, me) for me in crew)
        second = make_study(storage, trials=PLENTY)
        assert [queue.wanted_elsewhere(storage, me) for me in crew] == [True, True, False, False]
        assert at_work(storage) == {first.name: 2, second.name: 2}
        steering.change(storage, second.study_id, Wish(priority=3), "ana")
        assert sum(queue.wanted_elsewhere(storage, me) for me in crew) == 1
        assert at_work(storage) == {first.name: 1, second.name: 3}

    def test_of_workers_that_look_at_the_same_moment_only_as_many_leave_as_are_wanted(
        self, storage: SharedStorage
    ) -> None:
        first = make_study(storage, trials=PLENTY)
        crew = [newcomer(storage) for _ in range(6)]
        for me in crew:
            queue.take(storage, me)
        make_study(storage, trials=PLENTY)

        def look(me: str, start: threading.Barrier) -> bool:
            own = open_storage(storage.backend.url)
            start.wait()
            return queue.wanted_elsewhere(own, me)

        leave: list[str] = []
        while stay := [me for me in crew if me not in leave]:  # one that another decides before looks again
            start = threading.Barrier(len(stay))
            with ThreadPoolExecutor(len(stay)) as threads:
                called = [*compress(stay, threads.map(look, stay, repeat(start)))]
            if not called:
                break
            leave += called
        assert len(leave) == at_work(storage)[first.name] == 3

    def test_after_a_trial_it_leaves_for_a_fraction_when_it_has_stayed(self, storage: SharedStorage) -> None:
        first = make_study(storage, trials=PLENTY)
        me = newcomer(storage)
        assert queue.take(storage, me) == first.study_id
        second = make_study(storage, trials=PLENTY)
        had_worked(storage, [me], 60)
        assert queue.take(storage, me, may_move=False) == first.study_id
        assert queue.take(storage, me, may_move=True) == second.study_id
        had_worked(storage, [me], 30)
        assert queue.take(storage, me) == second.study_id, "it has had 30 s, the other 60"

    def test_a_worker_that_died_is_counted_no_more_and_its_time_is_charged(self, storage: SharedStorage) -> None:
        study = make_study(storage, trials=PLENTY, priority=2)
        dead, other = newcomer(storage), newcomer(storage)
        queue.take(storage, dead)
        had_worked(storage, [dead], 100)
        has_died(storage, dead)
        assert at_work(storage) == {study.name: 0}
        queue.take(storage, other)
        assert at_work(storage) == {study.name: 1}
        assert virtual_time(storage, study) == pytest.approx((100 - LEASE_SECONDS - 1) / 2, abs=10)
        [page] = [one for one in queue_page.look(storage).workers if one.study is not None]
        assert not page.silent

    def test_one_that_was_only_frozen_goes_on(self, storage: SharedStorage) -> None:
        study = make_study(storage, trials=PLENTY)
        frozen, other = newcomer(storage), newcomer(storage)
        queue.take(storage, frozen)
        has_died(storage, frozen)
        queue.take(storage, other)
        assert queue.take(storage, frozen) == study.study_id
        assert at_work(storage) == {study.name: 2}

    def test_one_that_was_taken_for_dead_while_the_database_was_away_is_called_away_as_ever(
        self, storage: SharedStorage
    ) -> None:
        """All workers are silent then, and the first that decides something buries the others."""
        first = make_study(storage, trials=PLENTY)
        crew = [newcomer(storage) for _ in range(4)]
        for me in crew:
            queue.take(storage, me)
        for me in crew[1:]:
            has_died(storage, me)
        assert queue.take(storage, crew[0]) == first.study_id
        for me in crew:
            queue.seen(storage, me)
        assert at_work(storage) == {first.name: 4}
        make_study(storage, trials=PLENTY)
        assert sum(queue.wanted_elsewhere(storage, me) for me in crew) == 2

    def test_a_worker_that_has_not_heard_that_it_is_wanted_elsewhere_hears_it_again(
        self, storage: SharedStorage
    ) -> None:
        first = make_study(storage, trials=PLENTY)
        crew = [newcomer(storage) for _ in range(2)]
        for me in crew:
            queue.take(storage, me)
        second = make_study(storage, trials=PLENTY)

        def cut(point: Point) -> None:
            if point.committing and point.writes:
                commit_and_cut(point.connection)

        lost = pytest.raises((*DATABASE_ERRORS, sqlite3.Error))
        with points_of(storage, cut), waiting(0), lost:  # as the lease keeper's thread asks
            queue.wanted_elsewhere(storage, crew[0], serves=first.study_id)
        assert at_work(storage) == {first.name: 1, second.name: 1}
        assert queue.wanted_elsewhere(storage, crew[0], serves=first.study_id)
        assert not queue.wanted_elsewhere(storage, crew[1], serves=first.study_id)

    def test_a_study_that_nobody_serves_gives_later_ones_no_time_to_catch_up_with(self, storage: SharedStorage) -> None:
        stranger, first = make_study(storage, trials=PLENTY), make_study(storage, trials=PLENTY)
        me = newcomer(storage)
        assert queue.take(storage, me, {stranger.study_id}) == first.study_id
        had_worked(storage, [me], 3600)
        second = make_study(storage, trials=PLENTY)
        assert virtual_time(storage, second) == pytest.approx(3600, abs=60)

    def test_a_study_that_comes_back_does_not_get_what_it_has_missed(self, storage: SharedStorage) -> None:
        first, second = make_study(storage, trials=PLENTY), make_study(storage, trials=PLENTY)
        steering.pause(storage, second.study_id, "ana")
        me = newcomer(storage)
        queue.take(storage, me)
        had_worked(storage, [me], 3600)
        assert queue.take(storage, me) == first.study_id
        steering.resume(storage, second.study_id, Wish(), "bo")
        assert virtual_time(storage, second) == pytest.approx(virtual_time(storage, first), abs=60)
        third = make_study(storage, trials=PLENTY)
        assert virtual_time(storage, third) == pytest.approx(virtual_time(storage, first), abs=60)

    def test_a_new_priority_counts_from_now_on(self, storage: SharedStorage) -> None:
        study = make_study(storage, trials=PLENTY)
        me = newcomer(storage)
        queue.take(storage, me)
        had_worked(storage, [me], 100)
        steering.change(storage, study.study_id, Wish(priority=10), "ana")
        assert virtual_time(storage, study) == pytest.approx(100, abs=8)
        had_worked(storage, [me], 100)
        queue.take(storage, me)
        assert virtual_time(storage, study) == pytest.approx(110, abs=8)


def test_time_in_which_a_worker_was_frozen_nobody_is_charged_with(storage: SharedStorage) -> None:
    """A laptop that slept for a night would owe its study's rivals that night."""
    study = make_study(storage, trials=PLENTY)
    me = newcomer(storage)
    queue.take(storage, me)
    row, night = QueueWorkerRow, 8 * 3600.0
    with storage.backend.write() as session:
        asleep = {"since": row.since - night, "charged_at": row.charged_at - night, "last_seen": row.last_seen - night}
        session.execute(update(row).where(row.queue_worker_id == me).values(**asleep))
    queue.seen(storage, me)
    queue.end(storage, me)
    assert virtual_time(storage, study) < LEASE_SECONDS


def test_what_is_paused_is_told_apart_from_what_is_to_be_done(storage: SharedStorage) -> None:
    """Of three trials of five two are paused; one is handed back."""
    study = make_study(storage, trials=5)
    for _ in range(2):
        paused(storage, study)
    storage.hand_back(storage.lease_of(optuna_study(storage, study).ask()))
    [one] = queue.open_now(storage)
    assert (one.room, one.paused) == (5, 2)
    steering.change(storage, study.study_id, Wish(concurrency=4), "bo")
    [one] = queue.open_now(storage)
    assert (one.room, one.paused) == (4, 1)
    assert [line.todo for line in queue_page.look(storage).studies] == [5], "people are told what is to be done"


class TestConcurrency:
    def test_no_more_trials_are_trained_at_once_however_a_worker_comes_by_one(self, storage: SharedStorage) -> None:
        study = make_study(storage, concurrency=1, trials=4)
        url = storage.backend.url
        first = optuna_study(storage, study).ask()
        other = worker_on(url)
        with pytest.raises(StudyFull, match="trains 1 at once"):
            optuna_study(other, study).ask()
        assert fresh(storage, study).taken == 1, "its ticket is as it was"
        storage.hand_back(storage.lease_of(first))
        assert adopted_by(other, study).generation == 2
        with pytest.raises(StudyFull):
            optuna_study(storage, study).ask()
        standing = pausing.standing(storage, study.study_id)
        assert standing is not None
        assert (standing.full, standing.may_start) == (True, False)

    def test_a_trial_left_behind_waits_until_there_is_room(self, storage: SharedStorage) -> None:
        study = make_study(storage, concurrency=2)
        url = storage.backend.url
        trials = [(one := worker_on(url), optuna_study(one, study).ask()) for _ in range(2)]
        steering.change(storage, study.study_id, Wish(concurrency=1), "ana")
        kept, too_many = trials
        assert not workers.is_one_too_many(storage, kept[0].lease_of(kept[1]))
        assert workers.is_one_too_many(storage, too_many[0].lease_of(too_many[1]))
        too_many[0].hand_back(too_many[0].lease_of(too_many[1]))
        with pytest.raises(StudyFull):
            storage.adopt(study.study_id)
        kept[0].settle(optuna_study(kept[0], study), kept[1], DONE, 0.5)
        assert adopted_by(storage, study).trial_id == trial_id_of(too_many[1])

    def test_the_queue_sends_no_more_workers_than_a_study_may_have(self, storage: SharedStorage) -> None:
        limited = make_study(storage, trials=PLENTY, concurrency=1, priority=9)
        other = make_study(storage, trials=PLENTY)
        for _ in range(5):
            queue.take(storage, newcomer(storage))
        assert at_work(storage) == {limited.name: 1, other.name: 4}
        steering.change(storage, limited.study_id, Wish(concurrency=0), "ana")
        assert {one.concurrency for one in queue_page.look(storage).studies} == {None}

    def test_claims_at_the_same_moment_keep_to_the_limit(self, storage: SharedStorage) -> None:
        study = make_study(storage, concurrency=3, trials=PLENTY)
        start = threading.Barrier(8)

        def claim(_number: int) -> bool:
            own = optuna_study(worker_on(storage.backend.url), study)
            start.wait()
            try:
                own.ask()
            except StudyFull:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(claim, range(8))) == 3


def test_people_see_what_a_worker_does_and_says(storage: SharedStorage) -> None:
    study = make_study(storage, trials=PLENTY)
    me = newcomer(storage)
    queue.take(storage, me)
    queue.begin(storage, me, storage.backend.claimant.worker_id if storage.backend.claimant else "")
    trial: Trial = optuna_study(storage, study).ask()
    queue.seen(storage, me, "leaving another alone", "cuda:0")
    [line] = queue_page.look(storage).workers
    said = "leaving another alone", "cuda:0"
    assert (line.study, line.trial, line.note, line.slot) == (study.name, trial.number, *said)
    queue.end(storage, me)
    assert queue_page.look(storage).workers == ()
