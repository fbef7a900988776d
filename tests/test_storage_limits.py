"""What ends a study before its trials are spent: a value that is good enough, device time that is used up."""

from __future__ import annotations

import math

import pytest
from optuna.storages import RDBStorage
from storage_crew import PROCESSES, Crew, settle_at_once, train_until_stopped
from storage_places import DONE, an_epoch, fresh, make_study, optuna_study, rows, run_trial, worker_on

from search import options
from storage import limits, queries, steering, studies
from storage.claims import Lease, Settlement, StudyStopped
from storage.errors import UsageError
from storage.limits import Limits
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.steering import Wish
from storage.studies import StudyRecord
from storage.tables import LeaseRow, StudyState, TrialRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

HOUR = 3600.0


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def ended(storage: SharedStorage, study: StudyRecord) -> str | None:
    """The reason for which the study was stopped, None while it runs."""
    now = fresh(storage, study)
    return now.reason if now.state is StudyState.STOPPED else None


def spend(worker: SharedStorage, study: StudyRecord, seconds: float) -> StudyState:
    """Record an epoch that took so long."""
    return worker.record_epoch(worker.lease_of(optuna_study(worker, study).ask()), an_epoch(1, seconds=seconds))


# -- Until a value


@pytest.mark.parametrize(
    ("direction", "below", "values"), [("maximize", 0.94, (0.95, 0.99)), ("minimize", 0.96, (0.95, 0.5))]
)
def test_a_trial_as_good_as_asked_for_stops_the_study(
    worker: SharedStorage, direction: str, below: float, values: tuple[float, ...]
) -> None:
    for value in values:
        study = make_study(worker, direction=direction, until=0.95)
        run_trial(worker, study, value=below)
        assert ended(worker, study) is None
        run_trial(worker, study, value=value)
        assert ended(worker, study) == "accuracy reached 0.95 in trial 1"
        with pytest.raises(StudyStopped, match=r"accuracy reached 0\.95 in trial 1"):
            optuna_study(worker, study).ask()


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.COMPLETE])
def test_only_a_complete_trials_value_counts(worker: SharedStorage, outcome: Outcome) -> None:
    study = make_study(worker, until=0.5)
    mine = optuna_study(worker, study)
    trial = mine.ask()
    worker.record_epoch(worker.lease_of(trial), an_epoch(1, 0.9))
    worker.settle(mine, trial, Settlement(outcome), 0.9)
    assert ended(worker, study) is None


def test_an_infinite_value_is_not_good_enough(worker: SharedStorage) -> None:
    study = make_study(worker, until=0.5)
    run_trial(worker, study, value=math.inf)
    assert ended(worker, study) is None


def test_a_trial_that_ends_in_a_stopped_study_keeps_its_reason(worker: SharedStorage) -> None:
    study = make_study(worker, until=0.5)
    mine = optuna_study(worker, study)
    trial = mine.ask()
    steering.stop(worker, study.study_id, "lunch", "bo")
    worker.settle(mine, trial, DONE, 0.9)
    assert ended(worker, study) == "lunch"


def test_of_processes_that_reach_the_value_at_once_one_gives_the_reason(common_url: str, crew: Crew) -> None:
    worker = worker_on(common_url)
    study = make_study(worker, until=0.5, trials=20)
    settled = crew(settle_at_once, common_url, study.name, 0.75)
    assert sorted(number for number, _ in settled) == list(range(PROCESSES))
    assert {state for _, state in settled} == {StudyState.STOPPED}
    assert ended(worker, study) in {f"accuracy reached 0.5 in trial {number}" for number in range(PROCESSES)}
    assert queries.status(worker, fresh(worker, study)).counts == {"complete": PROCESSES}
    assert rows(worker, LeaseRow, LeaseRow.study_id == study.study_id) == []


# -- Device time


