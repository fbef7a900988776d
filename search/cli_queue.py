"""The commands of the queue: submit, pause, change, queue. Registered by `search.cli`. No torch here."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from search import cli_train, options, printing, searches
from search.preflight import Placement
from search.terms import MoreOfStudy, NewStudy
from search.wishes import parse_space, to_json
from storage import queries, queue_page, steering, studies
from storage.errors import UsageError
from storage.queue_page import QueuePage
from storage.studies import StudyRecord
from storage.tables import StudyState
from storage.urls import DEFAULT_URL
from storage.words import counted


def submit(
    objective: options.ObjectiveName,
    study: cli_train.StudyName = None,
    trials: cli_train.Trials = None,
    epochs: cli_train.Epochs = None,
    priority: options.Priority = 1,
    concurrency: options.Concurrency = None,
    direction: cli_train.Direction = None,
    sampler: cli_train.Sampler = None,
    pruner: cli_train.Pruner = None,
    fix: options.Fix = None,
    ranges: options.Range = None,
    around: options.Around = None,
    until: options.Until = None,
    budget: options.Budget = None,
    total_epochs: options.TotalEpochs = None,
    deadline: options.Deadline = None,
    min_gain: options.MinGain = None,
    seed: cli_train.Seed = None,
    transfer: cli_train.Transfer = True,
    devices: options.Devices = None,
    data: options.DataFolder = None,
    as_json: options.Json = False,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Put a study of OBJECTIVE into the queue and return: `dialin worker`, on any machine, trains it.

    OBJECTIVE is tried on one batch here first. Workers run their own copy of it, which must be the same.
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
    place = searches.Place(storage, None, data, Placement(1, devices))
    console = printing.Terminal(stderr=as_json)
    shared, record = searches.submit(console, objective, wanted, place, options.actor())
    if as_json:
        typer.echo(printing.as_json({"study": record.name, "study_id": record.study_id, "trials": record.trials}))
        return
    page = queue_page.look(shared)
    serving = sum(not worker.silent for worker in page.workers)
    command = printing.worker_command(record)
    there = f"no worker yet: start `{command}`"
    if serving:
        there = f"{counted(serving, 'worker')} of the queue"
        there += "" if printing.is_builtin(record) else f"; it is for those started as `{command}`"
    printing.say(
        console, f"{record.name} is submitted: {counted(record.trials, 'trial')}, priority {priority}; {there}"
    )
    for command in ("watch", "status", "pause", "stop"):
        printing.say(console, f"  dialin {command} {shlex.quote(record.name)}")


def pause(study: options.Study = None, storage: options.Storage = DEFAULT_URL) -> None:
    """Have a study's workers hand back their trials and wait, or serve other studies. `dialin resume` goes on."""
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    if queries.is_finished(shared, record):
        raise UsageError(f"{record.name} is finished: there is nothing to pause")
    steering.pause(shared, record.study_id, options.actor())
    typer.echo(f"{record.name} is paused: go on with `dialin resume {record.name} --queue`")


def change(
    study: options.Study = None,
    priority: options.NewPriority = None,
    concurrency: options.NewConcurrency = None,
    trials: Annotated[
        str | None, typer.Option("--trials", metavar="N|+N", help="New budget, or so many trials more.")
    ] = None,
    until: options.Until = None,
    budget: options.MoreBudget = None,
    total_epochs: options.MoreTotalEpochs = None,
    deadline: options.NewDeadline = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Change a study's budgets, or its place in the queue, while it is trained. Workers heed it within seconds.

    Nothing is trained here, and a study that is stopped or paused stays so: `dialin resume` goes on with it.
    """
    wanted = MoreOfStudy(trials, until, budget, total_epochs, deadline, priority=priority, concurrency=concurrency)
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    wish = wanted.wish(shared, record)
    if not str(wish):
        raise UsageError("nothing to change: say what, as by --priority 3 or --trials +20")
    steering.change(shared, record.study_id, wish, options.actor())
    typer.echo(f"{record.name}: {wish}{_when(studies.find(shared, record.name))}")


def _when(record: StudyRecord) -> str:
    """When that takes effect, where it does not at once."""
    if record.state is StudyState.RUNNING:
        return ""
    return f" (it is {record.state}: `dialin resume {record.name} --queue` goes on)"


def queue(as_json: options.Json = False, storage: options.Storage = DEFAULT_URL) -> None:
    """The studies that wait for workers or have them, each with its share, and the workers that serve them all."""
    page = queue_page.look(options.open_existing(storage))
    if as_json:
        typer.echo(printing.as_json(asdict(page)))
        return
    console = printing.Terminal()
    if not page.studies:
        printing.say(console, "no study is open: `dialin submit digits` puts one into the queue")
    else:
        console.print(_studies(page), markup=False)
    if page.workers:
        console.print(_workers(page), markup=False)
    elif page.studies:
        own = sum(one.workers for one in page.studies)
        beside = f" beside {counted(own, 'worker')} that serve one study each" if own else ""
        printing.say(console, f"no worker serves the queue{beside}: start one with `dialin worker`")
    for worker in page.workers:
        if worker.note:
            printing.say(console, f"{worker.host} pid {worker.pid}: {worker.note}")


def _studies(page: QueuePage) -> Table:
    numbers = ("priority", "workers", "share", "at most", "to do")
    table = printing.table("study", "state", *numbers, right=numbers)
    for one in page.studies:
        limit = str(one.concurrency) if one.concurrency is not None else "-"
        share = f"{one.share:.0%}" if one.share is not None else "-"
        row = (one.name, one.state, str(one.priority), str(one.workers), share, limit, str(one.todo))
        table.add_row(*row)
    return table


def _workers(page: QueuePage) -> Table:
    table = printing.table("worker", "slot", "serves", "for", "trial", "seen")
    for one in page.workers:
        sign = f"no sign for {one.seen_ago:.0f} s" if one.silent else f"{one.seen_ago:.0f} s ago"
        trial = str(one.trial) if one.trial is not None else "-"
        serves = one.study if one.study is not None else "waits"
        since = printing.duration(one.seconds)
        table.add_row(f"{one.host} pid {one.pid}", one.slot or "-", serves, since, trial, sign)
    return table
