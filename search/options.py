"""Options that several commands share, and what they mean: which database, which folders, which study.

Imports no torch.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from search import datasets
from storage import studies, urls
from storage.errors import UsageError
from storage.shared import SharedStorage, open_storage
from storage.steering import HIGHEST
from storage.studies import StudyRecord

Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="DIALIN_STORAGE",
        show_envvar=True,
        metavar="URL",
        help="The database: sqlite:///FILE.db for one machine, postgresql://USER:PASSWORD@HOST/NAME for many. "
        "The environment variable keeps a password off the command line.",
    ),
]
Files = Annotated[
    Path | None,
    typer.Option(
        "--files",
        envvar="DIALIN_FILES",
        metavar="DIR",
        help="Checkpoints and logs; a folder that all machines share, so that any worker can go on with a trial.",
        show_default="dialin-files beside a SQLite file, else ~/.cache/dialin/files",
    ),
]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        envvar="DIALIN_CHECKPOINTS",
        metavar="DIR|URL",
        help="Checkpoints and weights by themselves: another folder, or a bucket such as s3://NAME/PREFIX.",
        show_default="among --files",
    ),
]
Disk = Annotated[
    str | None,
    typer.Option(
        "--disk",
        metavar="SIZE",
        help="How much the checkpoints of the study may take together: 50GB, 500MB. The least promising trials' go "
        "first, the best trials' weights stay.",
        show_default="all there is",
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data sets.", show_default="$DIALIN_DATA, else ~/.cache/dialin"),
]
Study = Annotated[str | None, typer.Argument(metavar="STUDY", help="Name of the study.", show_default="the newest")]
ObjectiveName = Annotated[
    str,
    typer.Argument(
        metavar="OBJECTIVE",
        help="A built-in one (`dialin objectives`), a file ./my_model.py, or a module pkg.my_model; "
        "each with :name behind it if its objective is not called `objective`.",
    ),
]
Priority = Annotated[
    int,
    typer.Option(
        "--priority",
        min=1,
        max=HIGHEST,
        metavar="P",
        help="Its share of the workers that serve the queue: with 3 it gets three times as many as a study with 1.",
    ),
]
NewPriority = Annotated[
    int | None, typer.Option("--priority", min=1, max=HIGHEST, metavar="P", help="New priority in the queue.")
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency", min=1, metavar="N", help="At most so many trials at once.", show_default="any number"
    ),
]
NewConcurrency = Annotated[
    int | None,
    typer.Option("--concurrency", min=0, metavar="N", help="New limit of trials at once; 0: any number."),
]
OwnObjective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="OBJECTIVE",
        help="Where the study's objective is on this machine, if it is not a built-in one: code is never taken "
        "from the database.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, metavar="N", help="How many workers.", show_default="one a GPU; without GPUs one a CPU core"
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices", metavar="0,2|cpu", help="GPUs by number, or cpu.", show_default="all GPUs that are not busy"
    ),
]
PerDevice = Annotated[
    int | None,
    typer.Option(
        "--per-device", min=1, metavar="N", help="Workers on each GPU.", show_default="as memory says, at most 4"
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray|ADDRESS",
        help="Start the workers on a Ray cluster: ray for the one here, ray://HOST:10001, HOST:6379.",
        show_default="this machine",
    ),
]
MinGain = Annotated[
    float | None,
    typer.Option(
        "--min-gain",
        min=0.0,
        metavar="GAIN",
        help="End when 20 more trials are likely to improve the metric by less than this (0: never); `dialin status` "
        "says by how much.",
    ),
]


def _many(name: str, metavar: str, text: str) -> Any:
    """An option that may be given more than once."""
    return typer.Option(name, metavar=metavar, help=f"{text} May be repeated.")


Log = Annotated[
    list[str] | None,
    _many(
        "--log", "NAME", "Where trials can be looked at too: tensorboard, wandb, mlflow, plots (in `dialin dashboard`)."
    ),
]
OwnObjectives = Annotated[
    list[str] | None,
    _many(
        "--objective",
        "OBJECTIVE",
        "What this machine may train beside the built-in ones: a file or module of your own, at the place where it is "
        "here. Code is never taken from the database.",
    ),
]
Fix = Annotated[
    list[str] | None,
    _many("--fix", "NAME=VALUE", "Do not search this knob: lr=0.01, optimizer=adamw, or one of the model's own."),
]
Range = Annotated[
    list[str] | None,
    _many(
        "--range",
        "NAME=LOW:HIGH|A,B,C",
        "Search this knob from LOW to HIGH (lr=1e-4:1e-2, the real rate), or among choices (batch_size=32,64). "
        "`dialin objectives OBJECTIVE` prints the names.",
    ),
]
Around = Annotated[
    list[str] | None,
    _many(
        "--around",
        "NAME=VALUE[:FACTOR]",
        "Search this knob most near VALUE, give or take a FACTOR (10): lr=1e-3, width=64:4.",
    ),
]
Was = Annotated[
    list[str] | None,
    _many(
        "--was",
        "NAME=VALUE",
        "What a knob that was added to the objective had been in older trials: layers=2.",
    ),
]
Until = Annotated[
    float | None,
    typer.Option("--until", metavar="VALUE", help="Stop as soon as a trial's metric is as good as this."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Stop after so much training, counted on all devices together: 90s, 30m, 8h, 2d, 1h30m.",
    ),
]
MoreBudget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME|+TIME",
        help="New limit of training on all devices together, or so much more.",
    ),
]
Hang = Annotated[
    str | None,
    typer.Option(
        "--hang",
        metavar="TIME|never",
        help="End a worker that has finished no batch for so long (30s, 10m); its trial goes on in another. For a loop "
        "of your own: reported nothing.",
        show_default="the objective's step_timeout, else 10m; never for a loop of your own",
    ),
]
TotalEpochs = Annotated[
    int | None,
    typer.Option("--total-epochs", min=1, metavar="N", help="Stop after so many epochs of all trials together."),
]
MoreTotalEpochs = Annotated[
    str | None,
    typer.Option("--total-epochs", metavar="N|+N", help="New limit of epochs of all trials together, or so many more."),
]
Deadline = Annotated[
    str | None,
    typer.Option(
        "--deadline",
        metavar="WHEN",
        help="Stop then, by the database's clock: 18:30, 2h (from now), 2026-12-24T18:00.",
    ),
]
NewDeadline = Annotated[
    str | None,
    typer.Option("--deadline", metavar="WHEN|none", help="New time to stop at: 18:30, 2h (from now), or none."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_URL = re.compile(r"[a-z0-9+]{2,}:/")  # pathlib leaves one slash
# Days, hours, minutes, seconds, in this order.
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def seconds_of(budget: str | None) -> float | None:
    """`1h30m` -> 5400.0; None stays None.

    Raises:
        UsageError: it is not a duration, or none at all.
    """
    seconds = None if budget is None else _duration(budget)
    if budget is not None and seconds is None:
        raise UsageError(f"--budget must be a time such as 90s, 30m, 8h, 2d or 1h30m, but got {budget!r}")
    return seconds


def hang_seconds(hang: str | None) -> float | None:
    """What --hang says, in seconds; "never" is infinity, None stays None.

    Raises:
        UsageError: it is neither a duration nor "never".
    """
    if hang is None:
        return None
    seconds = math.inf if hang.strip().lower() == "never" else _duration(hang)
    if seconds is None:
        raise UsageError(f"--hang must be a time such as 30s or 10m, or never, but got {hang!r}")
    return seconds


def idle_seconds(idle: str | None) -> float | None:
    """What --idle says, in seconds. Raises UsageError: it is no duration."""
    seconds = None if idle is None else _duration(idle)
    if idle is not None and seconds is None:
        raise UsageError(f"--idle must be a time such as 30s or 10m, but got {idle!r}")
    return seconds


def _duration(text: str) -> float | None:
    """Seconds; None for what is no duration, or none of at least a moment."""
    found = _DURATION.fullmatch(text.strip().lower())
    counts = found.groups(default="0") if found else ()
    seconds = sum(float(count) * unit for count, unit in zip(counts, (86400, 3600, 60, 1), strict=False))
    return seconds if 0 < seconds < math.inf else None


def deadline_of(text: str, now: float) -> float:
    """`18:30` (the next), `2h` from now, or a date and time, in this machine's time zone unless it names one.

    `now` and the answer are in seconds since 1970. `none` is infinity.

    Raises:
        UsageError: it is none of these, or past.
    """
    said = text.strip().lower()
    if said == "none":
        return math.inf
    duration = _duration(said)
    try:
        moment = now + duration if duration is not None else _moment(said, datetime.fromtimestamp(now))
        datetime.fromtimestamp(moment)  # it can be told
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"--deadline must be a time such as 18:30, 2h (from now) or 2026-12-24T18:00, but got {text!r}"
        ) from None
    if moment <= now:
        raise UsageError(f"--deadline {text} is past already")
    return moment


def _moment(said: str, now: datetime) -> float:
    clock = _CLOCK.fullmatch(said)
    if clock is None:
        return datetime.fromisoformat(said.upper()).timestamp()
    at = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
    return (at if at > now else at + timedelta(days=1)).timestamp()


def check_until(until: float | None) -> None:
    """Raises UsageError: --until is nan or infinity."""
    if until is not None and not math.isfinite(until):
        raise UsageError(f"--until must be a number that a trial can reach, but got {until}")


def actor() -> str:
    """Who types, as this machine knows them: `ana@host`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        name = "somebody"
    return f"{name}@{socket.gethostname()}"


