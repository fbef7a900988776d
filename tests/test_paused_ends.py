"""What becomes of paused trials at the end of a study, and where a disk has no more room."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from pauses import paused, standing, taken, train
from sqlalchemy import update
from storage_places import (
    DONE,
    fresh,
    make_study,
    optuna_study,
    rows,
    run_trial,
    worker_on,
)

from storage import pausing, queries, queue, steering, studies
from storage.claims import BudgetSpent
from storage.limits import Limits
from storage.retention import make_room
from storage.shared import SharedStorage
from storage.steering import Wish
from storage.studies import StudyRecord
from storage.tables import CheckpointRow, StudyRow, StudyState, TrialRow
from storage.urls import full, parse

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


class TestTheEndOfAStudy:
    def end(self, storage: SharedStorage, study: StudyRecord, then: pausing.Standing | None = None) -> bool:
        return pausing.finish(storage, study.study_id, "the end", then or standing(storage, study))

    def settled(self, storage: SharedStorage, study: StudyRecord) -> list[Any]:
        rows_now = rows(storage, TrialRow, TrialRow.study_id == study.study_id)
        return [(row.outcome, row.best_epoch) for row in rows_now]

    def test_what_nobody_goes_on_with_settles_pruned(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=2)
        for value in (0.5, 0.7):
            paused(worker, study, value=value)
        assert self.end(worker, study)
        assert self.settled(worker, study) == [("pruned", 1)] * 2
        found = optuna_study(RDBStorage(full(parse(worker.backend.url))), study).trials
        assert [(trial.state, trial.value) for trial in found] == [(TrialState.PRUNED, 0.5), (TrialState.PRUNED, 0.7)]
        assert found[0].datetime_complete is not None
        assert found[0].datetime_start is not None
        assert found[0].datetime_complete >= found[0].datetime_start
        attrs = {name: found[0].user_attrs[name] for name in ("outcome", "reason", "epochs", "seconds", "best_epoch")}
        assert attrs == {
            "outcome": "pruned",
            "reason": "paused after epoch 2; the end",
            "epochs": 2,
            "seconds": 0.5,
            "best_epoch": 1,
        }
        ids = [trial._trial_id for trial in found]
        assert rows(worker, CheckpointRow, CheckpointRow.trial_id.in_(ids)) == []
        status = queries.status(worker, fresh(worker, study))
        assert (status.finished, status.counts, status.paused) == (True, {"pruned": 2}, ())
        assert pausing.settled_in_a_pause(worker, study.study_id) == [0, 1]

    def test_not_while_one_is_trained(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=2)
        paused(worker, study)
        mine = optuna_study(worker, study)
        trial = mine.ask()
        assert not self.end(worker, study)
        assert standing(worker, study).paused == 1
        worker.settle(mine, trial, DONE, 0.5)
        assert self.end(worker, study)

    def test_not_where_one_was_trained_since_it_was_judged(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=1)
        paused(worker, study)
        judged = standing(worker, study)
        train(worker, lease := taken(worker, study, 0), 3)
        pausing.pause(worker, lease)
        assert not self.end(worker, study, judged)
        assert self.end(worker, study)

    def test_not_where_a_ticket_came_back_since(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=1)
        paused(worker, study)
        judged = standing(worker, study)
        steering.resume(worker, study.study_id, Wish(more=1), "bo")
        assert not self.end(worker, study, judged)
        assert standing(worker, study).paused == 1

    def test_it_stops_where_no_trial_is_worth_starting(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=2)
        paused(worker, study)
        assert self.end(worker, study)
        now = fresh(worker, study)
        assert (now.state, now.reason) == (StudyState.STOPPED, "the end")
        assert self.settled(worker, study) == [("pruned", 1)]

    def test_a_person_who_stops_it_leaves_them_paused_and_resume_goes_on(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=1)
        paused(worker, study)
        steering.stop(worker, study.study_id, "by a test", "bo")
        assert self.end(worker, study), "and settles nothing"
        assert pausing.go_on(worker, study.study_id, 0, 1) is None
        status = queries.status(worker, fresh(worker, study))
        assert ([one.number for one in status.paused], status.finished) == ([0], False)
        steering.resume(worker, study.study_id, Wish(), "bo")
        assert taken(worker, study, 0).generation == 2

    @pytest.mark.parametrize("limit", ["budget_seconds", "budget_epochs", "until"])
    def test_a_budget_that_is_spent_settles_them(self, worker: SharedStorage, limit: str) -> None:
        limits: dict[str, Any] = {"budget_seconds": 1.0, "budget_epochs": 4, "until": 0.9}
        study = make_study(worker, trials=3, **{limit: limits[limit]})
        paused(worker, study)
        mine = optuna_study(worker, study)
        trial = mine.ask()
        train(worker, worker.lease_of(trial), 2)
        if limit == "until":
            worker.settle(mine, trial, DONE, 0.95)
        now = fresh(worker, study)
        assert now.state == StudyState.STOPPED
        first = worker.get_trial(worker.get_trial_id_from_study_id_trial_number(study.study_id, 0))
        assert first.state == TrialState.PRUNED
        assert first.user_attrs["reason"] == f"paused after epoch 2; {now.reason}"

    def test_a_deadline_that_is_past_settles_them(self, worker: SharedStorage) -> None:
        now = studies.clock(worker)
        study = make_study(worker, deadline=now + 1000)
        paused(worker, study)
        with worker.backend.write() as session:
            mine = StudyRow.study_id == study.study_id
            session.execute(update(StudyRow).where(mine).values(deadline=now - 1))
        assert not standing(worker, study).running
        assert worker.study_state(study.study_id) is StudyState.STOPPED
        assert self.settled(worker, study) == [("pruned", 1)]

    def test_a_study_with_only_paused_trials_is_open(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=1)
        paused(worker, study)
        assert study.study_id in {one.study_id for one in queue.open_now(worker)}
        with pytest.raises(BudgetSpent):
            optuna_study(worker, study).ask()
        [line] = [one for one in queries.listing(worker) if one.name == study.name]
        assert (line.running, line.paused, line.held, line.finished) == (1, 1, 0, False)
        assert queries.logged(worker, study) == [(0, "paused")]
        assert queries.trial(worker, study, 0).state == "paused"

    def test_a_settled_study_takes_more_trials(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=1)
        paused(worker, study)
        assert self.end(worker, study)
        steering.resume(worker, study.study_id, Wish(more=1), "bo")
        run_trial(worker, study)
        assert queries.status(worker, fresh(worker, study)).counts == {"complete": 1, "pruned": 1}

    def test_limits_are_known_beforehand(self, worker: SharedStorage) -> None:
        deadline = studies.clock(worker) + 1000
        study = make_study(worker, trials=3, first=1, budget_epochs=10, budget_seconds=8.0, deadline=deadline)
        paused(worker, study)
        now = standing(worker, study)
        assert (now.tickets, now.epochs, now.seconds, now.waiting) == (2, 8, 7.5, False)
        assert 900 < now.until_deadline <= 1000
        assert now.may_start
        assert Limits() == Limits()


class TestRoomOnTheDisk:
    def test_what_is_trained_goes_first_and_the_least_promising_of_those_paused(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=5)
        for value in (0.9, 0.2, 0.5):
            paused(worker, study, epochs=1, value=value)
        trial = optuna_study(worker, study).ask()
        train(worker, worker.lease_of(trial), 1, 0.99, size=10)
        record = fresh(worker, study)
        assert make_room(worker, record, 30, False) == [], "each is the last of its trial"
        assert len(make_room(worker, record, 30, True)) == 1
        assert worker.checkpoints(worker.lease_of(trial)) == []
        assert standing(worker, study).paused == 3
        assert len(make_room(worker, record, 20, True)) == 1
        states = [one.trial.state for one in worker.observe(study.study_id)][:3]
        assert states == [TrialState.RUNNING, TrialState.PRUNED, TrialState.RUNNING]
        [row] = rows(worker, TrialRow, TrialRow.study_id == study.study_id, TrialRow.outcome.is_not(None))
        assert (row.outcome, row.reason) == (
            "pruned",
            "paused after epoch 1; the limit of the disk left no room for it",
        )

    def test_what_a_paused_trial_can_spare_goes_before(self, worker: SharedStorage) -> None:
        study = make_study(worker, trials=5)
        paused(worker, study, epochs=2)
        [path] = make_room(worker, fresh(worker, study), 10, True)
        assert path.endswith("state-1.g1.pt")
        assert standing(worker, study).paused == 1
