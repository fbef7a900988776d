"""What people do to a study while it is trained: pause, stop, resume, change, and the events that say who did it."""

from __future__ import annotations

from typing import Any

import pytest
from storage_places import SPEC, an_epoch, fresh, make_study, newcomer, optuna_study, run_trial

from storage import events, queries, queue, queue_page, steering, studies
from storage.claims import StudyStopped
from storage.errors import UsageError
from storage.events import Did
from storage.shared import SharedStorage
from storage.steering import Wish
from storage.tables import StudyState

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


def test_a_paused_study_takes_no_trials_and_is_not_over(storage: SharedStorage) -> None:
    study = make_study(storage)
    run_trial(storage, study)
    storage.hand_back(storage.lease_of(optuna_study(storage, study).ask()))
    steering.pause(storage, study.study_id, "ana@desk")
    steering.pause(storage, study.study_id, "ana@desk")
    now = fresh(storage, study)
    assert (now.state, now.reason) == (StudyState.PAUSED, "by ana@desk")
    assert not queries.status(storage, now).over
    with pytest.raises(StudyStopped, match="by ana@desk"):
        optuna_study(storage, study).ask()
    assert queue.take(storage, newcomer(storage)) is None
    assert [(one.state, one.todo) for one in queue_page.look(storage).studies] == [("paused", now.trials - 1)]
    steering.resume(storage, study.study_id, Wish(), "ana@desk")
    run_trial(storage, study)
    assert [event.kind for event in events.since(storage)] == [Did.PAUSED, Did.RESUMED]


def test_what_a_study_goes_on_with_is_there_when_it_opens_and_not_before(storage: SharedStorage) -> None:
    """A worker of the queue may take it in the next moment."""
    study = make_study(storage, trials=1)
    run_trial(storage, study)
    with pytest.raises(UsageError, match="--trials 0"):
        steering.resume(storage, study.study_id, Wish(trials=0), "bo", {"source": "old"})
    assert "source" not in storage.get_study_system_attrs(study.study_id)
    for source in ("new", "newer"):
        steering.resume(storage, study.study_id, Wish(more=1), "bo", {"source": source})
        assert storage.get_study_system_attrs(study.study_id)["source"] == source


def test_what_is_stopped_or_gone_cannot_be_paused(storage: SharedStorage) -> None:
    study = make_study(storage)
    steering.stop(storage, study.study_id, "lunch", "bo")
    with pytest.raises(UsageError, match="stopped already: lunch"):
        steering.pause(storage, study.study_id, "ana")
    storage.delete_study(study.study_id)
    with pytest.raises(UsageError, match="gone"):
        steering.pause(storage, study.study_id, "ana")
    assert events.since(storage) == [], "they go with their study"


def test_a_budget_that_is_changed_opens_a_study_that_was_done(storage: SharedStorage) -> None:
    study = make_study(storage, trials=1)
    run_trial(storage, study)
    assert queue.take(storage, newcomer(storage)) is None
    steering.change(storage, study.study_id, Wish(more=2, priority=4), "ana")
    assert queue.take(storage, newcomer(storage)) == study.study_id
    [event] = events.since(storage)
    assert (event.study, event.actor, event.detail) == (study.name, "ana", "priority 4, 2 more trials")
    with pytest.raises(UsageError, match="--trials 0 is less than the 1 trials already started"):
        steering.change(storage, study.study_id, Wish(trials=0), "ana")


def test_a_stopped_study_stays_so_when_it_is_changed(storage: SharedStorage) -> None:
    study = make_study(storage, trials=2, budget_epochs=1)
    trial = optuna_study(storage, study).ask()
    storage.record_epoch(storage.lease_of(trial), an_epoch(1))
    assert fresh(storage, study).state is StudyState.STOPPED
    steering.change(storage, study.study_id, Wish(priority=7), "ana")
    now = fresh(storage, study)
    assert (now.priority, now.state) == (7, StudyState.STOPPED)


@pytest.mark.parametrize("wish", [{"priority": 0}, {"priority": 1001}, {"concurrency": -1}])
def test_a_place_that_there_is_not_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wish))} must be"):
        Wish(**wish)


def test_events_can_be_followed(storage: SharedStorage) -> None:
    study, other = (studies.create(storage, SPEC, stem="made", submitted_by=one) for one in ("ana", "bo"))
    steering.pause(storage, other.study_id, "bo")
    first, *rest = events.since(storage)
    assert (first.study, first.kind, first.detail) == (study.name, Did.SUBMITTED, "4 trials, priority 1")
    assert events.since(storage, after=first.event_id) == rest
    assert [event.study for event in events.since(storage, study_id=study.study_id)] == [study.name]
    assert events.since(storage, limit=1) == [first]