def open_existing(url: str) -> SharedStorage:
    """Open a database that somebody has searched with; looking must not leave an empty one behind.

    Raises:
        DialinError: it cannot be opened, or there is no such SQLite file.
    """
    urls.there_is(urls.parse(url))
    return open_storage(url)


def study_and_trial(storage: SharedStorage, study: str | None, trial: int | None) -> tuple[StudyRecord, int | None]:
    """The study and the trial meant; a number alone is a trial of the newest study."""
    if study is not None and trial is None and study.isdecimal() and study not in studies.names(storage):
        return studies.find(storage), int(study)
    return studies.find(storage, study), trial


def files_root(given: Path | None, storage: str) -> Path:
    """The folder of checkpoints and logs. Raises UsageError: it is none."""
    if given is not None and _URL.match(str(given)):
        raise UsageError(f"--files must be a folder, but got {given}: a bucket for checkpoints goes to --checkpoints")
    file = urls.sqlite_file(urls.parse(storage))
    beside = file.parent / "dialin-files" if file is not None else None
    return (given or beside or datasets.cache_folder() / "files").expanduser().absolute()


def make_files_root(given: Path | None, storage: str) -> Path:
    """The same folder, made if need be.

    Raises:
        UsageError: it cannot be made or written.
    """
    root = files_root(given, storage)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {root} ({error.strerror}): name another with --files") from None
    if not os.access(root, os.W_OK):
        raise UsageError(f"cannot write to {root}: name another folder with --files")
    return root


def data_root(given: Path | None) -> Path:
    """The folder handed to an objective's `data`, absolute.

    Raises:
        UsageError: --data names a folder that is not there.
    """
    root = datasets.data_root(given).absolute()
    if given is not None and not root.is_dir():
        raise UsageError(f"there is no folder {root}: --data names a folder of data sets")
    return root
