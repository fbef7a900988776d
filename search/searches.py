"""A search from what a person asks for to its end: what `dialin run`, `dialin resume` and `search.run` are thin over.

Everything is checked before a study is made, in an order that tells mistakes early. The parent imports no torch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console

from search import children, fleet, launch, options, printing, ray_cluster, space_changes
from search.assignment import Assignment
from search.by_value import ByValue
from search.crew import Crew
from search.fleet import Fleet
from search.foresight import large_imports
from search.launch import Ending
from search.place import Place as Place
from search.preflight import NEW_DATABASE, Known, Preflight
from search.ray_fleet import RayFleet
from search.samplers import AUTO, check_names, quiet_optuna
from storage import history, matching, queries, stalling, steering, studies
from storage.errors import UsageError
from storage.queries import StudyStatus
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec
from storage.urls import parse, sqlite_file

# What an integer column holds.
MOST = 2**31 - 1


@dataclass(frozen=True)
class NewStudy:
    """What a person says of a study to be made; None is the objective's own, or a free name, or a random seed.

    `deadline` as `options.deadline_of` reads it, when the study is made. `sampler` and `pruner`: see `strategy`.
    `transfer`: start with recipes that served other studies, and those that ship with the package.

    UsageError: a number is no integer that a database's column holds, or the deadline cannot be read.
    """

    name: str | None = None
    trials: int | None = None
    epochs: int | None = None
    direction: str | None = None
    sampler: str | None = None
    pruner: str | None = None
    space: Mapping[str, Any] = field(default_factory=dict)
    until: float | None = None
    budget_seconds: float | None = None
    total_epochs: int | None = None
    deadline: str | None = None
    seed: int | None = None
    min_gain: float | None = None
    transfer: bool = True
    priority: int = 1
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("epochs", 1), ("total_epochs", 1), ("seed", 0)):
            refuse_beyond(name, getattr(self, name), least)
        steering.check_place(self.priority, self.concurrency)
        if self.name == "":
            raise UsageError("--study is the new study's name, but got an empty one")
        _read(self.deadline)
        _check_gain(self.min_gain)
        self.strategy(bare=False)

    def strategy(self, *, bare: bool) -> tuple[str, str]:
        """Sampler and pruner: Dialin's own, which needs no pruner, where neither is named.

        A `bare` function is Optuna's as it is: of its values nobody knows which epoch they are from, if any.

        Raises:
            UsageError: there is none of that name, or they do not go together.
        """
        sampler = self.sampler or ("tpe" if bare or self.pruner else AUTO)
        pruner = self.pruner or ("none" if sampler == AUTO else "hyperband")
        check_names(sampler, pruner)
        if sampler == AUTO and pruner != "none":
            raise UsageError(f"--sampler {AUTO} asks no pruner: leave --pruner out, or name another sampler")
        return sampler, pruner


@dataclass(frozen=True)
class MoreOfStudy:
    """What a person says of a study to go on with; None: as it is. UsageError: it cannot be read.

    Attributes:
        trials: "100", or "+20" for so many more.
        until: a new value at which the study stops.
        budget: "8h" of device time in all, or "+1h" on top of what there was.
        total_epochs: "500" epochs of all trials together, or "+100" on top of what there was.
        deadline: as `options.deadline_of` reads it, when the study goes on.
        was: values that knobs added to the objective had in older trials.
        min_gain: the least that more trials must be likely to gain; 0: go on whatever they gain.
        priority, concurrency: the place in the queue; a concurrency of 0 for any number of trials at once.
    """

    trials: str | None = None
    until: float | None = None
    budget: str | None = None
    total_epochs: str | None = None
    deadline: str | None = None
    was: Mapping[str, Any] = field(default_factory=dict)
    min_gain: float | None = None
    priority: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        _check_gain(self.min_gain)
        self.total_and_more()
        _total_and_more("total-epochs", self.total_epochs)
        self._seconds()
        _read(self.deadline)

    def total_and_more(self) -> tuple[int | None, int]:
        """Of trials: `50` -> (50, 0), `+50` -> (None, 50)."""
        return _total_and_more("trials", self.trials)

    def budget_epochs(self, study: StudyRecord) -> int | None:
        """Epochs that the study may have on record from its beginning; None: as it is."""
        total, more = _total_and_more("total-epochs", self.total_epochs)
        return total if not more else more + (study.budget_epochs or study.spent_epochs)

    def budget_seconds(self, study: StudyRecord) -> float | None:
        """Device time that the study may spend from its beginning; None: as it is."""
        seconds = self._seconds()
        if seconds is None or self.budget is None or not self.budget.startswith("+"):
            return seconds
        return seconds + (study.spent_seconds if study.budget_seconds is None else study.budget_seconds)

    def _seconds(self) -> float | None:
        return options.seconds_of(self.budget and self.budget.removeprefix("+"))


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


def begin(console: Console, objective: str | ByValue, wanted: NewStudy, place: Place) -> Ready:
    """Try the objective on a batch and make a study of it.

    Raises:
        DialinErrors: whatever is wrong with what was asked for; then there is no study.
    """
    quiet_optuna()
    there = _refuse_early(place.storage, wanted.name)
    past = tuple(history.past_studies(there)) if there is not None and wanted.transfer else ()
    known = Known(past, wanted.transfer)
    found = preflight(console, objective, place, wanted.direction, wanted.space, known)
    _refuse_foreign_options(found, wanted)
    # Nothing is made before the objective is known to work.
    place.make_folders()
    storage = open_storage(place.storage)
    sampler, pruner = wanted.strategy(bare=found.bare)
    spec = StudySpec(
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
    first = found.first_trials[: spec.trials]
    enqueue = not found.trains_itself  # what a loop of a person's own suggests is known only when it trains
    study = studies.create(storage, spec, name=wanted.name, stem=found.name, first=first, enqueue=enqueue)
    space_changes.note(storage, study, found.space)
    if wanted.min_gain:
        stalling.want(storage, study, wanted.min_gain)
    return ready_with(storage, study, objective, found, place)


def submit(
    console: Console, objective: str | ByValue, wanted: NewStudy, place: Place, by: str
) -> tuple[SharedStorage, StudyRecord]:
    """As `begin`, but nothing is trained here: it waits for the queue's workers. It is on record who did it."""
    ready = begin(console, objective, wanted, place)
    if ready.assignment.shared is not None:
        ready.assignment.shared.remove()
    steering.submitted(ready.storage, ready.study.study_id, by)
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
    _open(storage, study, wanted)
    if change is not None:
        space_changes.note(storage, study, change.space)
        for line in change.lines:
            printing.say(console, line)
    return ready_with(storage, studies.find(storage, study.name), objective, found, place)


