"""The commands that draw conclusions: all trials as a table, advice, the report. Registered by `search.cli`.

Imports no torch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from search import advice_text, confirmation, confirming, options, printing, trial_table
from search.advice import advise as advice_on
from search.written import file_name, refuse_unwritable, write
from storage import records, studies
from storage.errors import DialinError
from storage.overview import TrialLine, overview
from storage.urls import DEFAULT_URL
from storage.words import counted


class TrialsFormat(StrEnum):
    """How `dialin trials` prints."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


# Of a table in a file, which nobody's window cuts.
WIDE = 240


def trials(
    study: options.Study = None,
    form: Annotated[
        TrialsFormat | None,
        typer.Option(
            "--format",
            help="How to print them; --json is short for --format json.",
            show_default="as FILE ends, else table",
        ),
    ] = None,
    as_json: options.Json = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write them there.", show_default="print them"),
    ] = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """All trials of a study, whatever became of them: outcome, value, cost, every knob in real units.

    CSV and JSON have the metrics of the best epoch too, times in UTC, memory in bytes.
    From Python the same is a data frame: search.load("STUDY").trials()
    """
    printing.refuse_two_forms(form, as_json)
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    lines = overview(shared, record)
    chosen = TrialsFormat.JSON if as_json else form or _by_its_end(output)
    text = _written(lines, chosen, record.metric)
    if output is None:
        if isinstance(text, str):
            typer.echo(text)
        else:
            printing.Terminal().print(text)
        return
    write(output, _as_text(text) + "\n")
    typer.echo(f"{counted(len(lines), 'trial')} of {record.name} in {output}")


def _by_its_end(output: Path | None) -> TrialsFormat:
    ending = output.suffix.lower().removeprefix(".") if output is not None else ""
    return TrialsFormat(ending) if ending in ("csv", "json") else TrialsFormat.TABLE


def _written(lines: Sequence[TrialLine], form: TrialsFormat, metric: str) -> str | RenderableType:
    if form is TrialsFormat.CSV:
        return trial_table.as_csv(lines)
    if form is TrialsFormat.JSON:
        return printing.as_json(trial_table.as_records(lines))
    return trial_table.as_table(lines, metric)


def _as_text(shown: str | RenderableType) -> str:
    if isinstance(shown, str):
        return shown
    console = Console(width=WIDE, file=io.StringIO(), force_terminal=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def advise(study: options.Study = None, as_json: options.Json = False, storage: options.Storage = DEFAULT_URL) -> None:
    """What a study's trials say about the next one: each piece of advice with its evidence, and what to type or edit.

    Where a range ends too soon, what lost, what costs time for no gain, whether training is too short, too long or
    over-fits, which differences are noise. Where trials are too few to tell, nothing is said.
    """
    shared = options.open_existing(storage)
    record = confirming.subject(shared, study)
    recorded = records.trials(shared, record)
    if not any(trial.outcome is not None or trial.state == "paused" for trial in recorded):
        raise DialinError(f"{record.name} has no finished trial yet: see `dialin status {record.name}`")
    found = advice_on(record, recorded, confirmation.read(shared, record))
    if as_json:
        typer.echo(printing.as_json(advice_text.as_json(found, record)))
        return
    console = printing.Terminal()
    for line in advice_text.lines(found, record):
        printing.say(console, line)


def report(
    study: options.Study = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write.", show_default="STUDY.html here"),
    ] = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """A study as one HTML file that needs no network: the answer, curves, knobs, cost, failures, workers, advice.

    It opens in any browser, in light and dark, on a phone and on paper.
    It may be written while the study runs.
    """
    shared = options.open_existing(storage)
    record = confirming.subject(shared, study)
    path = output if output is not None else Path(f"{file_name(record.name)}.html")
    refuse_unwritable(path)
    from search.report import gather, render

    data = gather(shared, record)
    if not any(trial.epochs or trial.outcome is not None for trial in data.trials):
        raise DialinError(f"{record.name} has no trial to report yet: see `dialin status {record.name}`")
    write(path, render(data))
    typer.echo(f"{path}: {counted(len(data.trials), 'trial')} of {record.name}, {path.stat().st_size / 1e6:.1f} MB")
