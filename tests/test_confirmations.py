"""Confirmations in the database: what is enqueued, what is enqueued again, and what is on record of the test split."""

from __future__ import annotations

from collections import Counter

import optuna
import pytest
from sqlalchemy import update
from storage_crew import PROCESSES, Crew, confirm_at_once
from storage_places import SPEC, an_epoch, fresh, make_study, optuna_study, rows, worker_on

from search import confirmation, confirming
from search.confirming import Wanted
from storage import confirmations, confirmed, history, queries, steering, studies
from storage.attributes import CONFIRMS
from storage.claims import BudgetSpent, Checkpoint, Settlement
from storage.confirmations import Link
from storage.confirmed import Opened
from storage.errors import UsageError
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.provenance import trial_seed
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import CheckpointRow, StudyRow, StudyState

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(common_url: str) -> SharedStorage:
    return worker_on(common_url)


def trained(
    worker: SharedStorage,
    study: StudyRecord,
    value: float = 0.5,
    outcome: Outcome = Outcome.COMPLETE,
    x: float | None = None,
    beyond: float | None = None,
) -> optuna.trial.Trial:
    """Claim a trial and settle it with weights.

    `x`: what it suggests, else whatever it is to. `beyond`: so much it violates a constraint.
    """
    mine = optuna_study(worker, study)
    if x is not None:
        studies.enqueue(worker, study, {"x": x})
    trial: optuna.trial.Trial = mine.ask()
    with worker.sampling(trial):
        trial.set_user_attr("settings", {"lr": trial.suggest_float("x", 0, 1000)})
        if beyond is not None:
            trial.set_constraint("parameters", beyond)
    worker.record_epoch(worker.lease_of(trial), an_epoch(1, value))
    weights = Checkpoint(1, f"{study.name}-{trial.number}.pt", "0" * 64) if outcome is Outcome.COMPLETE else None
    worker.settle(mine, trial, Settlement(outcome, "why", 1, weights), value)
    return trial


@pytest.fixture
def searched(worker: SharedStorage) -> StudyRecord:
    """Four trials, of which 2 and 1 are best; the last has the best one's recipe."""
    study = make_study(worker, trials=4)
    for x, value in ((1.0, 0.5), (2.0, 0.8), (3.0, 0.9), (3.0, 0.7)):
        trained(worker, study, value, x=x)
    return fresh(worker, study)


def link(worker: SharedStorage, study: StudyRecord, top: int = 2, seeds: int = 2) -> Link:
    return Link(study.name, study.uid, top, seeds, tuple(confirmations.recipes(worker, study, top)))


def begun(worker: SharedStorage, study: StudyRecord, top: int = 2, seeds: int = 2) -> StudyRecord:
    return confirmations.begin(worker, SPEC, link(worker, study, top, seeds))


def of_recipes(worker: SharedStorage, record: StudyRecord) -> Counter[int]:
    return Counter(one.recipe for one in confirmed.seeds(worker, record))


# -- What is trained


def test_the_best_recipes_are_chosen_and_one_that_was_drawn_twice_once(
    worker: SharedStorage, searched: StudyRecord
) -> None:
    found = confirmations.recipes(worker, searched, 3)
    assert [(one.trial, one.params, one.noted) for one in found] == [
        (2, {"x": 3.0}, {"settings": {"lr": 3.0}}),
        (1, {"x": 2.0}, {"settings": {"lr": 2.0}}),
        (0, {"x": 1.0}, {"settings": {"lr": 1.0}}),
    ]
    assert confirmations.recipes(worker, searched, 9) == found


def test_all_its_trials_are_enqueued_a_round_of_all_recipes_a_seed(
    worker: SharedStorage, searched: StudyRecord
) -> None:
    record = begun(worker, searched)
    assert (record.name, record.confirms, record.trials) == (f"{searched.name}-confirm", searched.name, 4)
    seeds = confirmed.seeds(worker, record)
    assert [(one.recipe, one.state) for one in seeds] == [(2, "waiting"), (1, "waiting")] * 2
    drawn = [trained(worker, record).params["x"] for _ in range(4)]
    assert drawn == [3.0, 2.0, 3.0, 2.0]
    with pytest.raises(BudgetSpent):
        optuna_study(worker, record).ask()
    assert queries.status(worker, fresh(worker, record)).finished
    told = [one.user_attrs["origin"] for one in worker.get_all_trials(record.study_id)]
    assert told == [f"trial {n} of {searched.name}" for n in (2, 1, 2, 1)]
    again = [one.value for one in confirmed.seeds(worker, record)]
    assert again == [0.5] * 4


