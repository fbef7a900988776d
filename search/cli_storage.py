"""`dialin storage`: the commands for the database itself. Registered by `search.cli`; imports no torch."""

from __future__ import annotations

from collections.abc import Callable

import typer

from search import options
from storage import schema, urls
from storage.tables import SCHEMA_VERSION
from storage.urls import DEFAULT_URL

app = typer.Typer(
    name="storage",
    no_args_is_help=True,
    help="The database itself: bring one of an older version up to date.",
    epilog="Example: dialin storage upgrade",
)


def upgrade(storage: options.Storage = DEFAULT_URL) -> None:
    """Bring a database of an older dialin up to date, once for everybody; all of it or nothing.

    Workers of the older version are ended first, by its `dialin stop`.
    """
    url = urls.parse(storage)
    options.there_is(storage)
    found, shown = schema.upgrade(url), urls.shown(url)
    if found == SCHEMA_VERSION:
        typer.echo(f"{shown} has the tables of version {SCHEMA_VERSION}: there is nothing to upgrade")
    else:
        typer.echo(f"{shown} has the tables of version {SCHEMA_VERSION} now, it had version {found}")


# Every command, with the example that its help ends in.
EXAMPLES: dict[Callable[..., None], str] = {
    upgrade: "dialin storage upgrade --storage postgresql://...",
}
for _command, _example in EXAMPLES.items():
    app.command(_command.__name__, epilog=f"Example: {_example}")(_command)
