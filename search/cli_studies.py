"""The commands for studies that exist: list, show, logs, watch, delete. Registered by `search.cli`. No torch here."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from search import logs as trial_logs
from search import options, plain_answers, printing
from search.artifacts import Artifacts
from search.checkpoint_settings import CheckpointSettings
from search.feed import Feed
from search.live import View
from search.logs import Following, log_of, workers_log
from search.trial_page import print_trial, trial_as_json
from search.views import make_view
from storage import confirmations, provenance, queries, studies
from storage.attachments import attached
from storage.errors import DialinError, UsageError
from storage.patience import DATABASE_ERRORS, Outage, waiting
from storage.queries import StudyStatus
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.urls import DEFAULT_URL
from storage.words import counted

# Lines of a log at the end of a trial's page; and of each log where several are printed.
LAST_LINES = 5
LINES_EACH = 10
# Logs that are printed where no trial is named and none is running.
LOGS = 3
POLL_SECONDS = 0.5
# A worker of a deleted study notices at its next sign of life; until then it may write another file.
DELETE_SECONDS = 10.0

Trial = Annotated[
    int | None, typer.Argument(metavar="TRIAL", min=0, help="Number of the trial.", show_default="the best")
]


def list_(as_json: options.Json = False, storage: options.Storage = DEFAULT_URL) -> None:
    """Every study in the database, the newest first."""
    shared = options.open_existing(storage)
    if as_json:
        typer.echo(printing.as_json(plain_answers.all_studies(shared)))
        return
    lines = [*reversed(queries.listing(shared))]
    if not lines:
        typer.echo("there is no study yet: start one with `dialin run digits`")
        return
    table = printing.table("study", "objective", "state", "trials", "best", "started", right=["trials"])
    for line in lines:
        trials = f"{line.settled}/{line.trials}" if line.trials is not None else str(line.settled)
        best = f"{line.metric or 'value'} {printing.number(line.best)}" if line.best is not None else "-"
        started = printing.ago(time.time() - line.created_at) if line.created_at is not None else "-"
        name = Path(line.objective).name if line.objective is not None else "-"
        table.add_row(line.name, name, plain_answers.state_of_line(line), trials, best, started)
    printing.Terminal().print(table, markup=False)


def show(
    study: options.Study = None,
    trial: Trial = None,
    as_json: options.Json = False,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """One trial: its recipe, how it ended, its curve, what it cost, the end of its log."""
    shared = options.open_existing(storage)
    record, number = options.study_and_trial(shared, study, trial)
    if number is None:
        ranked = queries.best(shared, record)
        if not ranked:
            raise DialinError(f"{record.name} has no complete trial yet: name one, as in `dialin show {record.name} 0`")
        number = ranked[0].number
    found = queries.trial(shared, record, number)
    origin = provenance.origin(shared, record.study_id, found.attrs)
    log = log_of(options.files_root(files, storage), record, number)
    if as_json:
        typer.echo(printing.as_json(trial_as_json(record, found, origin, log)))
    else:
        print_trial(printing.Terminal(), record, found, origin, log, trial_logs.tail(log, LAST_LINES))


def logs(
    study: options.Study = None,
    trial: Annotated[
        int | None,
        typer.Argument(metavar="TRIAL", min=0, help="Number of the trial.", show_default="those that are running"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the trial, or the study, has ended.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(
            "--tail",
            min=0,
            metavar="N",
            help="Only the last lines.",
            show_default=f"all of one, {LINES_EACH} of several",
        ),
    ] = None,
    workers: Annotated[
        bool, typer.Option("--workers", help="What workers said between trials, on this machine.")
    ] = False,
    files: options.Files = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """What your code printed while a trial trained, errors with their frames too, and a line an epoch.

    Without TRIAL: the trials that are running, else the last few.
    """
    shared = options.open_existing(storage)
    record, number = options.study_and_trial(shared, study, trial)
    root = options.files_root(files, storage)
    if workers:
        _print_one(shared, record, None, Following(workers_log(root)), follow, tail)
    elif number is not None:
        queries.trial(shared, record, number)  # there is such a trial
        _print_one(shared, record, number, Following(log_of(root, record, number)), follow, tail)
    else:
        _print_several(shared, record, root, follow, LINES_EACH if tail is None else tail)


def _print_one(
    storage: SharedStorage, record: StudyRecord, number: int | None, log: Following, follow: bool, tail: int | None
) -> None:
    if not follow and not log.path.is_file():
        what = f"trial {number} of {record.name} has no log" if number is not None else "no worker has written a log"
        raise DialinError(
            f"{what}: there is no {log.path} (--files names another folder, as the workers' machine has it)"
        )
    _echo(log.start(tail))
    while follow and _goes_on(storage, record, number):
        time.sleep(POLL_SECONDS)
        _echo(log.more())
    _echo(log.rest())


def _goes_on(storage: SharedStorage, record: StudyRecord, number: int | None) -> bool:
    """Whether there will be more of the trial, or of the study."""
    if number is not None:
        return queries.trial(storage, record, number).outcome is None
    return not _over(queries.status(storage, studies.find(storage, record.name)))


def _over(status: StudyStatus) -> bool:
    """Whether nobody trains the study any more, and nobody is going to without being asked."""
    held = any(not trial.adoptable for trial in status.running)
    return status.finished or (status.over and not held)


def _print_several(storage: SharedStorage, record: StudyRecord, root: Path, follow: bool, lines: int) -> None:
    open_logs: dict[int, Following] = {}

    def begin(number: int, tail: int | None) -> None:
        open_logs[number] = Following(log_of(root, record, number), prefix=f"trial {number} | ")
        _echo(open_logs[number].start(tail))

    status = queries.status(storage, record)
    running = [trial.number for trial in status.running]
    last = [number for number, _ in queries.logged(storage, record)[:LOGS]]
    for number in sorted(running or last):
        begin(number, lines)
    if not open_logs and not follow:
        typer.echo(f"{record.name} has started no trial yet")
    while follow and not _over(status):
        time.sleep(POLL_SECONDS)
        status = queries.status(storage, studies.find(storage, record.name))
        for trial in status.running:
            if trial.number not in open_logs:
                begin(trial.number, None)
        for log in open_logs.values():
            _echo(log.more())
    for log in open_logs.values():
        _echo(log.rest())
    if follow:
        typer.echo(f"{record.name}: {printing.state_of(status)}")


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def watch(study: options.Study = None, storage: options.Storage = DEFAULT_URL) -> None:
    """Look on while a study is trained, wherever its workers are. It ends when the study does.

    Ctrl-C ends the watching and nothing else.
    """
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    console = printing.Terminal()
    status = queries.status(shared, record)
    printing.say(console, f"{record.name}: {printing.state_of(status)}, {printing.progress(status)}")
    if not _over(status):
        view = make_view(console, {}, doing="watched")
        try:
            status = _watch(shared, record, view)
        except KeyboardInterrupt:
            view.note(f"{record.name} goes on without you; stop it with dialin stop {record.name}")
            raise
        finally:
            view.close()
        printing.say(console, f"{record.name}: {printing.state_of(status)}, {printing.progress(status)}")
    if status.study.confirms:
        printing.say(console, f"{printing.confirm_command(status.study)} has the answer")
    elif best := queries.best(shared, status.study):
        printing.say(console, printing.best_line(best[0], status))


def _watch(storage: SharedStorage, record: StudyRecord, view: View) -> StudyStatus:
    """Redraw until the study is over. A database that does not answer is asked again. DialinError: it is gone."""
    outage, feed = Outage(view.note), Feed(storage, record)
    while True:
        try:
            with waiting(0):
                status = feed.show(view)
        except DATABASE_ERRORS as error:
            outage.not_answered(error)
        else:
            outage.answered()
            if status is None:
                raise DialinError(f"study {record.name!r} was deleted or renamed while it was watched")
            if _over(status):
                return status
        time.sleep(feed.rest(POLL_SECONDS))


def delete(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    files: options.Files = None,
    checkpoints: options.Checkpoints = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Delete a study for good: its trials in the database, its checkpoints, weights, pictures and logs.

    Its workers stop.
    """
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    status = queries.status(shared, record)
    root = options.files_root(files, storage)
    folder = _folder_of(root, record)
    held = sum(not trial.adoptable for trial in status.running)
    trials = record.taken + record.returned
    what = f"{record.name} with {counted(trials, 'trial')}"
    what += f" and the files in {folder}" if folder is not None else ""
    what += f"; {counted(held, 'worker')} training it now will stop" if held else ""
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"nobody can be asked here: --yes deletes {what}")
        typer.confirm(f"Delete {what}?", abort=True)
    pictures, confirmation = attached(shared, record), confirmations.of(shared, record)
    studies.delete(shared, record)
    Artifacts(root).forget(pictures)
    _clear(CheckpointSettings(checkpoints), root, record)
    left = _remove(folder, DELETE_SECONDS if held else 0.0) if folder is not None else ""
    typer.echo(f"deleted {record.name}" + (f", but not all of its files: {left}" if left else ""))
    if confirmation is not None:
        typer.echo(f"{confirmation.name}, which confirmed it, is still there")
    if left:
        raise typer.Exit(1)


def _clear(settings: CheckpointSettings, root: Path, record: StudyRecord) -> None:
    """What lies by itself, in another folder or in a bucket."""
    if settings.place is not None:
        from search.shelf import open_store  # imports torch

        open_store(settings, root, record.folder).clear()


def _folder_of(root: Path, record: StudyRecord) -> Path | None:
    """The study's own folder right below the files root; None where there is none. A link is not followed."""
    folder = root / record.folder
    if folder.parent != root or folder.name in ("", ".", "..") or not (folder.is_dir() or folder.is_symlink()):
        return None
    return folder


def _remove(folder: Path, patience: float) -> str:
    """Remove it with all that is in it; why some of it is left. Workers that have not noticed yet may add to it."""
    end = time.monotonic() + patience
    while True:
        reason = ""
        try:
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir():
                shutil.rmtree(folder)
        except OSError as error:
            reason = f"{folder}: {error.strerror}"
        if time.monotonic() >= end:
            return reason
        time.sleep(POLL_SECONDS)
