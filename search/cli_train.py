"""The commands that train: run, worker, resume, stop. Registered by `search.cli`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from search import children, fleet, launch, options, printing, trackers
from search.assignment import Assignment
from search.launch import Ending
from search.loading import reference_here
from search.preflight import Placement, Preflight
from search.strategy import check_names, quiet_optuna
from search.wishes import parse_space, to_json
from storage import queries, studies
from storage.errors import UsageError
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec
from storage.tables import StudyState
from storage.urls import DEFAULT_URL, parse, sqlite_file


class StudyDirection(StrEnum):
    """Which way a bare function's value is better."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


# What an integer column holds.
MOST = 2**31 - 1

Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, max=MOST, metavar="N", help="Budget of trials.", show_default="the objective's"),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs", min=1, max=MOST, metavar="N", help="Length of a full trial.", show_default="the objective's"
    ),
]
StudyName = Annotated[
    str | None,
    typer.Option("--study", metavar="NAME", help="Name of the new study.", show_default="OBJECTIVE-1, then -2, ..."),
]
Sampler = Annotated[
    str, typer.Option("--sampler", metavar="NAME", help="What proposes recipes: tpe, gp, cmaes, qmc, random.")
]
Pruner = Annotated[
    str, typer.Option("--pruner", metavar="NAME", help="What stops losing trials: hyperband, asha, median, none.")
]
Direction = Annotated[
    StudyDirection | None,
    typer.Option(
        "--direction",
        help="For a bare Optuna function: which way is better.",
        show_default="what its script says, else minimize",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=MOST,
        metavar="N",
        help="Seed of sampling and training.",
        show_default="a random one, stored",
    ),
]


