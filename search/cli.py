"""The command `dialin`: its commands by name, and how errors end. Nothing heavy is imported here."""

# ruff: noqa: E402 - Ctrl-C during the first second, which goes into imports, ends the command without a traceback.
from __future__ import annotations

import signal

_SIGINT = signal.signal(signal.SIGINT, signal.SIG_DFL)

from storage.uncollected import uncollected

with uncollected(for_good=True):
    import sys
    from collections.abc import Callable
    from importlib import metadata
    from typing import Annotated

    import typer
    from sqlalchemy.exc import SQLAlchemyError

    from search import (
        cli_answer,
        cli_confirm,
        cli_look,
        cli_one,
        cli_queue,
        cli_report,
        cli_serve,
        cli_storage,
        cli_studies,
        cli_train,
    )
    from search.printing import nobody_reads
    from storage.errors import DialinError
    from storage.patience import one_line, waiting
    from storage.words import printable

signal.signal(signal.SIGINT, _SIGINT)

app = typer.Typer(
    name="dialin",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Hyper-parameter search for PyTorch: Optuna's samplers, many workers, one SQL database, nothing lost.",
    epilog="Example: dialin run digits",
)

# Every command, with the example that its help ends in.
EXAMPLES: dict[Callable[..., None], str] = {
    cli_train.run: "dialin run my_model.py --trials 200 --storage postgresql://...",
    cli_train.worker: "dialin worker --storage postgresql://...",
    cli_train.resume: "dialin resume digits-1 --trials +50",
    cli_train.stop: "dialin stop digits-1",
    cli_confirm.confirm: "dialin confirm digits-1 --top 5 --seeds 5",
    cli_queue.submit: "dialin submit digits --trials 200 --priority 3",
    cli_queue.queue: "dialin queue --json",
    cli_queue.pause: "dialin pause digits-1",
    cli_queue.change: "dialin change digits-1 --priority 3 --trials +50",
    cli_studies.list_: "dialin list --json",
    cli_studies.watch: "dialin watch digits-1",
    cli_studies.show: "dialin show digits-1 12",
    cli_studies.logs: "dialin logs digits-1 12 --follow",
    cli_studies.delete: "dialin delete digits-1",
    cli_one.train: "dialin train digits lr=0.01 optimizer=adamw --epochs 5",
    cli_one.try_: "dialin try digits-1 lr=0.05 optimizer=momentum",
    cli_look.status: "dialin status digits-1 --json",
    cli_look.best: "dialin best digits-1 --top 5 --format yaml --weights best.pt",
    cli_answer.export: "dialin export digits-1 -o digits",
    cli_answer.replay: "dialin replay digits-1 12",
    cli_report.trials: "dialin trials digits-1 -o trials.csv",
    cli_report.advise: "dialin advise digits-1",
    cli_report.report: "dialin report digits-1 -o report.html",
    cli_look.dashboard: "dialin dashboard --port 8081",
    cli_serve.serve: "dialin serve --host 0.0.0.0 --tls-cert team.pem",
    cli_look.objectives: "dialin objectives digits",
    cli_look.check: "dialin check my_model.py --trials 200",
    cli_look.init: "dialin init my_model.py",
}
for _command, _example in EXAMPLES.items():
    app.command(_command.__name__.rstrip("_"), epilog=f"Example: {_example}")(_command)  # try_ is `dialin try`
app.add_typer(cli_storage.app)
app.add_typer(cli_serve.app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dialin {metadata.version('dialin')}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def dialin(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Before any command."""


def main() -> None:
    """Entry point."""
    with waiting(tell=_say):
        sys.exit(told(lambda: app(prog_name="dialin", standalone_mode=False)))


def told(command: Callable[[], object]) -> int:
    """The exit status of a command. An error is one line on standard error; 2: the caller's mistake, 1: a failure."""
    try:
        status = command()
    except DialinError as error:
        status = _complain(str(error), error.exit_status, getattr(error, "frames", ""))
    except typer.TyperException as error:
        said, context = error.format_message(), getattr(error, "ctx", None)
        status = error.exit_code  # `dialin` alone has printed its help, and has nothing to complain of
        if said:
            _complain(f"{said} (see {context.command_path if context else 'dialin'} --help)", status)
    except SQLAlchemyError as error:
        status = _complain(f"the database failed: {one_line(error)}", 1)
    except typer.Abort:
        status = 130
    except BrokenPipeError:
        nobody_reads()
        status = 128 + signal.SIGPIPE
    return status if isinstance(status, int) else 0


def _complain(message: str, status: int, frames: str = "") -> int:
    if "\n" in frames.rstrip():  # one line holds no frame, only what the message says too
        print(printable(frames.rstrip()), file=sys.stderr)
    _say(message)
    return status


def _say(line: str) -> None:
    print(f"dialin: {printable(line)}", file=sys.stderr)


if __name__ == "__main__":
    main()
