"""The commands that look, and those for an objective's author. Registered by `search.cli`.

`status` and `best` import no torch; what does is imported inside the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from textwrap import indent
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from search import confirmation, confirmation_page, cost_table, options, plain_answers, printing, ranking
from search.checkpoint_settings import CheckpointSettings
from search.confirmation import Confirmation
from search.loading import builtin_objectives
from storage import confirmations, costs, first_trials, queries, studies
from storage.costs import StudyCosts
from storage.errors import DialinError, UsageError
from storage.first_trials import FirstTrial
from storage.queries import StudyStatus
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.uncollected import uncollected
from storage.urls import DEFAULT_URL, shown
from storage.words import printable


class Format(StrEnum):
    """How `dialin best` prints."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    PYTHON = "python"


def status(study: options.Study = None, as_json: options.Json = False, storage: options.Storage = DEFAULT_URL) -> None:
    """Where a study stands: trials by outcome, what every worker trains now, failures, the best so far."""
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    if as_json:
        typer.echo(printing.as_json(plain_answers.status(shared, record)))
        return
    first, cost = first_trials.noted(shared, record.study_id), costs.of_study(shared, record)
    answer = plain_answers.confirmation_of(shared, record)
    _print_status(queries.status(shared, record), queries.best(shared, record), first, answer, cost, storage)


def _print_status(
    found: StudyStatus,
    best: list[queries.RankedTrial],
    first: Sequence[FirstTrial],
    answer: Confirmation | None,
    cost: StudyCosts,
    storage: str,
) -> None:
    console, record = printing.Terminal(), found.study

    printing.say(console, f"{record.name}: {printing.state_of(found)}, {printing.progress(found)}")
    printing.say(
        console,
        f"objective {record.objective}, {record.direction} {record.metric}, {printing.length(record)}, "
        f"{printing.strategy(record)}, seed {record.seed}; {shown(storage)}",
    )
    told = (
        ("narrowed to", printing.narrowing(record)),
        ("limits", printing.limits(record)),
        ("queue", printing.place_in_queue(record)),
        ("first trials", printing.first_trials(first)),
    )
    for heading, text in told:
        if text:
            printing.say(console, f"{heading}: {text}")
    if answer is not None:
        printing.say(console, f"confirmed: {confirmation_page.summary(answer)}")
    known = [one.trial for one in answer.confirmed] if answer is not None else []
    if best and not record.confirms and best[0].number not in known:
        printing.say(console, printing.best_line(best[0], found))
    if found.kept is not None:
        nothing = found.kept.nearest is not None
        printing.say(console, printing.none_feasible(found.kept) if nothing else printing.kept_line(found.kept))
    if not record.confirms and (found.outlook.gain is not None or found.outlook.wanted is not None):
        printing.say(console, f"outlook: {printing.outlook(found)}")
    _print_trials(console, found, cost)
    if found.running or found.workers:
        console.print(_who_trains_what(found))
    for failure in found.failures:
        printing.say(console, printing.failure_line(failure))
    raised = next((failure for failure in found.failures if failure.traceback), None)
    if raised is not None:
        printing.say(console, f"trial {raised.number} raised:\n{indent(raised.traceback.rstrip(), '  ')}")


def _print_trials(console: Console, found: StudyStatus, cost: StudyCosts) -> None:
    """What became of them, and what they have cost."""
    printing.say(console, f"outcomes: {printing.counts(found.counts)}")
    if cost.by_state:
        console.print(cost_table.table(cost))
    if saved := cost_table.saved_line(cost):
        printing.say(console, saved)
    if found.waiting:
        printing.say(console, f"waiting: {found.waiting} enqueued")
    if found.paused:
        printing.say(console, f"paused: {printing.paused(found)}")
    if handed_on := printing.handovers_line(found):
        printing.say(console, f"handed on: {handed_on}")


