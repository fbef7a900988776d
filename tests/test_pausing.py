"""A paused trial: nobody's, not adopted, gone on with by one worker, settled once, and no bad point to samplers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState
from pauses import paused, standing, taken, train
from sqlalchemy import select
from storage_crew import Crew, go_on_with_one, halve
from storage_places import (
    DONE,
    adopted_by,
    an_epoch,
    fresh,
    make_study,
    optuna_study,
    rows,
    run_trial,
    worker_on,
)

from storage import new_trials, pausing
from storage.claims import Checkpoint, LeaseLost, Settlement
from storage.outcomes import Outcome
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord
from storage.tables import EpochRow, LeaseRow, OwnerRow, StudyRow, TrialRow
from storage.urls import full, parse

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


class TestAPausedTrial:
    def test_has_no_lease_and_keeps_number_epochs_and_checkpoint(
        self, worker: SharedStorage, study: StudyRecord
    ) -> None:
        trial = paused(worker, study)
        mine = TrialRow.trial_id == trial._trial_id
        assert rows(worker, LeaseRow, LeaseRow.study_id == study.study_id) == []
        [row] = rows(worker, TrialRow, mine)
        assert (row.paused, row.outcome) == (1, None)
        frozen = open_storage(worker.backend.url).get_trial(trial._trial_id)
        assert (frozen.state, frozen.number, frozen.user_attrs["paused"]) == (TrialState.RUNNING, 0, "after epoch 2")
        assert frozen.intermediate_values == {1: 0.5, 2: 0.5}
        lease = taken(worker, study, 0)
        assert [checkpoint.epoch for checkpoint in worker.checkpoints(lease)] == [2, 1]

    def test_is_not_adopted_and_does_not_count_as_leased(self, worker: SharedStorage, study: StudyRecord) -> None:
        paused(worker, study)
        assert worker.adopt(study.study_id) is None
        assert (standing(worker, study).leased, standing(worker, study).paused) == (False, 1)

    def test_goes_on_under_any_worker_with_a_higher_generation(self, worker: SharedStorage, study: StudyRecord) -> None:
        trial = paused(worker, study)
        other = worker_on(worker.backend.url)
        lease = taken(other, study, 0)
        assert (lease.trial_id, lease.generation) == (trial._trial_id, 2)
        theirs = optuna_study(other, study)
        again = Trial(theirs, lease.trial_id)
        with other.sampling(again):
            assert again.suggest_float("x", 0, 1) == trial.params["x"]
        train(other, lease, 3)
        other.settle(theirs, again, DONE, 0.5)
        owners = rows(worker, OwnerRow, OwnerRow.trial_id == trial._trial_id)
        assert [owner.ending for owner in owners] == ["paused", "settled"]
        epochs = rows(worker, EpochRow, EpochRow.trial_id == trial._trial_id)
        assert [(epoch.epoch, epoch.generation) for epoch in epochs] == [(1, 1), (2, 1), (3, 2)]
        assert "paused" not in worker.get_trial(trial._trial_id).user_attrs

    def test_can_be_paused_again(self, worker: SharedStorage, study: StudyRecord) -> None:
        paused(worker, study)
        lease = taken(worker, study, 0)
        train(worker, lease, 4)
        assert pausing.pause(worker, lease)
        assert pausing.go_on(worker, study.study_id, 0, by=1) is None, "whoever chose it then did not know the rest"
        assert taken(worker, study, 0, by=2).generation == 3

    def test_is_not_written_to_by_who_let_it_go(self, worker: SharedStorage, study: StudyRecord) -> None:
        mine = optuna_study(worker, study)
        trial = mine.ask()
        lease = worker.lease_of(trial)
        train(worker, lease, 1)
        pausing.pause(worker, lease)
        with pytest.raises(LeaseLost):
            worker.record_epoch(lease, an_epoch(2))
        with pytest.raises(LeaseLost):
            worker.record_checkpoint(lease, Checkpoint(1, "late.pt", "0" * 64))
        with pytest.raises(LeaseLost):
            worker.renew(lease)
        with pytest.raises(LeaseLost):
            worker.settle(mine, trial, DONE, 0.9)
        with pytest.raises(LeaseLost):
            trial.set_user_attr("late", 1)
        with pytest.raises(LeaseLost):
            pausing.pause(worker, lease)
        assert rows(worker, TrialRow, TrialRow.trial_id == lease.trial_id)[0].paused == 1

    def test_whose_checkpoint_had_to_go_meanwhile_is_settled(self, worker: SharedStorage, study: StudyRecord) -> None:
        lease = worker.lease_of(optuna_study(worker, study).ask())
        train(worker, lease, 1)
        worker.record_epoch(lease, an_epoch(2))  # with no checkpoint of its own
        assert not pausing.pause(worker, lease)
        trial = worker.get_trial(lease.trial_id)
        assert (trial.state, trial.value) == (TrialState.PRUNED, 0.5)
        assert "its checkpoint made room" in trial.user_attrs["reason"]

    def test_that_was_adopted_meanwhile_is_not_let_go(self, common_url: str) -> None:
        dying = worker_on(common_url, lease_seconds=0.05)
        study = make_study(dying)
        lease = dying.lease_of(optuna_study(dying, study).ask())
        other = worker_on(common_url)
        theirs = adopted_by(other, study)
        with pytest.raises(LeaseLost):
            pausing.pause(dying, lease)
        other.renew(theirs)

    def test_told_by_another_program_is_not_gone_on_with(self, worker: SharedStorage, study: StudyRecord) -> None:
        trial = paused(worker, study)
        plain = RDBStorage(full(parse(worker.backend.url)))
        optuna_study(plain, study).tell(trial.number, 0.25)
        plain.engine.dispose()
        assert pausing.go_on(worker, study.study_id, 0, 1) is None
        assert standing(worker, study).paused == 0


def test_of_processes_that_want_a_paused_trial_one_gets_it(worker: SharedStorage, crew: Crew) -> None:
    study = make_study(worker)
    paused(worker, study)
    got = crew(go_on_with_one, worker.backend.url, study.study_id, 0)
    assert sorted(generation for generation in got if generation is not None) == [2]


def test_processes_that_pause_and_go_on_settle_each_trial_once(worker: SharedStorage, crew: Crew) -> None:
    study = make_study(worker, trials=24, epochs=4)
    trained = [pair for process in crew(halve, worker.backend.url, study.name) for pair in process]
    assert len(trained) == len(set(trained)), "no epoch twice"
    found = optuna_study(worker, study).trials
    assert [trial.number for trial in found] == [*range(24)]
    assert Counter(len(trial.intermediate_values) for trial in found) == {1: 12, 2: 6, 4: 6}
    assert sum(trial.state == TrialState.COMPLETE for trial in found) == 6
    assert sum(trial.state == TrialState.PRUNED for trial in found) == 18
    assert rows(worker, LeaseRow, LeaseRow.study_id == study.study_id) == []
    assert all(row.paused is None for row in rows(worker, TrialRow, TrialRow.study_id == study.study_id))
    now = fresh(worker, study)
    assert (now.taken, now.spent_epochs) == (24, 12 + 2 * 6 + 4 * 6)


class TestWhatSamplersSee:
    def test_it_is_pruned_with_its_values_so_far(self, worker: SharedStorage, study: StudyRecord) -> None:
        trial = paused(worker, study)
        pruned = (TrialState.PRUNED,)
        for states in (None, pruned):
            [seen] = worker.get_all_trials(study.study_id, deepcopy=False, states=states)
            assert (seen.state, seen.value, seen.intermediate_values) == (TrialState.PRUNED, 0.5, {1: 0.5, 2: 0.5})
            assert seen.params == trial.params
        assert worker.get_all_trials(study.study_id, states=(TrialState.RUNNING,)) == []
        [on_record] = open_storage(worker.backend.url).get_all_trials(study.study_id)
        assert on_record.state == TrialState.RUNNING

    def test_while_a_recipe_is_sampled_too(self, worker: SharedStorage, study: StudyRecord) -> None:
        paused(worker, study)
        trial = optuna_study(worker, study).ask()
        with worker.sampling(trial):
            states = [one.state for one in worker.get_all_trials(study.study_id, deepcopy=False)]
            trial.suggest_float("x", 0, 1)
        assert states == [TrialState.PRUNED, TrialState.RUNNING]

    def test_one_that_goes_on_runs_again(self, worker: SharedStorage, study: StudyRecord) -> None:
        paused(worker, study)
        other = worker_on(worker.backend.url)
        assert [one.state for one in other.get_all_trials(study.study_id)] == [TrialState.PRUNED]
        lease = taken(worker, study, 0)
        assert [one.state for one in other.get_all_trials(study.study_id)] == [TrialState.RUNNING]
        train(worker, lease, 3)
        pausing.pause(worker, lease)
        assert [len(one.intermediate_values) for one in other.get_all_trials(study.study_id)] == [3]

    def test_tpe_learns_from_it(self, worker: SharedStorage) -> None:
        """Among RUNNING ones it would count as bad, and there would be nothing to learn from."""
        study = make_study(worker, trials=20)
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=2)
        for value in (0.1, 0.9, 0.2, 0.3):
            paused(worker, study, value=value)
        below: list[int] = []
        real = optuna.samplers._tpe.sampler._split_trials

        def split(*given: Any) -> Any:
            found = real(*given)
            below.extend(trial.number for trial in found[0])
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optuna.samplers._tpe.sampler, "_split_trials", split)
            trial = optuna_study(worker, study, sampler).ask()
            with worker.sampling(trial):
                trial.suggest_float("x", 0, 1)
        assert below == [1], "the best of those that are paused"

    def test_a_strategy_sees_it_for_what_it_is(self, worker: SharedStorage, study: StudyRecord) -> None:
        paused(worker, study)
        run_trial(worker, study, Settlement(Outcome.COMPLETE, attrs={"seconds": 0.25}))
        seen = worker.observe(study.study_id)
        assert [(one.trial.state, one.paused, one.seconds) for one in seen] == [
            (TrialState.RUNNING, 1, 0.5),
            (TrialState.COMPLETE, None, 0.25),
        ]
        assert all(one.is_like(other) for one, other in zip(seen, worker.observe(study.study_id), strict=True))


def test_a_trial_begins_with_the_recipe_and_the_origin_that_it_was_claimed_for(
    worker: SharedStorage, study: StudyRecord
) -> None:
    with new_trials.beginning(worker.backend, {"x": 0.25}, "won study digits-1"):
        trial = optuna_study(worker, study).ask()
    worker.hand_back(worker.lease_of(trial))  # before it was sampled
    other = worker_on(worker.backend.url)
    adopted = Trial(optuna_study(other, study), adopted_by(other, study).trial_id)
    with other.sampling(adopted):
        assert adopted.suggest_float("x", 0, 1) == 0.25
    assert other.get_trial(adopted._trial_id).user_attrs["origin"] == "won study digits-1"


def test_an_enqueued_trial_comes_before_and_keeps_its_own(worker: SharedStorage) -> None:
    study = make_study(worker, first=1)
    with new_trials.beginning(worker.backend, {"x": 0.25}, "model"):
        first, second = optuna_study(worker, study).ask(), optuna_study(worker, study).ask()
    with worker.sampling(first):
        assert first.suggest_float("x", 0, 1) == 0.0
    assert "origin" not in first.user_attrs
    assert second.user_attrs["origin"] == "model"
    with worker.backend.read() as session:
        assert session.scalar(select(StudyRow.taken).where(StudyRow.study_id == study.study_id)) == 2
