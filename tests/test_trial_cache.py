"""A process reads a study's trials once, and later only what is new: the same as Optuna's own storage reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import delete, update
from storage_places import DONE, an_epoch, make_study, optuna_study, rows, statements, worker_on

from storage import studies, trial_cache
from storage.claims import LEASE_SECONDS
from storage.engine import database_now
from storage.optuna_internals import models, trial_id_of
from storage.shared import SharedStorage, open_storage
from storage.space_view import SpaceView
from storage.studies import StudyRecord
from storage.tables import LeaseRow
from storage.urls import full, parse

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

RUNNING_ONLY = (TrialState.RUNNING,)


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def reader(common_url: str) -> SharedStorage:
    """Another process's."""
    return open_storage(common_url)


@pytest.fixture
def plain(common_url: str) -> Iterator[RDBStorage]:
    """Optuna's own."""
    storage = RDBStorage(full(parse(common_url)))
    yield storage
    storage.engine.dispose()


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


def test_trials_are_as_optuna_reads_them(worker: SharedStorage, study: StudyRecord, plain: RDBStorage) -> None:
    ours = optuna_study(worker, study)
    trial = ours.ask()
    trial.suggest_float("rate", 1e-5, 1, log=True)
    trial.suggest_categorical("kind", ["a", None, 3])
    trial.suggest_int("width", 1, 9)
    trial.set_user_attr("said", {"it": [1, None]})
    for step, value in enumerate((0.5, math.inf, -math.inf), start=2):
        trial.report(value, step)
    worker.settle(ours, trial, DONE, math.inf)
    momentum = FloatDistribution(0, 1)
    ours.add_trial(create_trial(params={"momentum": 0.5}, distributions={"momentum": momentum}, value=-1.5))
    ours.enqueue_trial({"rate": 0.25})
    ours.ask()
    found = worker.get_all_trials(study.study_id)
    assert found == plain.get_all_trials(study.study_id)
    assert [worker.get_trial(trial_id_of(one)) for one in found] == found
    assert list(found[0].params) == ["rate", "kind", "width"]
    assert isinstance(found[0].distributions["kind"], CategoricalDistribution)


def test_what_other_programs_do_to_a_running_trial_is_seen(
    worker: SharedStorage, reader: SharedStorage, study: StudyRecord, plain: RDBStorage
) -> None:
    theirs = optuna.load_study(study_name=study.name, storage=plain)
    trial = theirs.ask()
    (first,) = reader.get_all_trials(study.study_id)
    trial.suggest_float("x", 0, 1)
    trial.report(0.25, 1)
    trial.set_user_attr("note", "a")
    (second,) = reader.get_all_trials(study.study_id)
    trial.set_user_attr("note", "b")
    (third,) = reader.get_all_trials(study.study_id)
    theirs.tell(trial, 0.5)
    (told,) = reader.get_all_trials(study.study_id)
    assert (first.params, first.intermediate_values) == ({}, {})
    assert ([*second.params], second.intermediate_values, second.user_attrs) == (["x"], {1: 0.25}, {"note": "a"})
    assert third.user_attrs == {"note": "b"}
    assert (told.state, told.value) == (TrialState.COMPLETE, 0.5)


def test_a_waiting_trial_that_another_process_starts_is_seen_to_run(
    worker: SharedStorage, reader: SharedStorage, study: StudyRecord
) -> None:
    ours = optuna_study(worker, study)
    ours.enqueue_trial({"x": 0.5})
    assert [one.state for one in reader.get_all_trials(study.study_id)] == [TrialState.WAITING]
    ours.ask()
    assert [one.number for one in reader.get_all_trials(study.study_id, states=RUNNING_ONLY)] == [0]


def test_a_deleted_trial_is_gone_and_one_that_gets_its_id_is_another(
    worker: SharedStorage, reader: SharedStorage, study: StudyRecord
) -> None:
    ours = optuna_study(worker, study)
    finished, running = ours.ask(), ours.ask()
    worker.settle(ours, finished, DONE, 0.5)
    assert len(reader.get_all_trials(study.study_id)) == 2
    with worker.backend.write() as session:
        session.execute(delete(models.TrialModel).where(models.TrialModel.trial_id == trial_id_of(running)))
    assert [one.number for one in reader.get_all_trials(study.study_id)] == [0]
    ours.ask()
    assert [one.number for one in reader.get_all_trials(study.study_id)] == [0, 2]


def test_a_study_that_gets_the_id_of_a_deleted_one_has_none_of_its_trials(
    worker: SharedStorage, reader: SharedStorage, study: StudyRecord
) -> None:
    optuna_study(worker, study).ask()
    assert len(reader.get_all_trials(study.study_id)) == 1
    studies.delete(worker, study)
    with pytest.raises(KeyError):
        reader.get_all_trials(study.study_id)
    other = make_study(worker)
    assert reader.get_all_trials(other.study_id) == []