def _who_trains_what(found: StudyStatus) -> Table:
    """A row for each trial that is not settled, and for each worker that is between trials."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("slot", "trial", "epoch", "now", "best", "worker"):
        table.add_column(heading, header_style="dim")
    holders = {worker.trial: worker for worker in found.workers}
    for trial in found.running:
        holder = holders.get(trial.number)
        sign = printing.worker_line(holder) if holder is not None else f"{trial.host} pid {trial.pid}"
        note = "gone: waiting for another" if trial.adoptable else sign
        table.add_row(*printing.running_row(trial, found.study.length), note)
    for worker in found.workers:
        if worker.trial is None:
            table.add_row(worker.slot, "-", "", "", "", printing.worker_line(worker))
    return table


def best(
    study: options.Study = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="How many trials.")] = 1,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="How to print them; --json is short for --format json.", show_default="table"),
    ] = None,
    as_json: options.Json = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Also write the first one's weights, of its best epoch: a state_dict. Of a confirmed recipe those of "
            "the seed that did best.",
        ),
    ] = None,
    files: options.Files = None,
    checkpoints: options.Checkpoints = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """The best parameters found, those first that `dialin confirm` has confirmed.

    Only trials that trained to their end, and keep to their constraints, are ranked.
    "unconfirmed: best of 40 noisy draws" means: the best of 40 noisy numbers is partly luck.
    """
    printing.refuse_two_forms(form, as_json)
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    if record.confirms:
        record = confirmations.source_of(shared, record) or record
    status, answer = queries.status(shared, record), confirmation.read(shared, record)
    found = ranking.ranking(shared, record, top, answer)
    if not found:
        raise DialinError(printing.nothing_ranked(status))
    if status.kept is not None and status.kept.feasible < status.kept.ended:
        typer.echo(printable(printing.kept_line(status.kept)), err=True)
    if weights is not None:
        root = options.files_root(files, storage)
        of, number = confirmation.weights_of(shared, record, found[0].trial.number, answer)
        _write_weights(shared, of, number, root, CheckpointSettings(checkpoints), weights)
        which = f"trial {number}" if of is record else f"trial {number} of {of.name}"
        typer.echo(f"weights of {which} are in {weights}", err=True)
    shown = ranking.shown(found, record, status.settled, "json" if as_json else form or Format.TABLE)
    if isinstance(shown, str):
        typer.echo(shown)
        return
    printing.Terminal().print(shown)
    if answer is not None and not answer.finished:
        typer.echo(printable(f"confirmed so far: {confirmation_page.summary(answer)}"), err=True)


def _write_weights(
    storage: SharedStorage, record: StudyRecord, number: int, root: Path, settings: CheckpointSettings, to: Path
) -> None:
    kept = queries.weights_of(storage, record, number)
    if kept is None:
        raise DialinError(
            f"no weights of trial {number} are on record: its loop kept none, or they could not be written"
        )
    from search.checkpoints import CheckpointError  # imports torch
    from search.shelf import open_store

    try:
        open_store(settings, root, record.folder).fetch(kept[0], to)
    except CheckpointError as error:
        raise DialinError(f"{error}: name the place that the workers wrote to with --files or --checkpoints") from None
    except OSError as error:
        raise UsageError(f"cannot write {to}: {error.strerror}") from None


def dashboard(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. It has no login: keep it to yourself.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")] = 8080,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Browse all studies with optuna-dashboard, on this machine only unless --host says otherwise.

    Pictures of trials (`dialin run --log plots`) are found in the folder of checkpoints and logs, --files.
    """
    from search.dashboard import serve

    serve(options.open_existing(storage), options.files_root(files, storage), host, port, typer.echo)


def objectives(
    name: Annotated[
        str | None, typer.Argument(metavar="OBJECTIVE", help="Print the space that a search of it explores.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the built-in objectives, or print what is searched for one: knob, range, condition, default."""
    if name is None:
        known = builtin_objectives()
        if as_json:
            typer.echo(printing.as_json(known))
            return
        for builtin, text in known.items():
            typer.echo(f"{builtin:<16}{text}")
        return
    from search.knob_table import print_space, space_as_records
    from search.loading import resolve

    loaded = resolve(name)
    if as_json:
        typer.echo(printing.as_json(space_as_records(loaded.objective)))
    else:
        print_space(printing.Terminal(), loaded)


def check(
    objective: options.ObjectiveName,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=1, metavar="N", help="Estimate a study of so many.", show_default="the objective's"
        ),
    ] = None,
    devices: options.Devices = None,
    data: options.DataFolder = None,
    as_json: options.Json = False,
) -> None:
    """Try an objective: every optimizer on a few batches, every schedule; its speed, its memory."""
    with uncollected():
        import torch

        from search import devices as machine
        from search.check import check as lines_of
        from search.loading import resolve
        from search.uncompiled import spare_the_compiler

    spare_the_compiler()
    loaded = resolve(objective)
    found = machine.gpus() if devices != "cpu" else []
    plan = machine.plan_slots(found, machine.usable_cpus(), devices=devices)
    device = torch.device(plan.slots[0].devices[0])
    budget = trials or loaded.objective.trials
    failed = 0
    notes = (*loaded.notes, *plan.notes)
    for note in notes if not as_json else ():
        typer.echo(note)
    lines = lines_of(loaded, options.data_root(data), device, budget, workers=len(plan.slots), threads=plan.threads)
    rows = []
    for line in lines:
        failed += not line.ok
        if as_json:
            rows.append(asdict(line))
        else:
            typer.echo(f"{'ok    ' if line.ok else 'FAILED'} {line.what:<26} {line.detail}")
    if as_json:
        typer.echo(printing.as_json(rows))
    if failed:
        raise typer.Exit(1)


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, such as my_model.py.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented objective that runs as it is, to start yours from."""
    from search.template import write_template

    write_template(path, force)
    typer.echo(f"wrote {path}: try it with dialin check {path}, search with dialin run {path}")
