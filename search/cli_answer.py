"""The commands that take the answer out of a study: replay and export. Registered by `search.cli`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search import options, printing
from search.checkpoint_settings import CheckpointSettings
from storage.studies import StudyRecord
from storage.uncollected import uncollected
from storage.urls import DEFAULT_URL
from storage.words import counted, printable

if TYPE_CHECKING:
    from search.replay import Replayed

Trial = Annotated[
    int | None, typer.Argument(metavar="TRIAL", min=0, help="Number of the trial.", show_default="the best")
]


def replay(
    study: options.Study = None,
    trial: Trial = None,
    objective: options.OwnObjective = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Although the objective or its data have changed since.")
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="A trial that ended in an error too, as far as it gets.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0.0,
            metavar="SHARE",
            help="How far apart curves may be where bits are not promised, as a share of the largest value.",
        ),
    ] = 0.02,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="0|cpu", help="A GPU by its number, or cpu.", show_default="as it was"),
    ] = None,
    data: options.DataFolder = None,
    as_json: options.Json = False,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Train a trial again, here and now, from what is stored of it, and compare its curve.

    On the same kind of CPU, with the same threads, versions, source and data, it comes again bit for bit.
    Elsewhere it comes within --tolerance. Exit status 1: it does not.
    Nothing is written.
    """
    with uncollected():
        from search.replay import replay_of
        from search.samplers import quiet_optuna
        from search.uncompiled import spare_the_compiler

    quiet_optuna()
    spare_the_compiler()
    shared = options.open_existing(storage)
    record, number = options.study_and_trial(shared, study, trial)
    # What a person's code prints must not end up within the JSON.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        found = replay_of(
            shared,
            record,
            number,
            objective,
            device=device,
            data=options.data_root(data),
            tolerance=tolerance,
            changed=changed,
            failed=failed,
            say=_say,
        )
    _say(printing.as_json(_as_record(record, found)) if as_json else _in_words(found))
    if found.interrupted:
        raise typer.Exit(130)
    if not found.kept:
        raise typer.Exit(1)


def _say(line: str) -> None:
    """Much of it is from a database, where anybody may have written it."""
    typer.echo(printable(line))


def _as_record(record: StudyRecord, found: Replayed) -> dict[str, Any]:
    return {
        "study": record.name,
        "trial": found.trial,
        "likeness": found.likeness.value,
        "promised_up_to": found.promise.exact,
        "why_no_further": found.promise.why,
        "first_difference": found.first_difference,
        "value": found.values[1],
        "recorded_value": found.values[0],
        "mean_distance": found.apart,
        "allowed_distance": found.allowed,
        "missing_epochs": found.missing,
        "interrupted": found.interrupted,
        "epochs": [asdict(pair) for pair in found.pairs],
    }


def _in_words(found: Replayed) -> str:
    """What came of it, in a line or two."""
    seen, first = counted(len(found.pairs), "epoch"), found.first_difference
    if found.interrupted:
        so_far = "the same so far, bit for bit" if first is None else f"another from epoch {first} on"
        return f"interrupted after {seen}, {so_far}"
    if found.likeness.value == "same":
        return f"the same, bit for bit: {seen}" + ("; what it failed of did not come again" if found.healed else "")
    said = f"{found.missing} of its epochs did not come again" if found.missing else "its value is another"
    said = said if first is None else f"another from epoch {first} on"
    if found.apart is not None:
        said += f"; its curve is {found.apart:.2g} away on average"
    recorded, replayed = found.values
    if recorded is not None:
        said += f", its value {printing.number(replayed)} instead of {printing.number(recorded)}"
    if found.kept:
        return f"{said}: within the {found.allowed:.2g} that are allowed here"
    if not found.promise.why or (first is not None and first <= found.promise.exact):
        return f"NOT the same: {said}. Something besides the seed decides what it computes, such as the time or a hash"
    return f"NOT the same: {said}, and {found.allowed:.2g} are allowed here"


def export(
    to: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    study: options.Study = None,
    trial: Trial = None,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="With the best epoch's weights.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Write over what an export has left in DIR.")] = False,
    objective: options.OwnObjective = None,
    files: options.Files = None,
    checkpoints: options.Checkpoints = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Write a trial to a folder that needs nothing of Dialin: weights, recipe, code, metrics, a model card.

    Weights are safetensors, the recipe is YAML, JSON and plain torch code, the card is README.md.
    --objective is asked for only where an optimizer or a schedule is a row of its own.
    """
    from search.export import chosen
    from search.export import export as write
    from search.loading import reference_here, resolve
    from search.shelf import open_store

    shared = options.open_existing(storage)
    record, number = options.study_and_trial(shared, study, trial)
    found = chosen(shared, record, number)
    root = options.files_root(files, storage)
    command = f"dialin export {found.study.name} {found.trial.number} -o {to}"
    done = write(
        shared,
        found,
        to.expanduser().absolute(),
        store=open_store(CheckpointSettings(checkpoints), root, found.study.folder) if weights else None,
        load=lambda: resolve(reference_here(found.study.objective, objective, command)),
        force=force,
    )
    _say(f"trial {found.trial.number} of {found.study.name} is in {to}: {', '.join(done.files)}")
    for note in done.notes:
        _say(note)
