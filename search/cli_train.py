"""The commands that train: run, worker, resume, stop. Registered by `search.cli`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from search import fleet, launch, options, printing
from search.assignment import Assignment
from search.launch import Ending
from search.loading import builtin_objectives
from search.preflight import Placement, Preflight
from search.strategy import check_names, quiet_optuna
from storage import queries, studies
from storage.errors import UsageError
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec
from storage.urls import DEFAULT_URL

Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, metavar="N", help="Budget of trials.", show_default="the objective's"),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", min=1, metavar="N", help="Length of a full trial.", show_default="the objective's"),
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
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, metavar="N", help="Seed of sampling and training.", show_default="a random one, stored"
    ),
]


def run(
    objective: options.ObjectiveName,
    study: StudyName = None,
    trials: Trials = None,
    epochs: Epochs = None,
    workers: options.Workers = None,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    sampler: Sampler = "tpe",
    pruner: Pruner = "hyperband",
    seed: Seed = None,
    data: options.DataFolder = None,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Search: make a new study of OBJECTIVE and train its trials on this machine.

    Ctrl-C hands the trials in hand back; `dialin resume` goes on with them.
    """
    quiet_optuna()
    check_names(sampler, pruner)
    shared = open_storage(storage)
    files_root, data_root = options.files_root(files, storage), options.data_root(data)
    _refuse_taken_name(shared, study)
    console = Console()
    found = _preflight(console, objective, data_root, Placement(workers, devices, per_device))
    spec = StudySpec(
        objective=found.reference,
        objective_sha256=found.sha256,
        metric=found.metric,
        direction=found.direction,
        epochs=epochs or found.epochs,
        trials=trials or found.trials,
        seed=seed if seed is not None else secrets.randbelow(2**31),
        sampler=sampler,
        pruner=pruner,
    )
    first = found.first_trials[: spec.trials]
    record = studies.create(shared, spec, name=study, stem=found.name, first_trials=first)
    _train(console, shared, record, found, storage, files_root, data_root)


def resume(
    study: options.Study = None,
    trials: Annotated[
        str | None, typer.Option("--trials", metavar="N|+N", help="New budget, or so many trials more.")
    ] = None,
    objective: options.OwnObjective = None,
    workers: options.Workers = None,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    data: options.DataFolder = None,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Go on with a study: trials that were left go on where they stopped, under their own numbers.

    Sampler, pruner, seed and length come from the study.
    """
    quiet_optuna()
    total, more = _budget(trials)
    shared = options.open_existing(storage)
    files_root, data_root = options.files_root(files, storage), options.data_root(data)
    record = studies.find(shared, study)
    reference = _reference(record, objective, "resume")
    _refuse_finished(shared, record, trials)
    console = Console()
    found = _preflight(console, reference, data_root, Placement(workers, devices, per_device))
    _refuse_other(record, found)
    studies.resume(shared, record.study_id, trials=total, more=more)
    _train(console, shared, studies.find(shared, record.name), found, storage, files_root, data_root)


def stop(study: options.Study = None, storage: options.Storage = DEFAULT_URL) -> None:
    """Stop a study on all machines: its workers hand back what they train and end. `dialin resume` goes on."""
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    studies.stop(shared, record.study_id, "by `dialin stop`")
    typer.echo(f"{record.name} is stopped: its workers hand back their trials; go on with dialin resume {record.name}")


def worker(
    study: options.Study = None,
    objective: options.OwnObjective = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for a study where there is none, and for the next when one ends.")
    ] = False,
    devices: options.Devices = None,
    per_device: options.PerDevice = None,
    data: options.DataFolder = None,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """One more worker for a study, from any machine that reaches its database.

    With several GPUs it takes one that no other worker of this database has.
    """
    from search import solo  # imports torch

    quiet_optuna()
    shared = open_storage(storage) if wait else options.open_existing(storage)
    orders = solo.Orders(
        storage=storage,
        objective=objective,
        placement=Placement(1, devices, per_device),
        files=options.files_root(files, storage),
        data=options.data_root(data),
    )
    if wait:
        if study is not None:
            raise UsageError("--wait takes whatever study is open: name no study with it")
        solo.serve(orders, shared, typer.echo)
        return
    record = studies.find(shared, study)
    solo.work(orders, shared, record, _reference(record, objective, "worker"), typer.echo)


def _preflight(console: Console, reference: str, data: Path, placement: Placement) -> Preflight:
    fleet.warm_up()
    with console.status(f"checking {reference} on one batch"):
        found = fleet.preflight(reference, data, placement)
    for note in found.notes:
        console.print(note, markup=False, highlight=False)
    return found


def _train(
    console: Console,
    storage: SharedStorage,
    record: StudyRecord,
    found: Preflight,
    url: str,
    files: Path,
    data: Path,
) -> None:
    assignment = Assignment(url, record.name, found.reference, (), found.plan.threads, files, data)
    ending = launch.follow(console, storage, record, assignment, found.plan)
    raise typer.Exit(_conclude(console, storage, ending))


def _conclude(console: Console, storage: SharedStorage, ending: Ending) -> int:
    """Print the best recipe and what to do next; the exit status."""
    status = ending.status
    study = status.study

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    best = queries.best(storage, study)
    say(f"{study.name}: {printing.progress(status)}, {printing.counts(status.counts)}; {printing.state_of(status)}")
    for failure in status.failures:
        say(f"trial {failure.number} {failure.outcome.replace('_', ' ')}: {failure.reason}")
    if best:
        say(f"best: {printing.best_line(best[0], study)} ({printing.unconfirmed(status.settled)})")
    say("go on with:")
    if status.finished:
        say(f"  dialin best {study.name} --top 5")
        say(f"  dialin best {study.name} --weights best.pt")
        say(f"  dialin resume {study.name} --trials +20")
        say("  dialin dashboard")
        return 0
    say(f"  dialin resume {study.name}")
    say(f"  dialin status {study.name}")
    return 130 if ending.interrupted else 1


def _reference(record: StudyRecord, given: str | None, command: str) -> str:
    """Code comes from this machine: a built-in objective, or the one named. Raises UsageError with the command."""
    if given is not None:
        return given
    if record.objective.partition(":")[0] in builtin_objectives():
        return record.objective
    raise UsageError(
        f"study {record.name!r} searches {record.objective}, which is not built in: "
        f"dialin {command} {record.name} --objective {record.objective}"
    )


def _refuse_taken_name(storage: SharedStorage, name: str | None) -> None:
    if name is not None and name in studies.names(storage):
        raise studies.taken(name)


def _refuse_finished(storage: SharedStorage, record: StudyRecord, trials: str | None) -> None:
    if trials is None and queries.status(storage, record).finished:
        raise UsageError(
            f"{record.name} is finished ({record.taken} of {record.trials} trials): "
            f"dialin resume {record.name} --trials +20 goes on"
        )


def _refuse_other(record: StudyRecord, found: Preflight) -> None:
    studies.check_same(record, found.reference, found.metric, found.direction)


def _budget(trials: str | None) -> tuple[int | None, int]:
    """`50` -> (50, 0), `+50` -> (None, 50). Raises UsageError."""
    if trials is None:
        return None, 0
    if not trials.removeprefix("+").isdecimal() or int(trials) < 1:
        raise UsageError(f"--trials must be a number such as 100, or +50 for 50 more, but got {trials!r}")
    return (None, int(trials)) if trials.startswith("+") else (int(trials), 0)
