"""A search from what a person asks for to its end: what `dialin run`, `dialin resume` and `search.run` are thin over.

Everything is checked before a study is made, in an order that tells mistakes early. The parent imports no torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from search import children, launch, options, printing, ray_cluster, space_changes
from search.assignment import Assignment
from search.by_value import ByValue
from search.crew import Crew
from search.fleet import Fleet
from search.foresight import large_imports
from search.launch import Ending
from search.place import Place as Place
from search.preflight import NEW_DATABASE, NOTHING, Known, Preflight, try_in_child
from search.ray_fleet import RayFleet
from search.samplers import quiet_optuna
from search.terms import MoreOfStudy, NewStudy, deadline_on
from storage import history, matching, queries, stalling, steering, studies
from storage.errors import UsageError
from storage.queries import StudyStatus
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec
from storage.urls import parse, sqlite_file


@dataclass(frozen=True)
class Ready:
    """A study that exists, with an objective that works, ready to be trained."""

    storage: SharedStorage
    study: StudyRecord
    found: Preflight
    assignment: Assignment
    place: Place

    def start(self, console: Console) -> Crew:
        """Start its workers. Raises DialinError."""
        if self.place.on is None:
            return Fleet(self.storage, self.assignment, self.found.plan.slots)
        tell = partial(printing.say, console)
        return RayFleet(self.storage, self.assignment, self.place.placement, self.place.on, self.found.sha256, tell)


def begin(
    console: Console,
    objective: str | ByValue,
    wanted: NewStudy,
    place: Place,
    submitted_by: str = "",
    storage: SharedStorage | None = None,
) -> Ready:
    """Try the objective on a batch and make a study of it.

    `submitted_by`: who has put it into the queue. `storage`: that of the place, if it is open already.

    Raises:
        DialinErrors: whatever is wrong with what was asked for; then there is no study.
    """
    quiet_optuna()
    storage = _refuse_early(storage, place.storage, wanted.name)
    past = tuple(history.past_studies(storage)) if storage is not None and wanted.transfer else ()
    known = Known(past, wanted.transfer)
    found = preflight(console, objective, place, wanted.direction, wanted.space, known)
    _refuse_foreign_options(found, wanted)
    # Nothing is made before the objective is known to work.
    place.make_folders()
    storage = storage or open_storage(place.storage)
    spec = _spec(storage, wanted, found)
    first = found.first_trials[: spec.trials]
    enqueue = not found.trains_itself  # what a loop of a person's own suggests is known only when it trains
    study = studies.create(
        storage,
        spec,
        name=wanted.name,
        stem=found.name,
        first=first,
        enqueue=enqueue,
        attrs=space_changes.attrs(found.space) | (stalling.attrs(wanted.min_gain) if wanted.min_gain else {}),
        submitted_by=submitted_by,
    )
    return ready_with(storage, study, objective, found, place)


def _spec(storage: SharedStorage, wanted: NewStudy, found: Preflight) -> StudySpec:
    """What is asked for, and for the rest what the objective says itself."""
    sampler, pruner = wanted.strategy(bare=found.bare)
    return StudySpec(
        objective=found.reference,
        objective_sha256=found.sha256,
        metric=found.metric,
        direction=found.direction,
        epochs=wanted.epochs or found.epochs,
        folds=found.folds,
        trials=wanted.trials or found.trials,
        seed=wanted.seed if wanted.seed is not None else secrets.randbelow(2**31),
        sampler=sampler,
        pruner=pruner,
        until=wanted.until,
        budget_seconds=wanted.budget_seconds,
        budget_epochs=wanted.total_epochs,
        deadline=deadline_on(storage, wanted.deadline),
        space=wanted.space,
        priority=wanted.priority,
        concurrency=wanted.concurrency,
    )


def submit(
    console: Console,
    objective: str | ByValue,
    wanted: NewStudy,
    place: Place,
    by: str,
    storage: SharedStorage | None = None,
) -> tuple[SharedStorage, StudyRecord]:
    """As `begin`, but nothing is trained here: it waits for the queue's workers. It is on record who did it."""
    ready = begin(console, objective, wanted, place, by, storage)
    if ready.assignment.shared is not None:
        ready.assignment.shared.remove()
    return ready.storage, ready.study