def test_it_is_found_by_what_it_confirms_whatever_that_is_called(worker: SharedStorage, searched: StudyRecord) -> None:
    assert confirmations.of(worker, searched) is None
    record = begun(worker, searched)
    assert confirmations.of(worker, searched) == record
    source = confirmations.source_of(worker, record)
    assert source is not None
    assert source.study_id == searched.study_id
    studies.delete(worker, searched)
    assert confirmations.source_of(worker, record) is None
    other = make_study(worker)
    assert confirmations.of(worker, other) is None


def test_asked_for_twice_it_is_one_and_the_more_of_both(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched, top=1, seeds=2)
    assert begun(worker, searched, top=2, seeds=3).study_id == record.study_id
    assert of_recipes(worker, record) == {2: 3, 1: 3}
    more = begun(worker, searched, top=1, seeds=2)
    assert (more.trials, of_recipes(worker, record)) == (6, {2: 3, 1: 3})
    found = confirmations.link_of(worker, record.study_id)
    assert found is not None
    assert (found.top, found.seeds) == (2, 3)


def test_a_name_that_another_study_has_gets_a_number(worker: SharedStorage, searched: StudyRecord) -> None:
    studies.create(worker, SPEC, name=f"{searched.name}-confirm", stem="")
    assert begun(worker, searched).name == f"{searched.name}-confirm-1"


@pytest.mark.parametrize("taken", [False, True])
def test_any_number_of_people_who_ask_at_once_get_one(
    crew: Crew, common_url: str, worker: SharedStorage, taken: bool
) -> None:
    study = make_study(worker, trials=2)
    for x in (1.0, 2.0):
        trained(worker, study, x / 10, x=x)
    if taken:
        studies.create(worker, SPEC, name=f"{study.name}-confirm", stem="")
    names = crew(confirm_at_once, common_url, study.name)
    assert names == [f"{study.name}-confirm" + "-1" * taken] * PROCESSES
    record = studies.find(worker, names[0])
    assert (record.trials, of_recipes(worker, record)) == (6, {0: 3, 1: 3})


# -- What is trained again


def test_a_seed_that_raised_is_enqueued_again_and_no_other(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched)
    assert confirmations.fill_up(worker, record.study_id), "all of them wait"
    for outcome in (Outcome.ERROR, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.COMPLETE):
        trained(worker, record, outcome=outcome)
    assert confirmations.fill_up(worker, record.study_id)
    assert [(one.recipe, one.state) for one in confirmed.seeds(worker, record)][4:] == [(2, "waiting")]
    trained(worker, record)
    assert confirmations.fill_up(worker, record.study_id) is False
    assert queries.status(worker, fresh(worker, record)).finished


def test_whoever_asks_again_has_those_again_that_never_trained(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched)
    for outcome in (Outcome.LOST, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.COMPLETE):
        trained(worker, record, outcome=outcome)
    steering.stop(worker, record.study_id, "by hand", "bo")
    wanted = link(worker, searched)
    assert confirmations.lacking(worker, record, wanted, confirmations.ASKED_AGAIN) == 2
    after = confirmations.ask(worker, record, wanted)
    assert (after.trials, after.state, after.reason) == (6, StudyState.RUNNING, "")
    assert [(one.recipe, one.state) for one in confirmed.seeds(worker, record)][4:] == [(2, "waiting")] * 2
    for _ in range(2):
        trained(worker, record)
    assert confirmations.ask(worker, record, wanted).trials == 6
    assert queries.status(worker, fresh(worker, record)).finished


def test_what_never_trained_is_counted_again_after_the_test_only_with_more_seeds(
    worker: SharedStorage, searched: StudyRecord
) -> None:
    record = begun(worker, searched, top=1)
    for outcome in (Outcome.OUT_OF_MEMORY, Outcome.COMPLETE, Outcome.COMPLETE):
        trained(worker, record, outcome=outcome)
        confirmations.ask(worker, record, link(worker, searched, top=1))
    trained(worker, confirmations.ask(worker, record, link(worker, searched, 1, 3)), outcome=Outcome.LOST)
    assert confirming.plan(worker, searched, Wanted()).left == 1
    confirmed.conclude(worker, record, Opened(2, {1: {"accuracy": 0.5}}))
    assert confirming.plan(worker, searched, Wanted()).left == 0, "another winner would open it again"
    assert confirming.plan(worker, searched, Wanted(seeds=4)).left == 2


def test_a_confirmation_that_is_gone_is_said(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched)
    studies.delete(worker, record)
    with pytest.raises(UsageError, match="is gone: somebody deleted it"):
        confirmations.ask(worker, record, link(worker, searched))