def test_an_epoch_costs_its_seconds_on_each_of_its_devices(worker: SharedStorage) -> None:
    study = make_study(worker)
    lease = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(lease, an_epoch(1, seconds=1.5))
    worker.record_epoch(lease, an_epoch(2, seconds=2.0, devices=4))
    worker.record_epoch(lease, an_epoch(2, seconds=1.0))  # trained again by an adopter: paid again
    assert fresh(worker, study).spent_seconds == 1.5 + 2.0 * 4 + 1.0


def test_the_epoch_that_spends_the_budget_stops_the_study_and_says_so(worker: SharedStorage) -> None:
    study = make_study(worker, budget_seconds=8 * HOUR)
    assert spend(worker, study, 8 * HOUR - 1) is StudyState.RUNNING
    assert ended(worker, study) is None
    assert spend(worker, study, 1) is StudyState.STOPPED
    assert ended(worker, study) == "the budget of 8 h of device time is spent"
    with pytest.raises(StudyStopped, match="the budget of 8 h"):
        optuna_study(worker, study).ask()
    assert fresh(worker, study).spent_seconds == 8 * HOUR


def test_the_trial_that_spends_the_budget_may_still_be_settled(worker: SharedStorage) -> None:
    study = make_study(worker, budget_seconds=1)
    mine = optuna_study(worker, study)
    trial = mine.ask()
    assert worker.record_epoch(worker.lease_of(trial), an_epoch(1, seconds=1)) is StudyState.STOPPED
    worker.settle(mine, trial, DONE, 0.5)
    assert queries.status(worker, fresh(worker, study)).counts == {"complete": 1}


def test_processes_that_spend_a_budget_together_lose_nothing_of_it(common_url: str, crew: Crew) -> None:
    worker = worker_on(common_url)
    study = make_study(worker, budget_seconds=20.0, trials=20)
    epochs = crew(train_until_stopped, common_url, study.name, 2)
    now = fresh(worker, study)
    assert now.spent_seconds == sum(epochs) * 0.25 * 2
    # Each worker learns of the end by its next epoch at the latest.
    assert 20.0 <= now.spent_seconds < 20.0 + PROCESSES * 0.5
    assert ended(worker, study) == "the budget of 20 s of device time is spent"
    steering.resume(worker, study.study_id, Wish(limits=Limits(budget_seconds=60.0)), "bo")
    adopted = [worker.adopt(study.study_id) for _ in range(PROCESSES + 1)]
    assert sorted(lease.trial_id for lease in adopted if isinstance(lease, Lease)) == sorted(
        row.trial_id for row in rows(worker, TrialRow, TrialRow.study_id == study.study_id)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8 * HOUR, "8 h"), (1.5 * HOUR, "1.5 h"), (90, "1.5 min"), (3599, "59.98 min"), (20, "20 s"), (0.5, "0.5 s")],
)
def test_device_time_is_told_in_its_unit(seconds: float, text: str) -> None:
    assert limits.amount(seconds) == text


# -- Going on


def test_an_until_that_was_reached_is_cleared_by_resume(worker: SharedStorage) -> None:
    study = make_study(worker, until=0.5)
    run_trial(worker, study, value=0.75)
    steering.resume(worker, study.study_id, Wish(), "bo")
    assert (fresh(worker, study).until, ended(worker, study)) == (None, None)
    run_trial(worker, study, value=0.75)
    assert ended(worker, study) is None


def test_an_until_that_was_not_reached_stays(worker: SharedStorage) -> None:
    study = make_study(worker, until=0.5, direction="minimize")
    run_trial(worker, study, value=0.75)
    steering.stop(worker, study.study_id, "lunch", "bo")
    steering.resume(worker, study.study_id, Wish(), "bo")
    assert fresh(worker, study).until == 0.5


def test_an_until_reached_by_a_trial_told_elsewhere_is_cleared_by_resume(worker: SharedStorage) -> None:
    study = make_study(worker, until=0.5)
    plain = optuna_study(RDBStorage(worker.backend.url), study)
    plain.tell(plain.ask().number, 0.75)
    steering.resume(worker, study.study_id, Wish(), "bo")
    assert fresh(worker, study).until is None


