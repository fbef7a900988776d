"""`dialin storage`: the commands for the database itself. Registered by `search.cli`; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from search import options, printing
from search.checkpoint_settings import CheckpointSettings
from storage import checking, copying, schema, urls
from storage.tables import SCHEMA_VERSION
from storage.urls import DEFAULT_URL
from storage.words import counted

app = typer.Typer(
    name="storage",
    no_args_is_help=True,
    help="The database itself: is it in order, move it, bring one of an older version up to date.",
    epilog="Example: dialin storage copy sqlite:///dialin.db postgresql://...",
)


def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The database to copy, as --storage names it.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="An empty one, or one that is not there yet.")],
    while_training: Annotated[
        bool,
        typer.Option(
            "--while-training", help="Also while workers are at work; what they do from now on is in FROM only."
        ),
    ] = False,
    files: options.Files = None,
) -> None:
    """Copy all studies from one database to another, SQLite to PostgreSQL or back, with nothing changed.

    Checkpoints and logs stay where they are. A password may stay in ~/.pgpass or PGPASSWORD.
    """
    old, new = urls.parse(source), urls.parse(target)
    found = copying.copy(old, new, while_training=while_training)
    many = f"{counted(found.studies, 'study', 'studies')}, {counted(found.trials, 'trial')}"
    typer.echo(f"copied {many} ({found.rows} rows) from {urls.shown(old)} to {urls.shown(new)}")
    for table in found.left_out:
        typer.echo(f"left out: table {table}, which is neither Optuna's nor Dialin's")
    here, there = options.files_root(files, source), options.files_root(files, target)
    named = "" if here == there else f": name that folder with --files or DIALIN_FILES, as TO's own is {there}"
    typer.echo(f"checkpoints and logs stay in {here}{named}")
    if found.studies:
        typer.echo("warning: train a study in one of the two only, or each overwrites the other's files", err=True)


def check(
    mend: Annotated[bool, typer.Option("--mend", help="Put it right.")] = False,
    as_json: options.Json = False,
    files: options.Files = None,
    checkpoints: options.Checkpoints = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Does all that is stored fit together? A line for each thing that does not, and what --mend would do.

    Workers may be at work meanwhile, with --mend too. Exit status 1 when something is wrong and not mended.
    """
    shared = options.open_existing(storage)
    settings = CheckpointSettings(checkpoints)
    root = None if settings.is_bucket else settings.folder(options.files_root(files, storage))
    found = checking.check(shared, root, mend=mend)
    if as_json:
        typer.echo(printing.as_json([asdict(line) for line in found.lines]))
    else:
        for line in found.lines:
            way = f"; {'mended' if line.mended else 'mending'}: {line.mending}" if line.mending else ""
            typer.echo(f"{line.what}{way}")
        for note in found.notes:
            typer.echo(f"note: {note}")
        typer.echo(_verdict(found, urls.shown(storage)))
    if any(not line.mended for line in found.lines):
        raise typer.Exit(1)


def _verdict(found: checking.Checked, shown: str) -> str:
    wrong = [line for line in found.lines if not line.mended]
    mended = len(found.lines) - len(wrong)
    said = [f"mended {counted(mended, 'thing')} in {shown}"] if mended else []
    if wrong:
        said.append(f"{counted(len(wrong), 'thing is', 'things are')} wrong in {shown}")
        mendable = sum(bool(line.mending) for line in wrong)
        said += [f"--mend puts {mendable} of them right"] if mendable else []
    return "; ".join(said) or f"nothing is wrong with {shown}"


def upgrade(storage: options.Storage = DEFAULT_URL) -> None:
    """Bring a database of an older dialin up to date, once for everybody; all of it or nothing.

    Workers of the older version are ended first, by its `dialin stop`.
    """
    url = urls.parse(storage)
    urls.there_is(url)
    found, shown = schema.upgrade(url), urls.shown(url)
    if found == SCHEMA_VERSION:
        typer.echo(f"{shown} has the tables of version {SCHEMA_VERSION}: there is nothing to upgrade")
    else:
        typer.echo(f"{shown} has the tables of version {SCHEMA_VERSION} now, it had version {found}")


# Every command, with the example that its help ends in.
EXAMPLES: dict[Callable[..., None], str] = {
    check: "dialin storage check --mend",
    copy: "dialin storage copy sqlite:///dialin.db postgresql://...",
    upgrade: "dialin storage upgrade --storage postgresql://...",
}
for _command, _example in EXAMPLES.items():
    app.command(_command.__name__, epilog=f"Example: {_example}")(_command)