def run(
    objective: options.ObjectiveName,
    study: StudyName = None,
    trials: Trials = None,
    epochs: Epochs = None,
    direction: Direction = None,
    workers: options.Workers = None,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    sampler: Sampler = "tpe",
    pruner: Pruner = "hyperband",
    fix: options.Fix = None,
    ranges: options.Range = None,
    until: options.Until = None,
    budget: options.Budget = None,
    seed: Seed = None,
    data: options.DataFolder = None,
    log: options.Log = None,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Search: make a new study of OBJECTIVE and train its trials on this machine.

    Ctrl-C gives the running trials back; `dialin resume` goes on with them.
    """
    quiet_optuna()
    check_names(sampler, pruner)
    data_root, log_to = options.data_root(data), trackers.check(log or ())
    space = to_json(parse_space(fix or (), ranges or ()))
    until, budget_seconds = options.finite(until), options.seconds_of(budget)
    _refuse_early(storage, study)
    console = Console()
    found = _preflight(console, objective, data_root, Placement(workers, devices, per_device), direction, space)
    _refuse_foreign_options(found, direction, epochs)
    # Nothing is made before the objective is known to work.
    files_root, shared = options.make_files_root(files, storage), open_storage(storage)
    spec = StudySpec(
        objective=found.reference,
        objective_sha256=found.sha256,
        metric=found.metric,
        direction=found.direction,
        epochs=epochs or found.epochs,
        folds=found.folds,
        trials=trials or found.trials,
        seed=seed if seed is not None else secrets.randbelow(2**31),
        sampler=sampler,
        pruner=pruner,
        until=until,
        budget_seconds=budget_seconds,
        space=space,
    )
    first = found.first_trials[: spec.trials]
    record = studies.create(shared, spec, name=study, stem=found.name, first_trials=first)
    _train(console, shared, record, found, storage, files_root, data_root, log_to)


def resume(
    study: options.Study = None,
    trials: Annotated[
        str | None, typer.Option("--trials", metavar="N|+N", help="New budget, or so many trials more.")
    ] = None,
    until: options.Until = None,
    budget: options.MoreBudget = None,
    objective: options.OwnObjective = None,
    workers: options.Workers = None,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    data: options.DataFolder = None,
    log: options.Log = None,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Go on with a study: trials that were left go on where they stopped, under their own numbers.

    Sampler, pruner, seed, length, and what --fix and --range said come from the study. A value of --until that was
    reached no longer stops it.
    """
    quiet_optuna()
    total, more = _budget(trials)
    until, seconds = options.finite(until), options.seconds_of(budget and budget.removeprefix("+"))
    log_to = trackers.check(log or ())
    shared = options.open_existing(storage)
    files_root, data_root = options.make_files_root(files, storage), options.data_root(data)
    record = studies.find(shared, study)
    reference = reference_here(record.objective, objective, f"dialin resume {record.name}")
    _refuse_finished(shared, record, trials)
    console = Console()
    placement = Placement(workers, devices, per_device)
    found = _preflight(console, reference, data_root, placement, record.direction, record.space)
    studies.check_same(record, found.reference, found.metric, found.direction)
    if found.sha256 != record.objective_sha256:
        printing.say(console, f"{found.reference} has changed since {record.name} was made")
    if seconds is not None and budget is not None and budget.startswith("+"):
        seconds += record.spent_seconds if record.budget_seconds is None else record.budget_seconds
    studies.resume(shared, record.study_id, trials=total, more=more, until=until, budget_seconds=seconds)
    _train(console, shared, studies.find(shared, record.name), found, storage, files_root, data_root, log_to)


def stop(study: options.Study = None, storage: options.Storage = DEFAULT_URL) -> None:
    """Stop a study on all machines: its workers hand back what they train and end. `dialin resume` goes on."""
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    if queries.status(shared, record).finished:
        typer.echo(f"{record.name} is finished: there is nothing to stop")
        return
    studies.stop(shared, record.study_id, "by `dialin stop`")
    typer.echo(
        f"{record.name} is stopped: its workers hand back their trials; go on with {printing.resume_command(record)}"
    )


def worker(
    study: options.Study = None,
    objective: options.OwnObjective = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for a study where there is none, and for the next when one ends.")
    ] = False,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    data: options.DataFolder = None,
    log: options.Log = None,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """One more worker for a study, from any machine that reaches its database.

    With several GPUs it takes one that no other worker of this database has.
    """
    from search import solo  # imports torch

    quiet_optuna()
    log_to = trackers.check(log or ())
    shared = open_storage(storage) if wait else options.open_existing(storage)
    orders = solo.Orders(
        storage=storage,
        objective=objective,
        placement=Placement(1, devices, per_device),
        files=options.make_files_root(files, storage),
        data=options.data_root(data),
        log=log_to,
    )
    if wait:
        if study is not None:
            raise UsageError("--wait takes whatever study is open: name no study with it")
        solo.serve(orders, shared, typer.echo)
        return
    record = studies.find(shared, study)
    if record.state is StudyState.STOPPED:
        raise UsageError(f"{record.name} is stopped: {printing.resume_command(record)} goes on")
    solo.work(orders, shared, record, typer.echo)


def _refuse_foreign_options(found: Preflight, direction: str | None, epochs: int | None) -> None:
    """What only a bare function is told, or cannot be."""
    if direction not in (None, found.direction):
        raise UsageError(
            f"{found.reference} says itself that it is to {found.direction} {found.metric}: no --direction"
        )
    if epochs is not None and found.epochs == 0:
        raise UsageError(f"{found.reference} is a function, which trains as long as it will: leave --epochs out")


def _preflight(
    console: Console,
    reference: str,
    data: Path,
    placement: Placement,
    direction: str | None,
    space: Mapping[str, Any],
) -> Preflight:
    children.warm_up()
    with console.status(f"checking {reference} on one batch"):
        found = fleet.preflight(reference, data, placement, direction, space)
    for note in found.notes:
        printing.say(console, note)
    return found


def _train(
    console: Console,
    storage: SharedStorage,
    record: StudyRecord,
    found: Preflight,
    url: str,
    files: Path,
    data: Path,
    log: tuple[str, ...],
) -> None:
    assignment = Assignment(url, record.name, found.reference, (), found.plan.threads, files, data, log, found.shared)
    ending = launch.follow(console, storage, record, assignment, found.plan)
    raise typer.Exit(_conclude(console, storage, ending))


def _conclude(console: Console, storage: SharedStorage, ending: Ending) -> int:
    """Print the best recipe and what to do next; the exit status."""
    status = ending.status
    study = status.study

    best = queries.best(storage, study)
    printing.say(
        console,
        f"{study.name}: {printing.progress(status)}, {printing.counts(status.counts)}; {printing.state_of(status)}",
    )
    for failure in status.failures:
        printing.say(console, printing.failure_line(failure))
    if best:
        printing.say(console, printing.best_line(best[0], status))
    met = printing.limit_met(study, best[0] if best else None)
    printing.say(console, "go on with:")
    if status.finished or met:
        printing.say(console, f"  dialin best {study.name} --top 5")
        printing.say(console, f"  dialin best {study.name} --weights best.pt")
        printing.say(console, f"  {printing.resume_command(study)}{printing.more(status)}")
        printing.say(console, "  dialin dashboard")
        return 0
    printing.say(console, f"  {printing.resume_command(study)}")
    printing.say(console, f"  dialin status {study.name}")
    return 130 if ending.interrupted else 1


def _refuse_early(url: str, name: str | None) -> None:
    """A database that does not open, or a name that is taken, is said before anything slow; makes no SQLite file."""
    file = sqlite_file(parse(url))
    if file is not None and file.parent.is_dir() and not file.exists():
        return
    shared = open_storage(url)
    if name is not None and name in studies.names(shared):
        raise studies.taken(name)


def _refuse_finished(storage: SharedStorage, record: StudyRecord, trials: str | None) -> None:
    if trials is None and queries.status(storage, record).finished:
        raise UsageError(
            f"{record.name} is finished ({record.taken} of {record.trials} trials): "
            f"{printing.resume_command(record)} --trials +20 goes on"
        )


def _budget(trials: str | None) -> tuple[int | None, int]:
    """`50` -> (50, 0), `+50` -> (None, 50). Raises UsageError."""
    if trials is None:
        return None, 0
    if not trials.removeprefix("+").isdecimal() or int(trials) < 1:
        raise UsageError(f"--trials must be a number such as 100, or +50 for 50 more, but got {trials!r}")
    return (None, int(trials)) if trials.startswith("+") else (int(trials), 0)
