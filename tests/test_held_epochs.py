"""Epochs that come fast share a transaction: none is lost at an end, a death costs what was held, budgets are exact."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reporter_bench import EPOCHS, Loser, bench_on, result, state
from sqlalchemy import event, select, update
from storage_places import an_epoch, fresh, make_study, optuna_study, rows, wait_until, worker_on

from search import children, judge, outbox, pace, strategy
from search.interrupt import Interrupt
from search.outbox import HELD_SECONDS, Outbox
from search.reporting import Interrupted, Verdict
from search.strategy import GoOn, Left, Seen, Start, Strategy
from storage import steering, studies
from storage.claims import Checkpoint, Lease, LeaseLost
from storage.engine import database_now
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointRow, EpochRow, LeaseRow, StudyRow, StudyState

pytestmark = pytest.mark.usefixtures("storage_test")
pytest_plugins = ("storage_fixtures",)


class Clock:
    """Stands still but for what a test adds: nothing that is held comes due by itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(common_url: str) -> Iterator[SharedStorage]:
    worker = worker_on(common_url)
    yield worker
    wait_until(lambda: not any(thread.name == "outbox" for thread in threading.enumerate()))


def held_by(worker: SharedStorage, clock: Clock | None = None, **changes: Any) -> tuple[StudyRecord, Lease, Outbox]:
    """A study, and the outbox of a trial of it."""
    study = make_study(worker, **changes)
    lease = worker.lease_of(optuna_study(worker, study).ask())
    return study, lease, Outbox(worker, lease, Interrupt(), clock or time.monotonic)


def recorded(storage: SharedStorage, lease: Lease) -> list[int]:
    query = select(EpochRow.epoch).where(EpochRow.trial_id == lease.trial_id).order_by(EpochRow.epoch)
    with storage.backend.read() as session:
        return list(session.scalars(query))


def seen_by_pruners(storage: SharedStorage, lease: Lease) -> list[int]:
    return sorted(storage.get_trial(lease.trial_id).intermediate_values)


@contextmanager
def commits_of(storage: SharedStorage) -> Iterator[list[object]]:
    commits: list[object] = []

    def commit(connection: object) -> None:
        commits.append(connection)

    event.listen(storage.backend.engine, "commit", commit)
    yield commits
    event.remove(storage.backend.engine, "commit", commit)


# -- One transaction for many


def test_epochs_that_come_fast_share_a_transaction(worker: SharedStorage, clock: Clock) -> None:
    study, lease, box = held_by(worker, clock)
    with commits_of(worker) as commits:
        assert [box.record(an_epoch(number)) for number in (1, 2, 3)] == [StudyState.RUNNING] * 3
        assert len(commits) == 1, "people look at the first"
        assert recorded(worker, lease) == [1]
    with commits_of(worker) as commits:
        with box._changed:  # or else the outbox may look at the clock in between and write two of them
            clock.now += HELD_SECONDS
            assert box.record(an_epoch(4)) is StudyState.RUNNING
        assert len(commits) == 1
    assert recorded(worker, lease) == [1, 2, 3, 4]
    assert seen_by_pruners(worker, lease) == [1, 2, 3, 4]
    [spent] = rows(worker, StudyRow, StudyRow.study_id == study.study_id)
    assert (spent.spent_epochs, spent.spent_seconds) == (4, 4 * 0.25)


def test_epochs_half_a_second_apart_are_each_recorded_at_once(worker: SharedStorage, clock: Clock) -> None:
    _, lease, box = held_by(worker, clock)
    for number in (1, 2, 3):
        box.record(an_epoch(number))
        assert recorded(worker, lease) == [*range(1, number + 1)]
        clock.now += HELD_SECONDS


def test_a_long_epoch_after_a_short_one_does_not_keep_it_from_the_record(
    worker: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "HELD_SECONDS", 0.2)
    _, lease, box = held_by(worker)
    box.record(an_epoch(1))
    box.record(an_epoch(2))
    wait_until(lambda: recorded(worker, lease) == [1, 2])


