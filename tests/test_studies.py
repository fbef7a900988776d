"""Studies in the database: made once under a name of their own, found, stopped, resumed, and worked on by whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import update
from storage_crew import PROCESSES, Crew, claim_among_newcomers, create_studies, take_a_place
from storage_places import DONE, SPEC, fresh, make_study, optuna_study, rows, run_trial, worker_on

from storage import matching, queue, steering, studies, workers
from storage.claims import LEASE_SECONDS, Lease, new_uuid
from storage.errors import UsageError
from storage.first_trials import FirstTrial
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.tables import StudyRow, StudyState, WorkerRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def storage(common_url: str) -> SharedStorage:
    return open_storage(common_url)


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def empty(storage_url: str) -> SharedStorage:
    """A database without studies."""
    return open_storage(storage_url)


def create(storage: SharedStorage, name: str | None = None, **changes: Any) -> studies.StudyRecord:
    return studies.create(storage, replace(SPEC, **changes), name=name, stem="digits")


# -- Names


def test_studies_are_numbered_from_1(empty: SharedStorage) -> None:
    optuna.create_study(study_name="digits-2", storage=RDBStorage(empty.backend.url))  # also plain Optuna's count
    assert create(empty).name == "digits-3"
    assert create(empty, "digits-x").name == "digits-x"
    assert create(empty).name == "digits-4"
    assert studies.names(empty) == ["digits-2", "digits-3", "digits-x", "digits-4"]


def test_processes_that_make_studies_at_once_get_names_of_their_own(common_url: str, crew: Crew) -> None:
    made = crew(create_studies, common_url, SPEC, "many", 3)
    names = [name for process in made for name in process]
    assert sorted(names) == sorted(f"many-{number}" for number in range(1, 3 * PROCESSES + 1))


def test_a_taken_name_is_an_error_that_names_resume(storage: SharedStorage) -> None:
    create(storage, "mine")
    with pytest.raises(UsageError, match="'mine' exists: go on with it by `dialin resume mine`"):
        create(storage, "mine")
    optuna.create_study(study_name="theirs", storage=RDBStorage(storage.backend.url))
    with pytest.raises(UsageError, match="'theirs' exists"):
        create(storage, "theirs")


def test_a_study_is_stored_as_asked(storage: SharedStorage) -> None:
    spec = replace(SPEC, direction="minimize", metric="loss", epochs=7, trials=9, seed=2**31 - 1, objective="./ä.py")
    spec = replace(spec, folds=5, until=0.25, budget_seconds=1.5, space={"lr": {"low": 1e-4, "high": 0.5}})
    made = studies.create(storage, spec, stem="asked", first=[FirstTrial({"x": 0.5, "c": "a"}, "default of a")])
    assert {name: getattr(made, name) for name in vars(spec)} == vars(spec)
    assert (made.taken, made.returned, made.state, made.reason) == (0, 0, StudyState.RUNNING, "")
    assert studies.find(storage, made.name) == made
    (trial,) = storage.get_all_trials(made.study_id)
    assert (trial.state, trial.system_attrs) == (TrialState.WAITING, {"fixed_params": {"x": 0.5, "c": "a"}})
    assert trial.user_attrs == {"origin": "default of a"}


def test_a_study_and_its_first_trials_are_one_transaction(empty: SharedStorage) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        studies.create(empty, SPEC, stem="digits", first=[FirstTrial({"x": 0.5}), FirstTrial({"x": object()})])
    assert studies.names(empty) == []
    assert rows(empty, StudyRow) == []


def test_two_studies_of_one_name_never_share_a_folder(storage: SharedStorage) -> None:
    first = create(storage, "a/b c")
    storage.delete_study(first.study_id)
    second = create(storage, "a/b c")
    assert first.folder != second.folder
    assert second.folder.startswith("a_b_c-")


def test_a_study_is_not_taken_for_a_deleted_one_of_its_id(empty: SharedStorage) -> None:
    worker = worker_on(empty.backend.url)
    old = create(worker)
    for value in (0.5, 0.75):
        run_trial(worker, old, value=value)
    assert [trial.value for trial in empty.get_all_trials(old.study_id)] == [0.5, 0.75]
    studies.delete(worker, old)
    new = create(worker)
    assert empty.get_all_trials(new.study_id) == []
    trial = run_trial(worker, new, value=0.25)
    assert [trial.value for trial in empty.get_all_trials(new.study_id)] == [0.25]
    assert empty.get_trial(trial._trial_id).value == 0.25


# -- Finding


def test_an_unknown_study_is_said_with_what_there_is(empty: SharedStorage) -> None:
    with pytest.raises(UsageError, match="there is no study yet: start one"):
        studies.find(empty)
    with pytest.raises(UsageError, match="no study 'digits-1': there is none yet"):
        studies.find(empty, "digits-1")
    create(empty)
    with pytest.raises(UsageError, match=r"no study 'zzz'; there is only digits-1$"):
        studies.find(empty, "zzz")
    create(empty, "other")
    with pytest.raises(UsageError, match="no study 'digit-1': did you mean 'digits-1'"):
        studies.find(empty, "digit-1")
    with pytest.raises(UsageError, match=r"no study 'zzz'; there are digits-1, other$"):
        studies.find(empty, "zzz")
    assert studies.find(empty).name == "other"


def test_a_plain_optuna_study_is_said_to_be_one(storage: SharedStorage) -> None:
    optuna.create_study(study_name="plain", storage=RDBStorage(storage.backend.url))
    with pytest.raises(UsageError, match="'plain' was made by plain Optuna and has no objective"):
        studies.find(storage, "plain")


@pytest.mark.parametrize(
    ("reference", "metric", "direction", "says"),
    [
        ("fashion_mnist", "accuracy", "maximize", "searches digits, not fashion_mnist"),
        ("digits", "accuracy", "minimize", "made to maximize accuracy, but digits now says minimize accuracy"),
        ("digits", "loss", "maximize", "made to maximize accuracy, but digits now says maximize loss"),
    ],
)
def test_another_objective_metric_or_direction_is_refused(
    storage: SharedStorage, reference: str, metric: str, direction: str, says: str
) -> None:
    study = make_study(storage)
    matching.check_same(study, "digits", "accuracy", "maximize")
    with pytest.raises(UsageError, match=says):
        matching.check_same(study, reference, metric, direction)


def test_an_objectives_file_may_lie_elsewhere(storage: SharedStorage) -> None:
    study = make_study(storage, objective="/home/a/my_model.py")
    matching.check_same(study, "/srv/b/my_model.py", "accuracy", "maximize")


# -- Stopping and going on


def test_a_stopped_study_goes_on_with_a_larger_budget(worker: SharedStorage) -> None:
    study = make_study(worker, trials=2)
    run_trial(worker, study)
    steering.stop(worker, study.study_id, "lunch", "bo")
    assert (fresh(worker, study).state, fresh(worker, study).reason) == (StudyState.STOPPED, "lunch")
    assert worker.study_state(study.study_id) is StudyState.STOPPED
    steering.resume(worker, study.study_id, Wish(), "bo")
    now = fresh(worker, study)
    assert (now.state, now.reason, now.trials) == (StudyState.RUNNING, "", 2)
    steering.resume(worker, study.study_id, Wish(more=3), "bo")
    assert fresh(worker, study).trials == 5
    steering.resume(worker, study.study_id, Wish(trials=1), "bo")
    assert fresh(worker, study).trials == 1


@pytest.mark.parametrize(("budget", "says"), [({"trials": 1}, "--trials 1 is"), ({"more": -3}, "--trials 1 is")])
def test_a_budget_below_what_is_taken_is_refused(worker: SharedStorage, budget: dict[str, Any], says: str) -> None:
    study = make_study(worker)
    for _ in range(2):
        run_trial(worker, study)
    steering.stop(worker, study.study_id, "", "bo")
    with pytest.raises(UsageError, match=f"{says} less than the 2 trials already started"):
        steering.resume(worker, study.study_id, Wish(**budget), "bo")
    assert (fresh(worker, study).trials, fresh(worker, study).state) == (4, StudyState.STOPPED)


def open_now(storage: SharedStorage) -> list[str]:
    return [study.name for study in queue.open_now(storage)]


def test_the_studies_that_have_work_are_found_for_a_worker(empty: SharedStorage) -> None:
    worker = worker_on(empty.backend.url)
    assert open_now(empty) == []
    oldest, spent, stopped = create(empty), create(empty, trials=1), create(empty)
    run_trial(worker, spent)
    steering.stop(empty, stopped.study_id, "", "bo")
    assert open_now(empty) == [oldest.name]
    leased = create(empty, trials=1)
    mine = optuna_study(worker, leased)
    trial = mine.ask()
    assert open_now(empty) == [oldest.name, leased.name], "its trial may come to be adopted"
    worker.settle(mine, trial, DONE, 0.5)
    assert open_now(empty) == [oldest.name]


def test_a_study_whose_last_trial_was_told_elsewhere_has_no_work(empty: SharedStorage) -> None:
    study = create(empty, trials=1)
    trial = optuna_study(worker_on(empty.backend.url), study).ask()
    optuna_study(RDBStorage(empty.backend.url), study).tell(trial.number, 0.5)
    assert open_now(empty) == []


# -- Workers and their places


def test_no_two_workers_hold_the_same_place(common_url: str, storage: SharedStorage, crew: Crew) -> None:
    study = make_study(storage)
    keys = [f"GPU-{study.study_id}-{number}" for number in range(PROCESSES - 2)]
    taken = crew(take_a_place, common_url, study.study_id, keys)
    assert sorted(key for key in taken if key is not None) == keys
    assert taken.count(None) == 2  # NoFreeSlot
    held = [row.slot_key for row in rows(storage, WorkerRow, WorkerRow.study_id == study.study_id)]
    assert sorted(held) == keys


def test_workers_that_come_while_others_claim_disturb_nobody(
    common_url: str, storage: SharedStorage, crew: Crew
) -> None:
    study = make_study(storage, trials=40)
    crew(claim_among_newcomers, common_url, study.name)
    assert fresh(storage, study).taken == 40
    assert [trial.state for trial in storage.get_all_trials(study.study_id)] == [TrialState.COMPLETE] * 40


def test_a_place_is_free_again_when_its_worker_ends_or_is_not_seen(storage: SharedStorage) -> None:
    study = make_study(storage)
    places = [workers.Place("cuda:0", f"GPU-{study.study_id}")]
    first, second, third, fourth = (new_uuid() for _ in range(4))
    workers.register(storage, first, study.study_id, places)
    with pytest.raises(workers.NoFreeSlot, match="every place is taken by another worker: cuda:0"):
        workers.register(storage, second, study.study_id, places)
    assert workers.end(storage, first) == 0
    workers.register(storage, second, study.study_id, places)
    with storage.backend.write() as session:
        gone = update(WorkerRow).where(WorkerRow.worker_id == second)
        session.execute(gone.values(last_seen=WorkerRow.last_seen - LEASE_SECONDS + 10))
    with pytest.raises(workers.NoFreeSlot):
        workers.register(storage, third, study.study_id, places)
    with storage.backend.write() as session:
        session.execute(gone.values(last_seen=WorkerRow.last_seen - 20))
    workers.register(storage, fourth, study.study_id, places)
    holders = {row.worker_id: row.slot_key for row in rows(storage, WorkerRow, WorkerRow.study_id == study.study_id)}
    assert holders == {first: None, second: None, fourth: places[0].key}


def test_the_first_free_place_is_taken_and_a_cpu_has_room_for_all(storage: SharedStorage) -> None:
    study = make_study(storage)
    places = [workers.Place(f"cuda:{n}", f"GPU-{study.study_id}-{n}") for n in range(2)]
    assert [workers.register(storage, new_uuid(), study.study_id, places) for _ in range(2)] == places
    cpu = [workers.Place("cpu", None)]
    assert [workers.register(storage, new_uuid(), study.study_id, cpu) for _ in range(3)] == cpu * 3


def test_no_place_is_said_to_be_taken_when_the_study_is_gone(storage: SharedStorage) -> None:
    study = make_study(storage)
    workers.register(storage, new_uuid(), make_study(storage).study_id, [workers.Place("cpu", None)])
    storage.delete_study(study.study_id)
    with pytest.raises(UsageError, match="the study is gone"):
        workers.register(storage, new_uuid(), study.study_id, [workers.Place("cpu", None)])


def test_the_trials_of_a_worker_seen_dead_may_be_adopted_at_once(common_url: str, worker: SharedStorage) -> None:
    study = make_study(worker)
    claimant = worker.backend.claimant
    assert claimant is not None
    workers.register(worker, claimant.worker_id, study.study_id, [workers.Place("cpu", None)])
    trials = [optuna_study(worker, study).ask() for _ in range(2)]
    other = worker_on(common_url)
    assert other.adopt(study.study_id) is None
    assert workers.end(other, claimant.worker_id) == 2
    adopted = [other.adopt(study.study_id) for _ in trials]
    assert {lease.trial_id for lease in adopted if isinstance(lease, Lease)} == {t._trial_id for t in trials}


def test_a_study_that_was_deleted_is_gone_also_when_another_has_its_id(sqlite_url: str) -> None:
    """SQLite gives ids again; a worker of the old study must not train the new one."""
    worker, other = worker_on(sqlite_url), open_storage(sqlite_url)
    study = make_study(other)
    assert worker.study_state(study.study_id) is StudyState.RUNNING
    other.delete_study(study.study_id)
    assert create(other, "another").study_id == study.study_id
    assert worker.study_state(study.study_id) is None
