"""The commands that train: run, worker, resume, stop. Registered by `search.cli`."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from search import detached, options, printing, searches, trackers
from search.checkpoint_settings import settings_of
from search.launch import Ending
from search.loading import reference_here
from search.preflight import Placement
from search.samplers import quiet_optuna
from search.terms import MoreOfStudy, NewStudy
from search.wishes import parse_space, parse_was, to_json
from storage import queries, steering, studies
from storage.errors import UsageError
from storage.limits import MOST
from storage.shared import SharedStorage, open_storage
from storage.tables import StudyState
from storage.uncollected import uncollected
from storage.urls import DEFAULT_URL


class StudyDirection(StrEnum):
    """Which way a bare function's value is better."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, max=MOST, metavar="N", help="Budget of trials.", show_default="the objective's"),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        min=1,
        max=MOST,
        metavar="N",
        help="Length of a full trial.",
        show_default="the objective's",
    ),
]
StudyName = Annotated[
    str | None,
    typer.Option("--study", metavar="NAME", help="Name of the new study.", show_default="OBJECTIVE-1, then -2, ..."),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="What proposes recipes: auto (it also pauses trials), or one of Optuna's: tpe, gp, cmaes, qmc, random.",
        show_default="auto; tpe for a bare Optuna function, or beside --pruner",
    ),
]
Pruner = Annotated[
    str | None,
    typer.Option(
        "--pruner",
        metavar="NAME",
        help="What stops losing trials, but for auto's: hyperband, asha, median, none.",
        show_default="hyperband",
    ),
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

Transfer = Annotated[
    bool,
    typer.Option(
        "--transfer/--no-transfer",
        help="Start with recipes that won in finished studies of this database, and with those that come with Dialin; "
        "without, with the optimizers' defaults only.",
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
    on: options.On = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    fix: options.Fix = None,
    ranges: options.Range = None,
    around: options.Around = None,
    until: options.Until = None,
    budget: options.Budget = None,
    total_epochs: options.TotalEpochs = None,
    deadline: options.Deadline = None,
    min_gain: options.MinGain = None,
    seed: Seed = None,
    transfer: Transfer = True,
    priority: options.Priority = 1,
    concurrency: options.Concurrency = None,
    data: options.DataFolder = None,
    log: options.Log = None,
    hang: options.Hang = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Train in the background, also after this terminal is closed.")
    ] = False,
    files: options.Files = None,
    checkpoints: options.Checkpoints = None,
    disk: options.Disk = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Search: make a new study of OBJECTIVE and train its trials, here or on a Ray cluster (--on).

    Ctrl-C gives the running trials back; `dialin resume` goes on with them.
    """
    wanted = NewStudy(
        name=study,
        trials=trials,
        epochs=epochs,
        direction=direction,
        sampler=sampler,
        pruner=pruner,
        space=to_json(parse_space(fix or (), ranges or (), around or ())),
        until=until,
        budget_seconds=options.seconds_of(budget),
        total_epochs=total_epochs,
        deadline=deadline,
        seed=seed,
        min_gain=min_gain,
        transfer=transfer,
        priority=priority,
        concurrency=concurrency,
    )
    placement = Placement(workers, devices, per_device)
    place = place_of(storage, files, data, placement, log, hang, checkpoints, disk, on)
    console = printing.Terminal()
    if detach:
        _say_where(console, detached.start(console, objective, wanted, place))
        return
    _train(console, searches.begin(console, objective, wanted, place))


def resume(
    study: options.Study = None,
    trials: Annotated[
        str | None, typer.Option("--trials", metavar="N|+N", help="New budget, or so many trials more.")
    ] = None,
    until: options.Until = None,
    budget: options.MoreBudget = None,
    total_epochs: options.MoreTotalEpochs = None,
    deadline: options.NewDeadline = None,
    min_gain: options.MinGain = None,
    priority: options.NewPriority = None,
    concurrency: options.NewConcurrency = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Train nothing here: leave it to the workers that serve the queue.")
    ] = False,
    was: options.Was = None,
    objective: options.OwnObjective = None,
    workers: options.Workers = None,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    on: options.On = None,
    data: options.DataFolder = None,
    log: options.Log = None,
    hang: options.Hang = None,
    files: options.Files = None,
    checkpoints: options.Checkpoints = None,
    disk: options.Disk = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Go on with a study: trials that were left go on where they stopped, under their own numbers.

    Sampler, pruner, seed, length, --fix and --range come from the study.
    A value of --until that was reached no longer stops it.
    The objective may have been edited: what has changed in its space is said, and trials that still fit inform on.
    """
    known = parse_was(was or ())
    place_in_queue = priority, concurrency
    more = until, budget, total_epochs, deadline, known, min_gain
    wanted = MoreOfStudy(trials, *more, *place_in_queue)
    placement = Placement(workers, devices, per_device)
    place = place_of(storage, files, data, placement, log, hang, checkpoints, disk, on)
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    if queue:
        searches.reopen(shared, record, wanted, options.actor())
        typer.echo(f"{record.name} is open: `{printing.worker_command(record)}` trains it, on any machine")
        return
    reference = reference_here(record.objective, objective, f"dialin resume {record.name}")
    console = printing.Terminal()
    _train(console, searches.go_on(console, shared, record, reference, wanted, place))


def stop(study: options.Study = None, storage: options.Storage = DEFAULT_URL) -> None:
    """Stop a study on all machines: its workers hand back what they train and end. `dialin resume` goes on."""
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    if queries.is_finished(shared, record):
        typer.echo(f"{record.name} is finished: there is nothing to stop")
        return
    steering.stop(shared, record.study_id, "by `dialin stop`", by=options.actor())
    typer.echo(
        f"{record.name} is stopped: its workers hand back their trials; go on with {printing.resume_command(record)}"
    )


def worker(
    study: Annotated[
        str | None, typer.Argument(metavar="STUDY", help="Name of the study.", show_default="whatever is open")
    ] = None,
    objective: options.OwnObjectives = None,
    idle: Annotated[
        str | None,
        typer.Option(
            "--idle", metavar="TIME", help="End when no study was open for so long: 30s, 10m.", show_default="wait on"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what happens as lines of JSON, each with its study and trial.")
    ] = False,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    data: options.DataFolder = None,
    log: options.Log = None,
    hang: options.Hang = None,
    files: options.Files = None,
    checkpoints: options.Checkpoints = None,
    disk: options.Disk = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """A worker, on any machine that reaches the database: for one study, or for all that are open, fairly by priority.

    Without STUDY it serves what is open, goes on with another when one ends, and waits when there is none.
    With several GPUs it takes one that no other worker of this database has. SIGTERM hands its trial back.
    """
    with uncollected():
        from search import queue_worker, solo, told  # import torch
        from search.uncompiled import spare_the_compiler

    quiet_optuna()
    spare_the_compiler()
    given, seconds = objective or [], options.idle_seconds(idle)
    place = place_of(storage, files, data, Placement(1, devices, per_device), log, hang, checkpoints, disk)
    shared = open_storage(storage) if study is None else options.open_existing(storage)
    place.make_folders()
    tell = told.Told(as_json)
    if study is None:
        queue_worker.QueueWorker(place, given, shared, tell, seconds).serve()
        return
    if len(given) > 1 or idle is not None:
        raise UsageError("--idle, and several of --objective, are for a worker of all studies: name no study with them")
    record = studies.find(shared, study)
    status = queries.status(shared, record)
    if record.state is StudyState.STOPPED or status.late:
        raise UsageError(f"{record.name} is stopped: {printing.resume_command(record)}{printing.more(status)} goes on")
    solo.work(place, given[0] if given else None, shared, record, tell)


def place_of(
    storage: str,
    files: Path | None,
    data: Path | None,
    placement: Placement,
    log: list[str] | None,
    hang: str | None,
    checkpoints: str | None,
    disk: str | None,
    on: str | None = None,
) -> searches.Place:
    """Where a command trains, as its options say. Raises UsageError."""
    log_to, seconds = trackers.check(log or ()), options.hang_seconds(hang)
    return searches.Place(storage, files, data, placement, log_to, seconds, settings_of(checkpoints, disk), on)


def _say_where(console: Console, found: detached.Detached) -> None:
    printing.say(console, f"{found.study} trains in the background, as process {found.pid}; it prints to {found.log}")
    for command in ("watch", "logs", "stop"):
        printing.say(console, f"  dialin {command} {found.study}")


def _train(console: Console, ready: searches.Ready) -> None:
    ending = searches.train(console, ready)
    searches.say_ending(console, ready.storage, ending)
    raise typer.Exit(say_what_next(console, ready.storage, ending))


def say_what_next(console: Console, storage: SharedStorage, ending: Ending) -> int:
    """Print what to type next; the exit status."""
    status = ending.status
    study = status.study
    best = queries.best(storage, study)
    met = printing.limit_met(status, best[0] if best else None)
    printing.say(console, "go on with:")
    if status.finished or met:
        if best:
            printing.say(console, f"  {printing.confirm_command(study)}")
            printing.say(console, f"  dialin best {study.name} --top 5")
            printing.say(console, f"  dialin show {study.name}")
        if best and queries.weights_of(storage, study, best[0].number):  # a bare function has none
            printing.say(console, f"  dialin best {study.name} --weights best.pt")
        printing.say(console, f"  {printing.resume_command(study)}{printing.more(status)}")
        printing.say(console, "  dialin dashboard")
        return 0
    if status.failures:  # newest first: its log has the error with its frames
        printing.say(console, f"  dialin logs {study.name} {status.failures[0].number}")
    printing.say(console, f"  {printing.resume_command(study)}")
    printing.say(console, f"  dialin status {study.name}")
    if ending.signal == signal.SIGPIPE:
        return 128 + signal.SIGPIPE
    return 130 if ending.interrupted else 1
