"""What is told of studies as plain values, to whom JSON is told: the commands' --json and the server's API, alike."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from search import confirmation, confirmation_page, cost_table, printing, ranking
from search.confirmation import Confirmation
from search.logs import log_of
from search.trial_page import trial_as_json
from storage import confirmations, costs, first_trials, provenance, queries
from storage.overview import last_number, overview
from storage.queries import StudyLine
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import StudyState


def all_studies(storage: SharedStorage) -> list[dict[str, Any]]:
    """Every study of the database, the newest first."""
    return [{**asdict(line), "state": state_of_line(line)} for line in reversed(queries.listing(storage))]


def state_of_line(line: StudyLine) -> str:
    """In a word or two."""
    if line.state is None:
        return "plain Optuna"
    if line.finished:
        return "finished"
    if line.state is not StudyState.RUNNING:
        return line.state.value
    return "running" if line.held else "no worker"


def status(storage: SharedStorage, record: StudyRecord) -> dict[str, Any]:
    """Where a study stands."""
    found = queries.status(storage, record)
    best = queries.best(storage, record)
    first = first_trials.noted(storage, record.study_id)
    answer = confirmation_of(storage, record)
    return {
        "study": asdict(record),
        "state": printing.state_of(found),
        "settled": found.settled,
        "counts": dict(found.counts),
        "waiting": found.waiting,
        "first_trials": [{"trial": number, "origin": one.origin} for number, one in enumerate(first)],
        "running": [asdict(trial) for trial in found.running],
        "adoptable": [trial.number for trial in found.running if trial.adoptable],
        "paused": [asdict(trial) for trial in found.paused],
        "workers": [asdict(worker) for worker in found.workers],
        **asdict(found.handovers),
        "epochs_trained": found.epochs_trained,
        "epochs_saved": found.epochs_saved,
        "seconds": found.seconds,
        "cost": cost_table.as_json(costs.of_study(storage, record)),
        "constraints": asdict(found.kept) if found.kept is not None else None,
        "outlook": asdict(found.outlook),
        "failures": [asdict(failure) for failure in found.failures],
        "best": printing.as_record(best[0], record) if best else None,
        "confirmed": confirmation_page.as_record(answer) if answer is not None else None,
    }


def confirmation_of(storage: SharedStorage, record: StudyRecord) -> Confirmation | None:
    """What has been confirmed of a study, or of the one that it confirms."""
    confirmed = confirmations.source_of(storage, record) if record.confirms else record
    return confirmation.read(storage, confirmed) if confirmed is not None else None


def best(storage: SharedStorage, record: StudyRecord, top: int) -> list[dict[str, Any]]:
    """The best trials, as `dialin best --format json` has them; none before the first is complete."""
    of = (confirmations.source_of(storage, record) or record) if record.confirms else record
    found = ranking.ranking(storage, of, top, confirmation.read(storage, of))
    settled = queries.status(storage, of).settled
    return [ranking.as_record(one, of, settled) for one in found]


def trials(storage: SharedStorage, record: StudyRecord, after: int, most: int) -> dict[str, Any]:
    """Trials whose number is larger than `after`, at most `most`; and `next`, the `after` for those behind them."""
    last = after + most
    found = [asdict(line) for line in overview(storage, record, range(after + 1, last + 1))]
    return {"trials": found, "next": last if last_number(storage, record) > last else None}


def trial(storage: SharedStorage, record: StudyRecord, number: int, files: Path) -> dict[str, Any]:
    """All of one trial, as `dialin show --json` has it. Raises UsageError: there is none."""
    found = queries.trial(storage, record, number)
    origin = provenance.origin(storage, record.study_id, found.attrs)
    return trial_as_json(record, found, origin, log_of(files, record, number))
