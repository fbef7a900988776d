"""`dialin run --detach`: a search in a background process of its own session, which outlives the terminal.

    python -m search.detached DESCRIPTOR

is that process. What to search comes as JSON on its standard input, so that no password is on a command line; it
tries the objective, makes the study, says so through the file descriptor, and trains. `start` is the foreground's half.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console

from search import searches
from search.checkpoint_settings import CheckpointSettings
from search.preflight import Placement
from search.printing import Terminal
from search.terms import NewStudy

# So long a background process that was told to end may take; it is killed then.
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Detached:
    """A search in the background: its study, its process, and the file that its output goes to."""

    study: str
    pid: int
    log: str


def start(console: Console, objective: str, wanted: NewStudy, place: searches.Place) -> Detached:
    """Start a background process, and return when it has tried the objective and made the study.

    Raises:
        typer.Exit: it could not; what it said of that is on standard error.
    """
    ours, theirs = os.pipe()
    with tempfile.TemporaryFile() as said, open(ours) as answers:
        try:
            process = subprocess.Popen(
                # -P: what lies in the current folder must not be imported in place of this package.
                [sys.executable, "-P", "-m", "search.detached", str(theirs)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=[theirs],
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends the other half too
        try:
            with console.status(f"checking {objective} on one batch"):
                _send(process, written(objective, wanted, place))
                answer = answers.read()  # the end: it has closed its side, or died
        except KeyboardInterrupt:
            _end(process)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        said.seek(0)
        text = said.read().decode(errors="replace").rstrip()
    if not answer:
        status = process.wait()
        print(text or f"dialin: the background process ended with status {status}", file=sys.stderr)
        raise typer.Exit(status if status > 0 else 1)
    if text:
        print(text)
    return Detached(**json.loads(answer))


def written(objective: str, wanted: NewStudy, place: searches.Place) -> str:
    """What to search, as the background process reads it; see `read`."""
    return json.dumps({"objective": objective, "wanted": asdict(wanted), "place": asdict(place)}, default=str)


def read(text: str) -> tuple[str, NewStudy, searches.Place]:
    """The same again: JSON has no paths, tuples or objects."""
    order = json.loads(text)
    place = order["place"]
    place |= {name: Path(place[name]) for name in ("files", "data") if place[name] is not None}
    place |= {"placement": Placement(**place["placement"]), "log": tuple(place["log"])}
    place |= {"checkpoints": CheckpointSettings(**place["checkpoints"])}
    return order["objective"], NewStudy(**order["wanted"]), searches.Place(**place)


def _send(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(text.encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    """The background process, from its orders to the end of the study."""
    from search.cli import told

    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # the foreground waits for its end
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before training: as Ctrl-C
    order = sys.stdin.read()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        status = told(lambda: _search(order, descriptor))
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _search(order: str, descriptor: int) -> None:
    console = Terminal()
    ready = searches.begin(console, *read(order))
    log = ready.assignment.files / ready.study.folder / "detached.log"
    _write_to(log)
    with open(descriptor, "w") as answers:
        json.dump(asdict(Detached(ready.study.name, os.getpid(), str(log))), answers)
    ending = searches.train(console, ready)
    searches.say_ending(console, ready.storage, ending)


def _write_to(log: Path) -> None:
    """All that this process prints from here on, and what C libraries print, goes to the file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


if __name__ == "__main__":
    main()