def test_what_has_not_changed_is_not_read_again(
    worker: SharedStorage, reader: SharedStorage, study: StudyRecord
) -> None:
    ours = optuna_study(worker, study)
    for value in (0.25, 0.5):
        trial = ours.ask()
        worker.record_epoch(worker.lease_of(trial), an_epoch(1))
        worker.settle(ours, trial, DONE, value)
    ours.enqueue_trial({"x": 0.5})
    before = reader.get_all_trials(study.study_id, deepcopy=False)
    with statements(reader) as asked:
        after = reader.get_all_trials(study.study_id, deepcopy=False)
    assert len(asked) == 1, "their states"
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_an_epoch_is_three_statements(worker: SharedStorage, study: StudyRecord) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1))
    with statements(worker) as asked:
        worker.record_epoch(lease, an_epoch(2))
    assert len(asked) == 3


@pytest.mark.parametrize(("left", "renewed"), [(0.95, False), (0.85, True)])
def test_an_epoch_renews_a_lease_of_which_a_tenth_is_used(
    worker: SharedStorage, study: StudyRecord, left: float, renewed: bool
) -> None:
    lease = worker.lease_of(optuna_study(worker, study).ask())
    with worker.backend.write() as session:
        session.execute(
            update(LeaseRow)
            .where(LeaseRow.trial_id == lease.trial_id)
            .values(expires_at=database_now() + left * LEASE_SECONDS)
        )

    def expires_at() -> float:
        [row] = rows(worker, LeaseRow, LeaseRow.trial_id == lease.trial_id)
        return float(row.expires_at)

    before = expires_at()
    worker.record_epoch(lease, an_epoch(1))
    assert (expires_at() > before) is renewed


def test_the_name_of_a_study_is_looked_up_once_while_a_trial_of_it_is_held(
    worker: SharedStorage, study: StudyRecord
) -> None:
    ours = optuna_study(worker, study)
    trial = ours.ask()
    with statements(worker) as asked:
        assert worker.get_study_id_from_name(study.name) == study.study_id
    assert asked == []
    worker.settle(ours, trial, DONE, 0.5)
    studies.delete(worker, study)
    with pytest.raises(KeyError):
        worker.get_study_id_from_name(study.name)


def test_of_very_many_unfinished_trials_all_that_changes_is_seen(
    worker: SharedStorage,
    reader: SharedStorage,
    study: StudyRecord,
    plain: RDBStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_cache, "_MANY", 2)
    ours = optuna_study(worker, study)
    trials = [ours.ask() for _ in range(4)]
    reader.get_all_trials(study.study_id)
    worker.record_epoch(worker.lease_of(trials[0]), an_epoch(1))
    worker.settle(ours, trials[1], DONE, 0.5)
    with worker.backend.write() as session:
        session.execute(delete(models.TrialModel).where(models.TrialModel.trial_id == trial_id_of(trials[2])))
    ours.enqueue_trial({"x": 0.5})
    assert reader.get_all_trials(study.study_id) == plain.get_all_trials(study.study_id)