def reopen(storage: SharedStorage, study: StudyRecord, wanted: MoreOfStudy) -> StudyRecord:
    """Open a study for whoever serves the queue; nothing is tried or trained here.

    Raises:
        UsageError: whatever is wrong with what was asked for; then the study is as it was.
    """
    if wanted.was:
        raise UsageError("--was is about an objective that was edited, which has to be tried here: leave --queue out")
    _refuse_finished(queries.status(storage, study), wanted)
    _open(storage, study, wanted)
    return studies.find(storage, study.name)


def _open(storage: SharedStorage, study: StudyRecord, wanted: MoreOfStudy) -> None:
    total, more = wanted.total_and_more()
    studies.resume(
        storage,
        study.study_id,
        trials=total,
        more=more,
        budget_seconds=wanted.budget_seconds(study),
        budget_epochs=wanted.budget_epochs(study),
        deadline=deadline_on(storage, wanted.deadline),
        until=wanted.until,
        priority=wanted.priority,
        concurrency=wanted.concurrency,
        by=options.actor(),
    )
    if wanted.min_gain is not None:
        stalling.want(storage, study, wanted.min_gain or None)


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
        found = fleet.preflight(objective, data, place.tried_on, direction, space, known)
    for note in found.notes:
        printing.say(console, note)
    return found


def _total_and_more(name: str, said: str | None) -> tuple[int | None, int]:
    if said is None:
        return None, 0
    if not said.removeprefix("+").isdecimal() or int(said) < 1:
        raise UsageError(f"--{name} must be a number such as 100, or +50 for 50 more, but got {said!r}")
    refuse_beyond(name, int(said), 1)
    return (None, int(said)) if said.startswith("+") else (int(said), 0)


def _read(deadline: str | None) -> None:
    """A deadline that cannot be read is said before anything slow; whether it is past, by the database's clock."""
    if deadline is not None:
        options.deadline_of(deadline, 0.0)


def deadline_on(storage: SharedStorage, said: str | None) -> float | None:
    """A deadline as a person says it, by the database's clock; None: nothing was said."""
    return None if said is None else options.deadline_of(said, studies.clock(storage))


def _check_gain(gain: float | None) -> None:
    if gain is not None and not 0 <= gain < math.inf:
        raise UsageError(f"--min-gain must be a number of at least 0, but got {gain}")


def refuse_beyond(name: str, value: Any, least: int) -> None:
    """Raises UsageError: not an integer from `least` to what a column holds; None is nobody's wish."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} must be an integer of at least {least}, but got {value!r}")
    if value > MOST:
        raise UsageError(f"{name} must be at most {MOST}, but got {value}")


def _refuse_foreign_options(found: Preflight, wanted: NewStudy) -> None:
    """What only a bare function is told, or cannot be."""
    if wanted.direction not in (None, found.direction):
        raise UsageError(
            f"{found.reference} says itself that it is to {found.direction} {found.metric}: no --direction"
        )
    if wanted.epochs is not None and found.epochs == 0:
        raise UsageError(f"{found.reference} is a function, which trains as long as it will: leave --epochs out")


def _refuse_early(url: str, name: str | None) -> SharedStorage | None:
    """A database that does not open, or a name that is taken, is said before anything slow; makes no SQLite file.

    None: there is no database yet.
    """
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