def go_on(
    console: Console,
    storage: SharedStorage,
    study: StudyRecord,
    objective: str | ByValue,
    wanted: MoreOfStudy,
    place: Place,
) -> Ready:
    """Try the objective again, and open the study for workers.

    Raises:
        DialinErrors: whatever is wrong with what was asked for; then the study is as it was.
    """
    if study.confirms:
        raise UsageError(f"{study.name} confirms {study.confirms}: {printing.resume_command(study)} goes on with it")
    quiet_optuna()
    place.make_folders()
    status = queries.status(storage, study)
    _refuse_finished(status, wanted)
    if status.workers and (line := printing.there_already(status.workers)):
        printing.say(console, line)
    stored = space_changes.stored(storage, study)
    known = Known(sha256=study.objective_sha256 if stored is None else stored["sha256"])
    found = preflight(console, objective, place, study.direction, study.space, known)
    matching.check_same(study, found.reference, found.metric, found.direction)
    matching.check_folds(study, found.folds)
    if found.sha256 != study.objective_sha256:
        printing.say(console, f"{found.reference} has changed since {study.name} was made")
    change = space_changes.of_study(storage, study, stored, found.space, wanted.was)
    attrs = space_changes.attrs(change.space) if change is not None else {}
    _open(storage, study, wanted, options.actor(), attrs)
    for line in change.lines if change is not None else ():
        printing.say(console, line)
    return ready_with(storage, studies.find(storage, study.name), objective, found, place)


def reopen(storage: SharedStorage, study: StudyRecord, wanted: MoreOfStudy, by: str) -> None:
    """Open a study for whoever serves the queue; nothing is tried or trained here. It is on record who did it.

    Raises:
        UsageError: whatever is wrong with what was asked for; then the study is as it was.
    """
    if wanted.was:
        raise UsageError("--was is about an objective that was edited, which has to be tried here: leave --queue out")
    _refuse_finished(queries.status(storage, study), wanted)
    _open(storage, study, wanted, by)


def _open(
    storage: SharedStorage, study: StudyRecord, wanted: MoreOfStudy, by: str, attrs: Mapping[str, Any] = NOTHING
) -> None:
    """With what it is to have from now on at once: a worker of the queue may take it in the next moment."""
    if wanted.min_gain is not None:
        attrs = {**attrs, **stalling.attrs(wanted.min_gain or None)}
    steering.resume(storage, study.study_id, wanted.wish(storage, study), by, attrs)


def train(console: Console, ready: Ready) -> Ending:
    """Start its workers and show the study until they have all ended. Raises DialinError."""
    return launch.follow(console, ready.storage, ready.study, partial(ready.start, console))


def say_ending(console: Console, storage: SharedStorage, ending: Ending) -> None:
    """Where the study stands, what failed, and the best so far."""
    status = ending.status
    name, state = status.study.name, printing.state_of(status)
    printing.say(console, f"{name}: {printing.progress(status)}, {printing.counts(status.counts)}; {state}")
    for failure in status.failures:
        printing.say(console, printing.failure_line(failure))
    for best in queries.best(storage, status.study) if not status.study.confirms else ():
        printing.say(console, printing.best_line(best, status))


def ready_with(
    storage: SharedStorage, study: StudyRecord, objective: str | ByValue, found: Preflight, place: Place
) -> Ready:
    """A study with what was found out about its objective, to be trained."""
    what = objective if isinstance(objective, ByValue) else found.reference
    assignment = place.assignment(study.name, what, found.plan.threads, shared=found.shared)
    return Ready(storage, study, found, assignment, place)


def preflight(
    console: Console,
    objective: str | ByValue,
    place: Place,
    direction: str | None,
    space: Mapping[str, Any],
    known: Known = NEW_DATABASE,
) -> Preflight:
    """Try the objective on a batch in a child process, and say what is to be known of it. Raises DialinErrors."""
    data = options.data_root(place.data)
    if place.on is not None:
        ray_cluster.check(place.on, place.storage, objective, place.placement)
    children.warm_up(large_imports(objective))
    with console.status(f"checking {objective} on one batch"):
        found = try_in_child(objective, data, place.tried_on, direction, space, known)
    for note in found.notes:
        printing.say(console, note)
    return found


def _refuse_foreign_options(found: Preflight, wanted: NewStudy) -> None:
    """What only a bare function is told, or cannot be."""
    if wanted.direction not in (None, found.direction):
        raise UsageError(
            f"{found.reference} says itself that it is to {found.direction} {found.metric}: no --direction"
        )
    if wanted.epochs is not None and found.epochs == 0:
        raise UsageError(f"{found.reference} is a function, which trains as long as it will: leave --epochs out")


def _refuse_early(storage: SharedStorage | None, url: str, name: str | None) -> SharedStorage | None:
    """A database that does not open, or a name that is taken, is said before anything slow; makes no SQLite file.

    The storage, opened if it is not; None: there is no database yet.
    """
    if storage is None:
        file = sqlite_file(parse(url))
        if file is not None and file.parent.is_dir() and not file.exists():
            return None
        storage = open_storage(url)
    if name is not None and name in studies.names(storage):
        raise studies.taken(name, printing.resume_command(studies.find(storage, name)))
    return storage


def _refuse_finished(status: StudyStatus, wanted: MoreOfStudy) -> None:
    study = status.study
    if wanted.trials is None and status.finished:
        raise UsageError(
            f"{study.name} is finished ({study.taken} of {study.trials} trials): "
            f"{printing.resume_command(study)} --trials +20 goes on"
        )