# -- What is on record


def test_each_trial_has_its_value_and_device_time(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched)
    trained(worker, record, 0.75)
    trained(worker, record, outcome=Outcome.DIVERGED)
    optuna_study(worker, record).ask()
    found = [(one.trial, one.state, one.value, one.seconds) for one in confirmed.seeds(worker, record)]
    assert found == [
        (0, "complete", 0.75, 0.25),
        (1, "diverged", None, 0.25),
        (2, "running", None, 0.0),
        (3, "waiting", None, 0.0),
    ]


def test_a_seed_that_violates_a_constraint_is_known(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched, top=1)
    for beyond in (0.25, -0.5):
        trained(worker, record, beyond=beyond)
    assert [one.feasible for one in confirmed.seeds(worker, record)] == [False, True]
    answer = confirmation.read(worker, searched)
    assert answer is not None
    assert (answer.recipes[0].violating, answer.finished) == (1, True)


def test_as_long_as_a_seed_waits_no_answer_is_whole(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched, top=1)
    trained(worker, record)
    with worker.backend.write() as session:
        session.execute(update(StudyRow).where(StudyRow.study_id == record.study_id).values(trials=1))
    assert queries.status(worker, fresh(worker, record)).finished
    answer = confirmation.read(worker, searched)
    assert answer is not None
    assert not answer.finished


def test_the_test_split_is_opened_once_for_a_recipe_and_the_others_weights_go(
    worker: SharedStorage, searched: StudyRecord
) -> None:
    record = begun(worker, searched)
    for _ in range(4):
        trained(worker, record)
    assert confirmed.opened(worker, record) == []
    first = Opened(2, {0: {"accuracy": 0.5, "f1": float("nan")}, 2: {"accuracy": 0.25}}, samples=10)
    assert confirmed.conclude(worker, record, first, rivals=[1]) == [], "more seeds may prefer the other"
    assert sorted(confirmed.conclude(worker, record, first)) == [f"{record.name}-{n}.pt" for n in (1, 3)]
    assert [one.weights for one in confirmed.seeds(worker, record)] == [True, False] * 2
    assert confirmed.conclude(worker, record, Opened(2, {0: {"accuracy": 0.9}})) == [], "it is known already"
    [known] = confirmed.opened(worker, record)
    assert known.models is not None
    assert known.models[2] == {"accuracy": 0.25}
    assert str(known.models[0]["f1"]) == "nan"
    assert (known.recipe, known.samples, known.at > 0) == (2, 10, True)
    kept = rows(worker, CheckpointRow, CheckpointRow.path.startswith(record.name))
    assert sorted(one.path for one in kept) == [f"{record.name}-{n}.pt" for n in (0, 2)]
    confirmed.conclude(worker, record, Opened(1, None, why="none"))
    assert [one.recipe for one in confirmed.opened(worker, record)] == [2, 1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        '{"study": 3}',
        '{"study": "a", "recipes": [{"trial": 1}]}',
        "[1",
        '{"study": "a", "uid": "b", "top": Infinity, "seeds": 2, "recipes": []}',
        '[{"recipe": 1, "models": {}, "samples": "many"}]',
    ],
)
def test_what_somebody_else_has_written_there_is_no_confirmation(worker: SharedStorage, text: str) -> None:
    study = make_study(worker)
    with worker.backend.write() as session:
        session.add(models.StudySystemAttributeModel(study_id=study.study_id, key=CONFIRMS, value_json=text))
        session.add(models.StudySystemAttributeModel(study_id=study.study_id, key=confirmed.TESTED, value_json=text))
    assert confirmations.link_of(worker, study.study_id) is None
    assert confirmations.of(worker, study) is None
    assert confirmed.opened(worker, fresh(worker, study)) == []
    assert confirmations.fill_up(worker, study.study_id) is False


def test_new_searches_learn_nothing_from_a_confirmation(worker: SharedStorage, searched: StudyRecord) -> None:
    record = begun(worker, searched, seeds=3)
    for _ in range(6):
        trained(worker, record)
    assert record.name not in [one.name for one in history.past_studies(worker)]


def test_no_seed_is_one_that_the_search_had(worker: SharedStorage, searched: StudyRecord) -> None:
    seeds = {trial_seed(seed, number) for seed in (0, confirming.fresh_seed(0)) for number in range(1000)}
    assert len(seeds) == 2000
    assert confirming.fresh_seed(1) == confirming.fresh_seed(1) != confirming.fresh_seed(2)
