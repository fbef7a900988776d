"""A search from what a person asks for to its end: what `dialin run`, `dialin resume` and `search.run` are thin over.

Everything is checked before a study is made, in an order that tells mistakes early. The parent imports no torch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from search import children, fleet, launch, options, printing, space_changes
from search.assignment import Assignment
from search.by_value import ByValue
from search.checkpoint_settings import CheckpointSettings
from search.devices import Slot
from search.foresight import large_imports
from search.launch import Ending
from search.preflight import NEW_DATABASE, Known, Placement, Preflight
from search.samplers import AUTO, check_names, quiet_optuna
from search.shared_data import NotPacked, Packed
from storage import history, queries, stalling, studies
from storage.errors import UsageError
from storage.queries import StudyStatus
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec
from storage.urls import DEFAULT_URL, parse, sqlite_file

# What an integer column holds.
MOST = 2**31 - 1


@dataclass(frozen=True)
class Place:
    """Where a search trains on this machine, and where its things are.

    Attributes:
        storage: the database's URL.
        files: root folder of checkpoints and logs; None: beside the database.
        data: folder of data sets; None: the usual one.
        placement: devices and workers.
        log: names of trackers.
        hang: seconds without a batch after which a worker hangs; math.inf: never; None: the objective's.
        checkpoints: where checkpoints go, and how much they may take.
    """

    storage: str = DEFAULT_URL
    files: Path | None = None
    data: Path | None = None
    placement: Placement = field(default_factory=Placement)
    log: tuple[str, ...] = ()
    hang: float | None = None
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)

    def make_folders(self) -> None:
        """Those that are written to. Raises UsageError: one cannot be made, or that of data sets is not there."""
        options.data_root(self.data)
        self.checkpoints.make(options.make_files_root(self.files, self.storage))

    def assignment(
        self,
        study: str,
        objective: str | ByValue,
        threads: int,
        slots: tuple[Slot, ...] = (),
        shared: Packed | NotPacked | None = None,
    ) -> Assignment:
        """Orders of a worker here; see `Assignment`."""
        return Assignment(
            storage=self.storage,
            study=study,
            objective=objective,
            places=slots,
            threads=threads,
            files=options.files_root(self.files, self.storage),
            data=options.data_root(self.data),
            log=self.log,
            shared=shared,
            hang=self.hang,
            checkpoints=self.checkpoints,
        )


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

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("epochs", 1), ("total_epochs", 1), ("seed", 0)):
            _refuse_beyond(name, getattr(self, name), least)
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
    """

    trials: str | None = None
    until: float | None = None
    budget: str | None = None
    total_epochs: str | None = None
    deadline: str | None = None
    was: Mapping[str, Any] = field(default_factory=dict)
    min_gain: float | None = None

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
    """A study that exists, with an objective that works, ready to be trained on this machine."""

    storage: SharedStorage
    study: StudyRecord
    found: Preflight
    assignment: Assignment


def begin(console: Console, objective: str | ByValue, wanted: NewStudy, place: Place) -> Ready:
    """Try the objective on a batch and make a study of it.

    Raises:
        DialinErrors: whatever is wrong with what was asked for; then there is no study.
    """
    quiet_optuna()
    there = _refuse_early(place.storage, wanted.name)
    past = tuple(history.past_studies(there)) if there is not None and wanted.transfer else ()
    known = Known(past, wanted.transfer)
    found = _preflight(console, objective, place, wanted.direction, wanted.space, known)
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
        deadline=_deadline(storage, wanted.deadline),
        space=wanted.space,
    )
    first = found.first_trials[: spec.trials]
    enqueue = not found.trains_itself  # what a loop of a person's own suggests is known only when it trains
    study = studies.create(storage, spec, name=wanted.name, stem=found.name, first=first, enqueue=enqueue)
    space_changes.note(storage, study, found.space)
    if wanted.min_gain:
        stalling.want(storage, study, wanted.min_gain)
    return _ready(storage, study, objective, found, place)


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
    quiet_optuna()
    total, more = wanted.total_and_more()
    place.make_folders()
    status = queries.status(storage, study)
    _refuse_finished(status, wanted)
    if status.workers and (line := printing.there_already(status.workers)):
        printing.say(console, line)
    stored = space_changes.stored(storage, study)
    known = Known(sha256=study.objective_sha256 if stored is None else stored["sha256"])
    found = _preflight(console, objective, place, study.direction, study.space, known)
    studies.check_same(study, found.reference, found.metric, found.direction)
    studies.check_folds(study, found.folds)
    if found.sha256 != study.objective_sha256:
        printing.say(console, f"{found.reference} has changed since {study.name} was made")
    change = space_changes.of_study(storage, study, stored, found.space, wanted.was)
    studies.resume(
        storage,
        study.study_id,
        trials=total,
        more=more,
        budget_seconds=wanted.budget_seconds(study),
        budget_epochs=wanted.budget_epochs(study),
        deadline=_deadline(storage, wanted.deadline),
        until=wanted.until,
    )
    if wanted.min_gain is not None:
        stalling.want(storage, study, wanted.min_gain or None)
    if change is not None:
        space_changes.note(storage, study, change.space)
        for line in change.lines:
            printing.say(console, line)
    return _ready(storage, studies.find(storage, study.name), objective, found, place)


