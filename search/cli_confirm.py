"""The command that trains a study's best recipes again, with fresh seeds. Registered by `search.cli`. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from search import confirmation, confirming, options, printing
from search.cli_train import place_of, say_what_next
from search.confirmation import Confirmation
from search.loading import reference_here
from search.preflight import Placement
from storage import queries
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.urls import DEFAULT_URL

Top = Annotated[
    int | None,
    typer.Option(
        "--top", metavar="N", help="How many of the best recipes.", show_default="what was asked before, or 5"
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", metavar="N", help="How many times each is trained.", show_default="what was asked before, or 5"
    ),
]


def confirm(
    study: options.Study = None,
    top: Top = None,
    seeds: Seeds = None,
    test: Annotated[
        bool, typer.Option("--test/--no-test", help="Open the test split for the winner, once; or leave it closed yet.")
    ] = True,
    changed: Annotated[
        bool,
        typer.Option("--changed", help="Also where the objective's source has changed since: train what it is now."),
    ] = False,
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
    """Train a study's best recipes again with fresh seeds, rank them by their mean, and test the winner once.

    The trials are those of a study of their own, STUDY-confirm, which `dialin worker` may join.
    Typed again it goes on where it was left, adds what is asked for more, or prints the answer.
    """
    wanted = confirming.Wanted(top, seeds, test, changed)
    placement = Placement(workers, devices, per_device)
    place = place_of(storage, files, data, placement, log, hang, checkpoints, disk, on)
    shared = options.open_existing(storage)
    source = confirming.subject(shared, study)
    console = printing.Terminal()
    answer, ending = confirming.confirm(
        console,
        shared,
        source,
        wanted,
        lambda: reference_here(source.objective, objective, f"dialin confirm {source.name}"),
        place,
    )
    if ending is not None and not ending.status.finished:
        raise typer.Exit(say_what_next(console, shared, ending))
    _say_what_next(console, shared, source, answer)


def _say_what_next(console: Console, storage: SharedStorage, source: StudyRecord, answer: Confirmation) -> None:
    if answer.winner is None:
        raise typer.Exit(1)
    of, number = confirmation.weights_of(storage, source, answer.winner.trial, answer)
    printing.say(console, "go on with:")
    for command in going_on(source, answer, weights=queries.weights_of(storage, of, number) is not None):
        printing.say(console, f"  {command}")


def going_on(source: StudyRecord, answer: Confirmation, *, weights: bool) -> Iterator[str]:
    """What to type after a confirmation: more seeds where `dialin advise` wants them too. `weights`: they are kept."""
    yield f"dialin best {source.name} --top 5"
    if weights:
        yield f"dialin best {source.name} --weights best.pt"
    if answer.more_seeds is not None:
        yield f"{printing.confirm_command(source)} --seeds {answer.more_seeds}"
