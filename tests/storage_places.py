"""Short ways to a study, a worker and a trial, for the storage tests."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import Trial
from sqlalchemy import event, func, select
from sqlalchemy.pool import Pool

from storage import queue, studies
from storage.claims import LEASE_SECONDS, Claimant, Epoch, GivenUp, Lease, Settlement, new_uuid
from storage.first_trials import FirstTrial
from storage.outcomes import Outcome
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec
from storage.tables import Base

SPEC = StudySpec(
    objective="digits",
    objective_sha256="0" * 64,
    metric="accuracy",
    direction="maximize",
    epochs=5,
    trials=4,
    seed=1,
    sampler="tpe",
    pruner="none",
)
DONE = Settlement(Outcome.COMPLETE)


@contextmanager
def connections_closed() -> Iterator[None]:
    """Whatever is opened to a database in this block is closed at its end."""
    opened: list[Any] = []

    def remember(connection: Any, _record: object) -> None:
        opened.append(connection)

    event.listen(Pool, "connect", remember)
    try:
        yield
    finally:
        event.remove(Pool, "connect", remember)
        for connection in opened:
            connection.close()


def make_study(storage: SharedStorage, *, first: int = 0, **changes: Any) -> StudyRecord:
    """A study of a name of its own, as SPEC has it but for `changes`, with `first` enqueued trials."""
    enqueued = [FirstTrial({"x": float(number)}) for number in range(first)]
    return studies.create(storage, replace(SPEC, **changes), stem=f"s{new_uuid()[:8]}", first=enqueued)


def worker_on(url: str, lease_seconds: float = LEASE_SECONDS) -> SharedStorage:
    """A storage as a worker opens it."""
    return open_storage(url, Claimant(new_uuid(), lease_seconds))


def optuna_study(storage: SharedStorage | RDBStorage, record: StudyRecord, sampler: BaseSampler | None = None) -> Any:
    """The Optuna study through which a worker asks and tells."""
    return optuna.load_study(study_name=record.name, storage=storage, sampler=sampler or RandomSampler(seed=0))


def run_trial(
    storage: SharedStorage, record: StudyRecord, settlement: Settlement = DONE, value: float | None = 0.5
) -> Trial:
    """Claim a trial, train one epoch and settle it."""
    study = optuna_study(storage, record)
    trial: Trial = study.ask()
    storage.record_epoch(storage.lease_of(trial), an_epoch(1))
    storage.settle(study, trial, settlement, value if settlement.outcome is Outcome.COMPLETE else None)
    return trial


def an_epoch(number: int, value: float | None = 0.5, **changes: Any) -> Epoch:
    """One epoch's results."""
    metrics = {"loss": 1.0} if value is None else {"accuracy": value, "loss": 1.0}
    epoch = Epoch(number, value, metrics, seconds=0.25, samples=64, device="cpu")
    return replace(epoch, **changes)


def fresh(storage: SharedStorage, record: StudyRecord) -> StudyRecord:
    """The study as the database has it now."""
    return studies.find(storage, record.name)


def rows(storage: SharedStorage, table: Any, *conditions: Any) -> list[Any]:
    """All rows of a mapped table under these conditions, by the table's own columns."""
    columns = table.__table__.columns
    with storage.backend.read() as session:
        return list(session.execute(select(*columns).where(*conditions)).all())


def dialin_rows(storage: SharedStorage) -> dict[str, int]:
    """The number of rows in each of Dialin's tables but the schema's version, where there are any."""
    counts = {}
    with storage.backend.read() as session:
        for name, table in Base.metadata.tables.items():
            counts[name] = session.scalar(select(func.count()).select_from(table)) or 0
    del counts["dialin_schema"]
    return {name: count for name, count in counts.items() if count}


def adopted_by(storage: SharedStorage, record: StudyRecord) -> Lease:
    """The lease of a trial that can be adopted now or soon."""
    found: Lease | GivenUp | None = None

    def adopt() -> bool:
        nonlocal found
        found = storage.adopt(record.study_id)
        return found is not None

    wait_until(adopt)
    assert isinstance(found, Lease)
    return found


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Return when the condition holds; fail when it does not in that time."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        pause.wait(0.01)


@contextmanager
def statements(storage: SharedStorage) -> Iterator[list[str]]:
    """What is asked of the database in this block, BEGIN aside."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith("BEGIN"):
            asked.append(statement)

    event.listen(storage.backend.engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(storage.backend.engine, "before_cursor_execute", note)


def newcomer(storage: SharedStorage) -> str:
    """A worker of the queue, which serves nothing yet."""
    me = new_uuid()
    queue.announce(storage, me)
    return me


def a_study(storage: SharedStorage, objective: Path | str, trials: int = 1, epochs: int = 1) -> StudyRecord:
    """Of a file, or of an objective that a worker finds by its name."""
    text = Path(objective).read_bytes() if Path(objective).exists() else b""
    sha256 = hashlib.sha256(text).hexdigest()
    given: dict[str, Any] = {
        "objective": str(objective),
        "objective_sha256": sha256,
        "sampler": "random",
        "epochs": epochs,
    }
    return make_study(storage, trials=trials, **given)
