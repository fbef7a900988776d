"""A confirmation from what a person asks for to its answer: `dialin confirm` and `Search.confirm` are thin over it.

The best recipes of a study are trained again as trials of another one, by workers as any other's; then the test split
is opened for the recipe that is preferred. Whatever is there already is not done again. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from rich.console import Console

from search import children, confirmation, confirmation_page, printing, searches, space_changes
from search.assignment import Assignment
from search.by_value import ByValue
from search.confirmation import LEAST, OPEN, Confirmation
from search.failures import RaisedError
from search.launch import Ending
from search.preflight import Known, Preflight
from search.samplers import quiet_optuna
from search.terms import refuse_beyond
from storage import confirmations, confirmed, matching, queries, studies
from storage.confirmations import ASKED_AGAIN, Link
from storage.errors import DialinError, UsageError
from storage.queries import StudyStatus
from storage.shared import SharedStorage
from storage.studies import StudyRecord, StudySpec
from storage.words import counted

TOP = SEEDS = 5


@dataclass(frozen=True)
class Wanted:
    """What a person says of a confirmation; None: as it was, else five.

    Attributes:
        top: so many of the search's best recipes. seeds: so many times each.
        test: open the test split for the winner.
        changed: also where the objective's source has changed since.
    """

    top: int | None = None
    seeds: int | None = None
    test: bool = True
    changed: bool = False

    def __post_init__(self) -> None:
        refuse_beyond("top", self.top, 1)
        if self.seeds == 1:
            raise UsageError("seeds must be at least 2, but got 1: one value says nothing of how far seeds differ")
        refuse_beyond("seeds", self.seeds, LEAST)
        refuse_beyond("top times seeds", (self.top or TOP) * (self.seeds or SEEDS), 1)


@dataclass(frozen=True)
class Plan:
    """What is to be done for a study.

    Attributes:
        there: its confirmation, where it has one already.
        link: all that is to be trained, with what was.
        new: how many recipes were not asked for before.
        left: how many trials are still to end.
        answer: what is known so far.
    """

    source: StudyRecord
    there: StudyRecord | None
    link: Link
    new: int
    left: int
    answer: Confirmation | None

    def is_open(self, test: bool) -> bool:
        """Whether anything is to be done, with `test` also with the test split."""
        closed = self.answer is not None and self.answer.winner is not None and self.answer.test is None
        return self.left > 0 or (test and closed)


def subject(storage: SharedStorage, name: str | None) -> StudyRecord:
    """The study of that name, or the newest; of a confirmation the study that it confirms.

    Raises:
        UsageError: there is none.
    """
    record = studies.find(storage, name)
    source = confirmations.source_of(storage, record) if record.confirms else record
    if source is None:
        raise UsageError(f"{record.name} confirms {record.confirms}, which is gone: name another study")
    return source


def plan(storage: SharedStorage, source: StudyRecord, wanted: Wanted) -> Plan:
    """What `wanted` comes to for a study, with what is there already.

    Raises:
        UsageError: the study is being trained, or more is there already than is asked for.
        DialinError: it has no trial that could be confirmed.
    """
    status = queries.status(storage, source)
    _refuse_while_trained(status)
    there = confirmations.of(storage, source)
    known = confirmations.link_of(storage, there.study_id) if there is not None else None
    top, seeds = wanted.top or (known.top if known else TOP), wanted.seeds or (known.seeds if known else SEEDS)
    if known is not None and (top < known.top or seeds < known.seeds):
        had = f"the best {known.top} with {known.seeds} seeds each"
        raise UsageError(f"{source.name} is confirmed with {had} already: --top and --seeds can only be more")
    best = confirmations.recipes(storage, source, top)
    if not best:
        raise DialinError(printing.nothing_ranked(status))
    link = Link(source.name, source.uid, top, seeds, tuple(best))
    link = link if known is None else known.with_all_of(link)
    if there is None:
        return Plan(source, None, link, len(link.recipes), len(link.recipes) * seeds, None)
    left = sum(seed.state in OPEN for seed in confirmed.seeds(storage, there))
    answer = confirmation.read(storage, source)
    concluded = link == known and answer is not None and answer.test is not None
    without = confirmations.MENDED if concluded else ASKED_AGAIN
    left += confirmations.lacking(storage, there, link, without)
    new = len(link.recipes) - (len(known.recipes) if known else 0)
    return Plan(source, there, link, new, left, answer)


def _refuse_while_trained(status: StudyStatus) -> None:
    living = sum(not worker.silent for worker in status.workers)
    held = sum(not trial.adoptable for trial in status.running)
    if living or held:
        name = status.study.name
        by = counted(max(living, held), "worker")
        raise UsageError(
            f"{name} is still running ({by}), and may find better recipes: confirm it when it has ended, or stop it by "
            f"`dialin stop {name}`"
        )


def confirm(
    console: Console,
    storage: SharedStorage,
    source: StudyRecord,
    wanted: Wanted,
    objective: Callable[[], str | ByValue],
    place: searches.Place,
) -> tuple[Confirmation, Ending | None]:
    """Do what is left to be done, and print the answer where all has ended; the answer, and how training ended.

    `objective` is asked for only where something is to be done. None: nothing was trained.

    Raises:
        DialinErrors: what was asked for cannot be, or the objective does not work, or is another; then nothing was
            trained. Or the test split could not be opened; then it stays closed.
    """
    planned, ending = plan(storage, source, wanted), None
    if planned.is_open(wanted.test):
        ending = _carry_out(console, storage, wanted, planned, objective(), place)
    answer = confirmation.read(storage, source)
    if answer is None:
        raise DialinError(f"the confirmation of {source.name} was deleted while it ran")
    if ending is None or ending.status.finished:
        confirmation_page.print_answer(console, answer, source, queries.status(storage, source).settled)
    return answer, ending


def _carry_out(
    console: Console,
    storage: SharedStorage,
    wanted: Wanted,
    planned: Plan,
    objective: str | ByValue,
    place: searches.Place,
) -> Ending | None:
    """Train what is left, and open the test split where all has ended."""
    quiet_optuna()
    source = planned.source
    found = _preflight(console, storage, planned, objective, place, wanted.changed)
    place.make_folders()
    ready = searches.ready_with(storage, _made(storage, planned, found), objective, found, place)
    ending = None
    if planned.left:
        say_plan(console, planned, ready.study)
        if line := printing.there_already(queries.status(storage, ready.study).workers):
            printing.say(console, line)
        ending = searches.train(console, ready)
        searches.say_ending(console, storage, ending)
    answer = confirmation.read(storage, source)
    if wanted.test and answer is not None and answer.finished and answer.winner is not None and answer.test is None:
        with console.status(f"opening the test split for trial {answer.winner.trial}"):
            _open_test_split(ready.assignment, found.plan.slots[0].devices[0], answer.winner.trial, answer.rivals)
    return ending


def _preflight(
    console: Console,
    storage: SharedStorage,
    planned: Plan,
    objective: str | ByValue,
    place: searches.Place,
    changed: bool,
) -> Preflight:
    source = planned.source
    found = searches.preflight(console, objective, place, source.direction, source.space, Known(transfer=False))
    matching.check_same(source, found.reference, found.metric, found.direction)
    matching.check_folds(source, found.folds)
    before = planned.there or source
    stored = space_changes.stored(storage, before)
    known = {before.objective_sha256, *([stored["sha256"]] if stored is not None else [])}
    if found.sha256 in known:
        if len(known) > 1:
            printing.say(console, f"{found.reference} was edited while {before.name} was trained: its trials had both")
        return found
    if not changed:
        raise UsageError(
            f"{found.reference} has changed since {before.name} was trained, and its recipes may come to something "
            "else now: go back to what it was, or train them with what it is by --changed"
        )
    printing.say(console, f"{found.reference} has changed since {before.name} was trained: this trains what it is now")
    return found


def _made(storage: SharedStorage, planned: Plan, found: Preflight) -> StudyRecord:
    """The confirmation, with all that is to be trained on record."""
    source, link = planned.source, planned.link
    if planned.there is not None:
        record = confirmations.ask(storage, planned.there, link) if planned.left else planned.there
    else:
        spec = StudySpec(
            objective=found.reference,
            objective_sha256=found.sha256,
            metric=source.metric,
            direction=source.direction,
            epochs=source.epochs,
            folds=source.folds,
            trials=planned.left,
            seed=fresh_seed(source.seed),
            sampler="random",
            pruner="none",
            space=source.space,
        )
        record = confirmations.begin(storage, spec, link)
    space_changes.note(storage, record, found.space)
    return record


def fresh_seed(seed: int) -> int:
    """The seed of a search's confirmation: it follows from the search's, and gives other seeds than its trials had."""
    return int.from_bytes(hashlib.sha256(f"confirm {seed}".encode()).digest()[:4], "big") % 2**31


def say_plan(console: Console, planned: Plan, record: StudyRecord) -> None:
    """What is about to be trained."""
    link, name = planned.link, planned.source.name
    what = f"{counted(len(link.recipes), 'recipe')} of {name}, {link.seeds} fresh seeds each"
    if len(link.recipes) < link.top:
        printing.say(console, f"{name} has only {counted(len(link.recipes), 'recipe')} that trained to the end")
    if planned.there is None:
        printing.say(console, f"{record.name} trains {what}: {counted(planned.left, 'trial')} of {_long(record)}")
        return
    new = f"; {counted(planned.new, 'recipe')} more than before" if planned.new else ""
    printing.say(console, f"{record.name} goes on with {what}: {counted(planned.left, 'trial')} left{new}")


def _long(record: StudyRecord) -> str:
    return printing.length(record) if record.epochs else "its function"


def _open_test_split(assignment: Assignment, device: str, recipe: int, rivals: Sequence[int]) -> None:
    try:
        answer = children.ask(_in_child, replace(assignment, shared=None), device, recipe, rivals)
    except children.Silent as died:
        raise DialinError(
            f"the test split stays closed: the process that was to open it ended (exit code {died.exit_code})"
        ) from None
    if answer is not None:
        message, frames, status = answer
        raise RaisedError(message, frames) if status == UsageError.exit_status else DialinError(message)


def _in_child(connection: Connection, assignment: Assignment, device: str, recipe: int, rivals: Sequence[int]) -> None:
    from search.test_split import open_in_child  # imports torch

    open_in_child(connection, assignment, device, recipe, rivals)