@pytest.fixture
def crowd(
    worker: SharedStorage, study: StudyRecord, plain: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> list[optuna.Trial]:
    """More trials than are read again each time, in training by another program; the worker knows them."""
    monkeypatch.setattr(trial_cache, "_FEW", 2)
    theirs = optuna.load_study(study_name=study.name, storage=plain)
    trials = [theirs.ask() for _ in range(4)]
    for trial in trials:
        trial.suggest_float("y", 0, 1)
        trial.set_user_attr("note", "a")
    for _ in range(2):
        worker.get_all_trials(study.study_id)
    return trials


def test_of_many_trials_in_training_those_with_something_new_are_read(
    worker: SharedStorage, study: StudyRecord, plain: RDBStorage, crowd: list[optuna.Trial]
) -> None:
    changes: list[Callable[[], object]] = [
        lambda: crowd[0].suggest_float("x", 0, 1),
        lambda: crowd[1].report(0.25, 1),
        lambda: crowd[2].set_user_attr("more", "b"),
        lambda: plain.set_trial_system_attr(trial_id_of(crowd[3]), "rung", 1),
        lambda: crowd[0].study.tell(crowd[0], 0.5),
        crowd[0].study.ask,
    ]
    for change in changes:
        before = {one.number: one for one in worker.get_all_trials(study.study_id, deepcopy=False)}
        change()
        after = worker.get_all_trials(study.study_id, deepcopy=False)
        assert after == plain.get_all_trials(study.study_id)
        assert sum(one is not before.get(one.number) for one in after) == 1, "the others are not made again"


def test_pruners_of_many_trials_judge_for_a_moment_by_what_was_read_last(
    worker: SharedStorage, study: StudyRecord, crowd: list[optuna.Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads() -> int:
        with worker.noting(trial_id_of(crowd[0])), statements(worker) as asked:
            worker.get_all_trials(study.study_id)
        return len(asked)

    monkeypatch.setattr(trial_cache, "_MOMENT_SECONDS", 3600.0)
    assert reads() == 0
    monkeypatch.setattr(trial_cache, "_MOMENT_SECONDS", 0.0)
    assert reads() > 0


def test_of_many_trials_in_training_what_was_changed_in_place_is_seen_later(
    worker: SharedStorage,
    study: StudyRecord,
    plain: RDBStorage,
    crowd: list[optuna.Trial],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crowd[0].set_user_attr("note", "b")
    monkeypatch.setattr(trial_cache, "_WHOLE_SECONDS", 0.0)
    assert worker.get_all_trials(study.study_id) == plain.get_all_trials(study.study_id)


def test_of_many_trials_in_training_a_workers_own_are_as_it_left_them(
    worker: SharedStorage, study: StudyRecord, plain: RDBStorage, crowd: list[optuna.Trial]
) -> None:
    mine = optuna_study(worker, study).ask()
    lease = worker.lease_of(mine)
    for value in (0.5, 0.25):
        worker.record_epoch(lease, an_epoch(1, value))
        worker.set_trial_intermediate_value(trial_id_of(crowd[1]), 1, value)
        assert worker.get_all_trials(study.study_id) == plain.get_all_trials(study.study_id)


def test_a_finished_trial_that_was_read_by_itself_is_not_read_again(worker: SharedStorage, study: StudyRecord) -> None:
    ours = optuna_study(worker, study)
    trial = ours.ask()
    worker.settle(ours, trial, DONE, 0.5)
    worker.get_trial(trial_id_of(trial))
    with statements(worker) as asked:
        [found] = worker.get_all_trials(study.study_id)
    assert found.value == 0.5
    assert len(asked) == 1, "which trials have changed"


def test_trials_come_by_number_in_whatever_order_they_were_read(
    worker: SharedStorage, reader: SharedStorage, study: StudyRecord
) -> None:
    for storage in (reader, reader, worker, reader):  # the worker knows of its own first
        storage.create_new_trial(study.study_id, create_trial(state=TrialState.COMPLETE, value=0.5))
    assert [trial.number for trial in worker.get_all_trials(study.study_id)] == [0, 1, 2, 3]
    assert [one.trial.number for one in worker.observe(study.study_id)] == [0, 1, 2, 3]


def test_while_a_recipe_is_sampled_the_trials_are_read_once(worker: SharedStorage, study: StudyRecord) -> None:
    ours = optuna_study(worker, study)
    trial = ours.ask()
    with statements(worker) as asked, worker.sampling(trial):
        trial.suggest_float("x", 0, 1)
        first = ours.get_trials()[0].params
        count = len(asked)
        trial.suggest_float("y", 0, 1)
        again = ours.get_trials()[0].params
        assert len(asked) == count
    assert (sorted(first), sorted(again)) == (["x"], ["x", "y"])


def test_what_was_read_while_a_recipe_is_sampled_is_not_changed_by_the_rest(
    worker: SharedStorage, study: StudyRecord
) -> None:
    trial = optuna_study(worker, study).ask()
    with worker.sampling(trial):
        [before] = worker.get_all_trials(study.study_id, deepcopy=False)
        x = trial.suggest_float("x", 0, 1)
        trial.set_user_attr("seen", True)
        [after] = worker.get_all_trials(study.study_id, deepcopy=False)
    assert (before.params, before.distributions, before.user_attrs) == ({}, {}, {})
    assert (after.params, after.user_attrs) == ({"x": x}, {"seen": True})


def test_what_a_suggestion_tells_of_the_space_holds_for_the_rest_of_its_recipe(
    worker: SharedStorage, study: StudyRecord
) -> None:
    ours, before = optuna_study(worker, study), CategoricalDistribution(["a", "b", "c"])
    for choice in before.choices:
        trial = create_trial(params={"kind": choice}, distributions={"kind": before}, value=0.5)
        worker.create_new_trial(study.study_id, trial)
    worker.view = SpaceView()

    def shown() -> list[Any]:
        return [one.params["kind"] for one in worker.get_all_trials(study.study_id, states=(TrialState.COMPLETE,))]

    with worker.sampling(ours.ask()):
        assert shown() == ["a", "b", "c"]
        worker.view.learn("kind", CategoricalDistribution(["a", "b"]), lambda: worker.recorded(study.study_id))
        assert shown() == ["a", "b"]