def test_many_that_were_held_come_all_on_record_when_they_are_due(
    worker: SharedStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_TOGETHER", 3)
    _, lease, box = held_by(worker, clock)
    for number in range(1, 12):
        box.record(an_epoch(number))
    assert box.write_held()
    assert recorded(worker, lease) == [*range(1, 12)]


def test_a_checkpoint_takes_with_it_what_it_goes_on_after(worker: SharedStorage, clock: Clock) -> None:
    _, lease, box = held_by(worker, clock)
    for number in (1, 2):
        box.record(an_epoch(number))
    box.record(an_epoch(3), Checkpoint(3, "state-3", "0" * 64))
    assert recorded(worker, lease) == [1, 2, 3]
    assert [row.epoch for row in rows(worker, CheckpointRow, CheckpointRow.trial_id == lease.trial_id)] == [3]


def test_an_epoch_reported_twice_has_what_was_told_last(worker: SharedStorage, clock: Clock) -> None:
    study, lease, box = held_by(worker, clock)
    for number, value in ((1, 0.1), (2, 0.2), (2, 0.3), (3, 0.4)):
        box.record(an_epoch(number, value))
    box.flush()
    assert worker.get_trial(lease.trial_id).intermediate_values == {1: 0.1, 2: 0.3, 3: 0.4}
    assert rows(worker, StudyRow, StudyRow.study_id == study.study_id)[0].spent_epochs == 3


def test_when_an_epoch_ended_is_told_though_it_was_held(worker: SharedStorage, clock: Clock) -> None:
    _, lease, box = held_by(worker, clock)
    now = time.monotonic()
    for number, ago in ((1, 30.0), (2, 20.0), (3, 10.0)):
        box.record(an_epoch(number, ended=now - ago))
    box.flush()
    one, two, three = (row.ended_at for row in rows(worker, EpochRow, EpochRow.trial_id == lease.trial_id))
    assert (two - one, three - two) == (pytest.approx(10, abs=1), pytest.approx(10, abs=1))


# -- Who owns the trial, and who died


def test_of_a_trial_that_was_adopted_nothing_that_was_held_is_recorded(worker: SharedStorage, clock: Clock) -> None:
    _, lease, box = held_by(worker, clock)
    for number in (1, 2, 3):
        box.record(an_epoch(number))
    with worker.backend.write() as session:
        mine = LeaseRow.trial_id == lease.trial_id
        session.execute(update(LeaseRow).where(mine).values(generation=2, worker_id="another"))
    with pytest.raises(LeaseLost):
        box.flush()
    assert recorded(worker, lease) == seen_by_pruners(worker, lease) == [1]


def test_an_adopter_trains_again_what_its_owner_before_had_recorded_and_goes_further(
    worker: SharedStorage, clock: Clock
) -> None:
    study, lease, box = held_by(worker, clock)
    for number in (1, 2, 3):
        box.record(an_epoch(number))
    box.flush()
    worker.hand_back(lease)
    adopted = worker.adopt(study.study_id)
    assert isinstance(adopted, Lease)
    box = Outbox(worker, adopted, Interrupt(), clock)
    for number in (2, 3, 4, 5):
        box.record(an_epoch(number, 0.75))
    box.flush()
    assert worker.get_trial(lease.trial_id).intermediate_values == {1: 0.5} | dict.fromkeys((2, 3, 4, 5), 0.75)
    generations = [(row.epoch, row.generation) for row in rows(worker, EpochRow, EpochRow.trial_id == lease.trial_id)]
    assert sorted(generations) == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]
    assert rows(worker, StudyRow, StudyRow.study_id == study.study_id)[0].spent_epochs == 5


def train_and_die(url: str, name: str) -> None:
    """In a process of its own: six epochs, the last two of them held."""
    storage, clock = worker_on(url), Clock()
    lease = storage.lease_of(optuna_study(storage, studies.find(storage, name)).ask())
    box = Outbox(storage, lease, Interrupt(), clock)
    for number in (1, 2, 3, 4, 5, 6):
        box.record(an_epoch(number), at_once=number == 4)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_loses_at_most_what_was_held(worker: SharedStorage) -> None:
    study = make_study(worker)
    children.warm_up()
    process = children.start(train_and_die, worker.backend.url, study.name)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    [lease] = rows(worker, LeaseRow, LeaseRow.study_id == study.study_id)
    assert recorded(worker, lease) == seen_by_pruners(worker, lease) == [1, 2, 3, 4]
    assert fresh(worker, study).spent_epochs == 4