def test_resume_gives_a_new_until_or_says_that_it_is_reached(worker: SharedStorage) -> None:
    study = make_study(worker, until=0.5)
    run_trial(worker, study, value=0.75)
    with pytest.raises(UsageError, match=r"--until 0\.7 is reached already, by trial 0 with 0\.75"):
        steering.resume(worker, study.study_id, Wish(limits=Limits(until=0.7)), "bo")
    assert ended(worker, study) == "accuracy reached 0.5 in trial 0"
    steering.resume(worker, study.study_id, Wish(limits=Limits(until=0.8)), "bo")
    assert (fresh(worker, study).until, ended(worker, study)) == (0.8, None)
    run_trial(worker, study, value=0.8)
    assert ended(worker, study) == "accuracy reached 0.8 in trial 1"


def test_a_spent_budget_must_be_enlarged_to_go_on(worker: SharedStorage) -> None:
    study = make_study(worker, budget_seconds=HOUR)
    spend(worker, study, 1.25 * HOUR)
    with pytest.raises(UsageError) as caught:
        steering.resume(worker, study.study_id, Wish(more=50), "bo")
    assert str(caught.value) == (
        "the budget of 1 h of device time is spent (1.25 h): "
        f"enlarge it, as by `dialin resume {study.name} --budget 2.5h`"
    )
    with pytest.raises(UsageError, match=r"--budget 1\.25 h is not more than the 1\.25 h of device time already spent"):
        steering.resume(worker, study.study_id, Wish(limits=Limits(budget_seconds=1.25 * HOUR)), "bo")
    assert fresh(worker, study).trials == study.trials
    steering.resume(worker, study.study_id, Wish(limits=Limits(budget_seconds=2 * HOUR)), "bo")
    now = fresh(worker, study)
    assert (now.state, now.budget_seconds, now.spent_seconds) == (StudyState.RUNNING, 2 * HOUR, 1.25 * HOUR)
    assert spend(worker, study, HOUR) is StudyState.STOPPED


@pytest.mark.parametrize("seconds", [20.0, 20 * 60.0, 20 * HOUR])
def test_the_larger_budget_that_is_proposed_is_one_that_the_command_takes(
    worker: SharedStorage, seconds: float
) -> None:
    study = make_study(worker, budget_seconds=seconds)
    spend(worker, study, seconds)
    with pytest.raises(UsageError) as caught:
        steering.resume(worker, study.study_id, Wish(), "bo")
    proposed = str(caught.value).rpartition("--budget ")[2].removesuffix("`")
    assert options.seconds_of(proposed) == 2 * seconds


def test_a_study_that_is_gone_is_not_resumed(worker: SharedStorage) -> None:
    study = make_study(worker)
    studies.delete(worker, study)
    with pytest.raises(UsageError, match="the study is gone"):
        steering.resume(worker, study.study_id, Wish(), "bo")


# -- While it is being paused


def test_what_the_last_epochs_reach_while_a_study_is_being_paused_ends_it(worker: SharedStorage) -> None:
    """Else it would go on beyond its goal: `resume` takes a goal that is reached for an old one."""
    good, spent = make_study(worker, until=0.4), make_study(worker, budget_epochs=1)
    trials = [optuna_study(worker, study).ask() for study in (good, spent)]
    for study in (good, spent):
        steering.pause(worker, study.study_id, "ana")
    worker.settle(optuna_study(worker, good), trials[0], DONE, 0.5)
    assert ended(worker, good) == "accuracy reached 0.4 in trial 0"
    assert worker.record_epoch(worker.lease_of(trials[1]), an_epoch(1)) is StudyState.STOPPED
    assert ended(worker, spent) == "the budget of 1 epoch is trained"