def train(console: Console, ready: Ready) -> Ending:
    """Start a worker in each slot and show the study until they have all ended. Raises DialinError."""
    return launch.follow(console, ready.storage, ready.study, ready.assignment, ready.found.plan)


def say_ending(console: Console, storage: SharedStorage, ending: Ending) -> None:
    """Where the study stands, what failed, and the best so far."""
    status = ending.status
    name, state = status.study.name, printing.state_of(status)
    printing.say(console, f"{name}: {printing.progress(status)}, {printing.counts(status.counts)}; {state}")
    for failure in status.failures:
        printing.say(console, printing.failure_line(failure))
    for best in queries.best(storage, status.study):
        printing.say(console, printing.best_line(best, status))


def _ready(
    storage: SharedStorage,
    study: StudyRecord,
    objective: str | ByValue,
    found: Preflight,
    place: Place,
) -> Ready:
    what = objective if isinstance(objective, ByValue) else found.reference
    assignment = place.assignment(study.name, what, found.plan.threads, shared=found.shared)
    return Ready(storage, study, found, assignment)


def _preflight(
    console: Console,
    objective: str | ByValue,
    place: Place,
    direction: str | None,
    space: Mapping[str, Any],
    known: Known = NEW_DATABASE,
) -> Preflight:
    data = options.data_root(place.data)
    children.warm_up(large_imports(objective))
    with console.status(f"checking {objective} on one batch"):
        found = fleet.preflight(objective, data, place.placement, direction, space, known)
    for note in found.notes:
        printing.say(console, note)
    return found


def _total_and_more(name: str, said: str | None) -> tuple[int | None, int]:
    if said is None:
        return None, 0
    if not said.removeprefix("+").isdecimal() or int(said) < 1:
        raise UsageError(f"--{name} must be a number such as 100, or +50 for 50 more, but got {said!r}")
    _refuse_beyond(name, int(said), 1)
    return (None, int(said)) if said.startswith("+") else (int(said), 0)


def _read(deadline: str | None) -> None:
    """A deadline that cannot be read is said before anything slow; whether it is past, by the database's clock."""
    if deadline is not None:
        options.deadline_of(deadline, 0.0)


def _deadline(storage: SharedStorage, said: str | None) -> float | None:
    return None if said is None else options.deadline_of(said, studies.clock(storage))


def _check_gain(gain: float | None) -> None:
    if gain is not None and not 0 <= gain < math.inf:
        raise UsageError(f"--min-gain must be a number of at least 0, but got {gain}")


def _refuse_beyond(name: str, value: Any, least: int) -> None:
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
        raise studies.taken(name)
    return storage


def _refuse_finished(status: StudyStatus, wanted: MoreOfStudy) -> None:
    study = status.study
    if wanted.trials is None and status.finished:
        raise UsageError(
            f"{study.name} is finished ({study.taken} of {study.trials} trials): "
            f"{printing.resume_command(study)} --trials +20 goes on"
        )