# -- Budgets


def test_two_trials_that_hold_more_than_is_left_put_exactly_the_budget_on_record(
    worker: SharedStorage, clock: Clock
) -> None:
    study, first, mine = held_by(worker, clock, budget_epochs=5)
    second = worker.lease_of(optuna_study(worker, study).ask())
    theirs = Outbox(worker, second, Interrupt(), clock)
    for number in (1, 2, 3, 4):
        mine.record(an_epoch(number))
    for number in (1, 2):
        theirs.record(an_epoch(number), at_once=True)
    with pytest.raises(Interrupted):
        mine.flush()
    assert (recorded(worker, first), recorded(worker, second)) == ([1, 2, 3], [1, 2])
    with pytest.raises(Interrupted):
        theirs.record(an_epoch(3), at_once=True)
    record = fresh(worker, study)
    assert (record.spent_epochs, record.spent_seconds) == (5, 5 * 0.25)
    assert (record.state, record.reason) == (StudyState.STOPPED, "the budget of 5 epochs is trained")


@pytest.mark.parametrize("limit", [{"budget_epochs": 4}, {"budget_seconds": 1.0}])
def test_what_spends_the_rest_of_a_budget_is_not_held(
    worker: SharedStorage, clock: Clock, limit: dict[str, float]
) -> None:
    _, lease, box = held_by(worker, clock, **limit)
    states = [box.record(an_epoch(number, seconds=0.25)) for number in (1, 2, 3, 4)]
    assert states == [StudyState.RUNNING] * 3 + [StudyState.STOPPED]
    assert recorded(worker, lease) == [1, 2, 3, 4]


def test_nothing_is_held_beyond_the_deadline(
    worker: SharedStorage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "HELD_SECONDS", 3600.0)
    with worker.backend.read() as session:
        now = session.scalar(select(database_now())) or 0.0
    _, lease, box = held_by(worker, clock, deadline=now + 60.0)
    for number in (1, 2):
        box.record(an_epoch(number))
    assert recorded(worker, lease) == [1]
    clock.now += 60.0
    box.record(an_epoch(3))  # which is held anew where the one before it has just been written
    wait_until(lambda: recorded(worker, lease)[:2] == [1, 2])
    box.flush()
    assert recorded(worker, lease) == [1, 2, 3]


# -- What a trial does at its ends


def test_a_trials_last_epoch_is_on_record_at_once_with_all_before_it(
    storage_url: str, tmp_path: Path, clock: Clock
) -> None:
    bench = bench_on(storage_url, tmp_path)
    to = bench.reporter(clock=clock)
    verdicts = [to.report(result(epoch), lambda: state(1)) for epoch in range(1, EPOCHS + 1)]
    assert verdicts == [Verdict.GO_ON] * EPOCHS
    assert [epoch for epoch, *_ in bench.recorded()] == [*range(1, EPOCHS + 1)]


def test_an_epoch_that_a_framework_may_go_on_after_is_not_held(storage_url: str, tmp_path: Path, clock: Clock) -> None:
    bench = bench_on(storage_url, tmp_path)
    to = bench.reporter(clock=clock)
    for epoch in (1, 2, 3):
        to.report(replace(result(epoch), at_once=True), None)
        assert [number for number, *_ in bench.recorded()] == [*range(1, epoch + 1)]


def test_a_trial_that_ends_by_itself_leaves_all_its_epochs(storage_url: str, tmp_path: Path, clock: Clock) -> None:
    bench = bench_on(storage_url, tmp_path)
    to = bench.reporter(clock=clock)
    for epoch in (1, 2, 3):
        to.report(result(epoch), None)
    assert [epoch for epoch, *_ in bench.recorded()] == [1]
    to.finish()
    assert [epoch for epoch, *_ in bench.recorded()] == [1, 2, 3]


