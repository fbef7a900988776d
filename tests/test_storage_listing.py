"""All studies at a glance and a study's trials, those enqueued, and a study that is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event
from storage_crew import PROCESSES, Crew, enqueue_at_once, train_until_lost
from storage_places import DONE, SPEC, an_epoch, dialin_rows, fresh, make_study, optuna_study, run_trial, worker_on

from storage import queries, steering, studies
from storage.claims import BudgetSpent, LeaseLost, Settlement
from storage.errors import UsageError
from storage.outcomes import Outcome
from storage.queries import StudyLine
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.tables import StudyState

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@contextmanager
def statements_counted(storage: SharedStorage) -> Iterator[list[str]]:
    seen: list[str] = []

    def execute(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        seen.append(sql)

    event.listen(storage.backend.engine, "after_cursor_execute", execute)
    yield seen
    event.remove(storage.backend.engine, "after_cursor_execute", execute)


def line_of(storage: SharedStorage, name: str) -> StudyLine:
    (line,) = [line for line in queries.listing(storage) if line.name == name]
    return line


# -- Listing


def test_studies_are_listed_the_oldest_first_plain_optunas_too(storage_url: str) -> None:
    worker = worker_on(storage_url)
    assert queries.listing(worker) == []
    plain = RDBStorage(worker.backend.url)
    first = optuna.create_study(study_name="theirs", storage=plain, direction="minimize")
    for value in (0.5, 0.25, 1.0):
        first.tell(first.ask(), value)
    first.tell(first.ask(), state=TrialState.FAIL)
    first.ask()
    optuna.create_study(study_name="several", storage=plain, directions=["minimize", "maximize"])
    several = optuna.load_study(study_name="several", storage=plain)
    several.tell(several.ask(), (1.0, 2.0))
    ours = make_study(worker, trials=9, first=6)
    for settlement, final in ((DONE, 0.5), (DONE, 0.75), (Settlement(Outcome.PRUNED), None)):
        run_trial(worker, ours, settlement, final)
    run_trial(worker, ours, Settlement(Outcome.ERROR, "bug"))
    optuna_study(worker, ours).ask()
    empty = make_study(worker, direction="minimize", metric="loss", objective="my.py")
    steering.stop(worker, empty.study_id, "lunch", "bo")

    found = queries.listing(worker)
    plain_one = StudyLine("theirs", None, None, "", 4, 1, 0, None, False, None, "minimize", 0.25, None)
    assert found[0] == plain_one
    assert found[1] == replace(
        plain_one, name="several", settled=1, running=0, direction="minimize, maximize", best=None
    )
    assert found[2:] == [
        StudyLine(
            name=ours.name,
            objective="digits",
            state=StudyState.RUNNING,
            reason="",
            settled=3,  # the error's ticket was returned
            running=1,
            waiting=1,
            trials=9,
            finished=False,
            metric="accuracy",
            direction="maximize",
            best=0.75,
            created_at=ours.created_at,
            held=1,
        ),
        StudyLine(
            name=empty.name,
            objective="my.py",
            state=StudyState.STOPPED,
            reason="lunch",
            settled=0,
            running=0,
            waiting=0,
            trials=4,
            finished=False,
            metric="loss",
            direction="minimize",
            best=None,
            created_at=empty.created_at,
        ),
    ]


def test_a_study_is_listed_as_finished_as_status_says(worker: SharedStorage) -> None:
    study = make_study(worker, trials=2)
    run_trial(worker, study)
    mine = optuna_study(worker, study)
    last = mine.ask()
    assert not line_of(worker, study.name).finished
    worker.settle(mine, last, DONE, 0.5)
    assert line_of(worker, study.name).finished
    assert queries.status(worker, fresh(worker, study)).finished


def test_a_listing_takes_as_many_statements_for_many_studies_as_for_one(storage_url: str) -> None:
    worker = worker_on(storage_url)
    make_study(worker)
    with statements_counted(worker) as few:
        queries.listing(worker)
    for _ in range(5):
        run_trial(worker, make_study(worker, first=3))
    with statements_counted(worker) as many:
        assert len(queries.listing(worker)) == 6
    assert [sql for sql in many if sql.startswith("SELECT")] == [sql for sql in few if sql.startswith("SELECT")]
    assert len(many) < 8


def test_trials_with_a_log_are_told_the_newest_first_with_their_states(worker: SharedStorage) -> None:
    study = make_study(worker, trials=9, first=7)
    assert queries.logged(worker, study) == []
    run_trial(worker, study)
    for outcome in (Outcome.PRUNED, Outcome.OUT_OF_MEMORY):
        run_trial(worker, study, Settlement(outcome))
    mine = optuna_study(worker, study)
    mine.ask()
    worker.hand_back(worker.lease_of(mine.ask()))
    optuna_study(RDBStorage(worker.backend.url), study).tell(mine.ask().number, state=TrialState.FAIL)
    assert queries.logged(worker, study) == [
        (5, "error"),
        (4, "adoptable"),
        (3, "running"),
        (2, "out_of_memory"),
        (1, "pruned"),
        (0, "complete"),
    ]


# -- Enqueueing


def test_an_enqueued_trial_is_the_next_and_suggests_what_it_was_given(worker: SharedStorage) -> None:
    study = make_study(worker)
    run_trial(worker, study)
    assert studies.enqueue(worker, study, {"x": 0.25, "c": "b"}) == 1
    trial = optuna_study(worker, study).ask()
    with worker.sampling(trial):
        assert (trial.number, trial.suggest_float("x", 0, 1)) == (1, 0.25)
        assert trial.suggest_categorical("c", ["a", "b", "c"]) == "b"
        trial.suggest_float("y", 0, 1)


def test_processes_that_enqueue_at_once_get_numbers_of_their_own(common_url: str, crew: Crew) -> None:
    study = make_study(open_storage(common_url))
    numbers = [number for process in crew(enqueue_at_once, common_url, study.name, 4) for number in process]
    assert sorted(numbers) == list(range(4 * PROCESSES))


def test_a_trial_enqueued_on_a_finished_study_waits_for_a_larger_budget(worker: SharedStorage) -> None:
    study = make_study(worker, trials=1)
    run_trial(worker, study)
    number = studies.enqueue(worker, study, {"x": 0.25})
    status = queries.status(worker, fresh(worker, study))
    assert (status.waiting, status.finished, status.settled) == (1, True, 1)
    line = line_of(worker, study.name)
    assert (line.waiting, line.finished) == (1, True)
    with pytest.raises(BudgetSpent):
        optuna_study(worker, study).ask()
    steering.resume(worker, study.study_id, Wish(more=1), "bo")
    assert run_trial(worker, study).number == number
    status = queries.status(worker, fresh(worker, study))
    assert (status.waiting, status.finished, status.settled) == (0, True, 2)


# -- Deleting


def test_a_deleted_study_leaves_nothing_and_its_name_is_free(storage_url: str) -> None:
    worker = worker_on(storage_url)
    kept = make_study(worker)
    run_trial(worker, kept)
    before = dialin_rows(worker)
    study = make_study(worker, first=2)
    run_trial(worker, study)
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1))
    studies.delete(open_storage(storage_url), study)
    assert dialin_rows(worker) == before
    assert studies.names(worker) == [kept.name]
    with pytest.raises(LeaseLost):
        worker.record_epoch(lease, an_epoch(2))
    worker.let_go(lease)
    again = studies.create(worker, SPEC, name=study.name, stem="")
    assert run_trial(worker, again).number == 0


def test_a_study_that_is_gone_cannot_be_deleted_or_enqueued_on(worker: SharedStorage) -> None:
    study = make_study(worker)
    studies.delete(worker, study)
    with pytest.raises(UsageError, match=f"study '{study.name}' is gone: somebody deleted it"):
        studies.delete(worker, study)
    with pytest.raises(UsageError, match=f"study '{study.name}' is gone: somebody deleted it"):
        studies.enqueue(worker, study, {})


def test_a_study_is_deleted_while_processes_train_it(common_url: str, crew: Crew) -> None:
    storage = open_storage(common_url)
    study = make_study(storage, trials=20)
    said = crew(train_until_lost, common_url, study.name)
    assert sorted(said) == ["deleted", *["lost"] * (PROCESSES - 1)]
    assert study.name not in [line.name for line in queries.listing(storage)]
