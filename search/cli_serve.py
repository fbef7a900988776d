"""The commands of a team's server: serve, and token. Registered by `search.cli`. No torch here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from search import options, printing
from storage import studies, tokens
from storage.errors import UsageError
from storage.shared import open_storage
from storage.tables import Role
from storage.tokens import Token
from storage.urls import DEFAULT_URL

# What the extra `server` installs, by the names of the modules.
NEEDED = ("fastapi", "uvicorn", "a2wsgi", "prometheus_client")

app = typer.Typer(
    name="token",
    no_args_is_help=True,
    help="Who may come in to `dialin serve`: tokens, made, listed and revoked.",
    epilog="Example: dialin token create anna --role operator",
)


def serve(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but this machine's own wants a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")] = 8080,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="OBJECTIVE",
            help="One of your own that may be submitted: ./my_model.py, pkg.my_model. Built-in ones always may. "
            "May be repeated.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain (PEM): https.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key, if not in the same file.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option("--proxy", metavar="ADDRESS", help="Of a proxy before it whose X-Forwarded-* headers are true."),
    ] = None,
    data: options.DataFolder = None,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """A team's server on one port: fleet page, optuna-dashboard and a JSON API, behind one login.

    Sign in with a token (`dialin token create NAME`). As long as none was ever made, everyone on this machine may do
    everything, and nobody elsewhere anything. Workers need no server: it may come and go.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"there is no {', '.join(missing)} here: pip install 'dialin[server]'")
    from search.allowed import refuse_missing
    from search.place import Place
    from search.samplers import quiet_optuna
    from search.server import sessions
    from search.server.access import Access
    from search.server.app import make_app
    from search.server.control import Control
    from search.server.desk import Desk
    from search.server.run import Listening, run

    refuse_missing(objective or ())
    where = Listening(host, port, certificate, key, proxy)
    shared = open_storage(storage)
    if not where.is_local and not any(token.is_valid for token in tokens.tokens(shared)):
        option = f"--host {host}" if proxy is None else "--proxy"
        raise UsageError(f"{option} lets others in, but there is no token: make one by `dialin token create NAME`")
    quiet_optuna()
    root = options.files_root(files, storage)
    access = Access(shared, sessions.load_key(root), always=not where.is_local)
    if access.is_open:
        typer.echo("there is no token: everyone on this machine may do everything (`dialin token create NAME`)")
    ending = Event()
    control = Control(shared, Place(storage, root, data), objective or (), ending.is_set)
    run(make_app(Desk(shared, root), access, control).app, where, typer.echo, ending)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who has it: a person or a program.")],
    role: Annotated[
        Role, typer.Option("--role", help="viewer: look at everything; operator: submit, pause, stop, delete as well.")
    ] = Role.VIEWER,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Make a token and print it. It is not kept, and cannot be shown again."""
    typer.echo(tokens.create(open_storage(storage), name, role))
    typer.echo(f"{name} is {'an operator' if role is Role.OPERATOR else 'a viewer'}; keep the line above", err=True)


def list_(as_json: options.Json = False, storage: options.Storage = DEFAULT_URL) -> None:
    """Every token that was ever made: whose it is, what it may do, when it was used last."""
    shared = options.open_existing(storage)
    found = tokens.tokens(shared)
    if as_json:
        typer.echo(printing.as_json([_record(token) for token in found]))
        return
    if not found:
        typer.echo("there is no token yet: make one by `dialin token create NAME`")
        return
    table = printing.table("name", "role", "made", "last used", "state")
    now = studies.clock(shared)
    for token in found:
        used = printing.ago(now - token.last_used_at) if token.last_used_at is not None else "never"
        state = "valid" if token.revoked_at is None else f"revoked {printing.ago(now - token.revoked_at)}"
        table.add_row(token.name, token.role.value, printing.ago(now - token.created_at), used, state)
    printing.Terminal().print(table, markup=False)


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose.")], storage: options.Storage = DEFAULT_URL
) -> None:
    """From now on nobody comes in with it, nor by a browser that was signed in with it."""
    tokens.revoke(options.open_existing(storage), name)
    typer.echo(f"the token of {name} opens nothing any more")


def _record(token: Token) -> dict[str, object]:
    times = {"created_at": token.created_at, "last_used_at": token.last_used_at, "revoked_at": token.revoked_at}
    return {"name": token.name, "role": token.role.value, **times}


# Every command of `dialin token`, with the example that its help ends in.
EXAMPLES: dict[Callable[..., None], str] = {
    create: "dialin token create anna --role operator",
    list_: "dialin token list",
    revoke: "dialin token revoke anna",
}
for _command, _example in EXAMPLES.items():
    app.command(_command.__name__.rstrip("_"), epilog=f"Example: {_example}")(_command)