def test_a_loser_is_judged_by_every_epoch_and_pruned_with_all_on_record(
    storage_url: str, tmp_path: Path, clock: Clock
) -> None:
    bench, pruner = bench_on(storage_url, tmp_path), Loser(at=3)
    to = bench.reporter(pruner, clock)
    assert [to.report(result(epoch), None) for epoch in (1, 2, 3)] == [Verdict.GO_ON, Verdict.GO_ON, Verdict.PRUNE]
    assert pruner.seen == [dict.fromkeys(range(1, n + 1), 0.5) for n in (1, 2, 3)]
    assert [epoch for epoch, *_ in bench.recorded()] == [1, 2, 3]


class Counting(Strategy):
    """Keeps how many epochs it was told to be left."""

    def __init__(self) -> None:
        self.left: list[float] = []

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        raise AssertionError

    def verdict(self, number: int, seen: Sequence[Seen], left: Left, may_pause: bool = True) -> strategy.Verdict:
        self.left.append(left.epochs)
        return strategy.Verdict.GO_ON


@pytest.mark.parametrize("looks_every", [0.0, 3600.0])
def test_what_a_strategy_is_told_to_be_left_does_not_depend_on_what_is_held(
    storage_url: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, looks_every: float
) -> None:
    monkeypatch.setattr(judge, "HELD_SECONDS", looks_every)
    monkeypatch.setattr(judge, "TRAINING_SHARE", 0.0)
    bench, counting = bench_on(storage_url, tmp_path), Counting()
    with bench.storage.backend.write() as session:
        session.execute(update(StudyRow).values(budget_epochs=20))
    to = bench.reporter(clock=clock, judge=judge.Judge(bench.storage, bench.trial.study, lambda *_: counting))
    for epoch in (1, 2, 3, 4):
        to.report(result(epoch), None)
    assert counting.left == [20, 19, 18, 17]
    to.finish()


def test_an_owner_that_must_stop_within_an_epoch_leaves_a_checkpoint_after_what_was_held(
    storage_url: str, tmp_path: Path, clock: Clock
) -> None:
    bench = bench_on(storage_url, tmp_path)
    to = bench.reporter(clock=clock)
    for epoch in (1, 2):
        to.report(result(epoch), lambda: state(1))
    bench.interrupt.request("SIGTERM")
    bench.interrupt._since = -math.inf  # long ago
    to.between_batches(5, lambda: {"batch": 5})
    assert bench.adopted().reporter().restore() == {"batch": 5}
    assert [epoch for epoch, *_ in bench.recorded()] == [1, 2]


def test_a_checkpoint_that_is_due_has_what_it_goes_on_after_on_record(
    storage_url: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_on(storage_url, tmp_path)
    to = bench.reporter(clock=clock)
    for epoch in (1, 2):
        to.report(result(epoch), lambda: state(1))
    monkeypatch.setattr(pace, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(pace, "TRAINING_SHARE", 0.0)
    to.between_batches(3, lambda: {"batch": 3})
    assert [epoch for epoch, *_ in bench.recorded()] == [1, 2]
    to.finish()
    assert bench.files() == ["state-0002-000003.g1.pt"]


def test_a_stop_that_is_heard_of_while_an_epoch_is_held_leaves_a_checkpoint_of_it(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "HELD_SECONDS", 0.2)
    bench = bench_on(storage_url, tmp_path)
    to = bench.reporter()
    to.report(result(1), lambda: state(1))
    steering.stop(bench.storage, bench.record.study_id, "by a test", "bo")
    for last in range(2, EPOCHS):
        said = to.report(result(last), lambda: state(1))
        if said is Verdict.HAND_BACK:
            break
        wait_until(lambda last=last: len(bench.recorded()) == last)  # type: ignore[misc]
    assert said is Verdict.HAND_BACK
    assert bench.files() == [f"state-000{last}.g1.pt"]
    assert bench.storage.checkpoints(bench.lease)[0].epoch == last
