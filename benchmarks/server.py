"""How long the server's clients wait, and what it holds, while workers write to the study that they look at.

    python -m benchmarks.server --database postgresql
    python -m benchmarks.server --database sqlite

A study of 10,000 trials of 30 epochs. 8 processes train in it as far as the database can tell: they claim, record an
epoch every 100 ms, settle after 5, and import no torch. 20 clients ask `dialin serve` for the same things at the same
time, each for all of PATHS and again a second after it has them; every client sends a token and keeps its connection.
Prints how long answers took (median, 95th percentile, longest), the server's memory, and the epochs a second that the
workers recorded with clients and without any: what looking costs them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import optuna
import psutil
from optuna.samplers import RandomSampler
from postgres_server import PostgresServer
from sqlalchemy import func, select

from benchmarks.filled_study import fill
from benchmarks.measured import option_parser, print_header
from storage import studies, tokens, workers
from storage.claims import Claimant, Epoch, Settlement, new_uuid
from storage.outcomes import Outcome
from storage.shared import open_storage
from storage.studies import StudySpec
from storage.tables import EpochRow, Role

STUDY = "big"
PATHS = ("/v1/fleet", "/v1/studies/big", "/v1/studies/big/best?top=5", "/v1/studies/big/trials?after={after}&limit=100")
EPOCHS, EPOCH_SECONDS = 5, 0.1
READY_SECONDS = 120.0


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each part")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print_header("optuna", "sqlalchemy", "fastapi", "uvicorn")
    with tempfile.TemporaryDirectory() as folder, database(arguments.database, Path(folder)) as url:
        token = prepare(url, arguments.trials)
        with writing(url, arguments.workers):
            alone = epochs_a_second(url, arguments.seconds)
            with serving(url, Path(folder)) as (port, server):
                held = [server.memory_info().rss]
                took, seen = poll(port, token, arguments)
                held.append(server.memory_info().rss)
        tell(arguments, (alone, seen), took, held)


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """An empty one."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'study.db'}"
        return
    logs = folder / "postgres"
    logs.mkdir()
    server = PostgresServer(logs)
    try:
        yield server.create_database()
    finally:
        server.stop()


def prepare(url: str, trials: int) -> str:
    """The study; an operator's token in return."""
    storage = open_storage(url)
    spec = StudySpec("digits", "0" * 64, "accuracy", "maximize", 30, trials * 2, 0, "random", "none")
    record = studies.create(storage, spec, name=STUDY, stem=STUDY)
    fill(storage.backend.engine, record.study_id, trials, own=True)
    token = tokens.create(storage, "benchmark", Role.OPERATOR)
    storage.backend.engine.dispose()
    return token


@contextmanager
def writing(url: str, count: int) -> Iterator[None]:
    """So many processes that write, all of them at it already."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(count + 1)
    processes = [context.Process(target=write, args=(url, ready), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    ready.wait(READY_SECONDS)
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def write(url: str, ready: Any) -> None:
    """What a worker writes."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url, Claimant(new_uuid()))
    claimant = storage.backend.claimant
    assert claimant is not None
    study = optuna.load_study(study_name=STUDY, storage=storage, sampler=RandomSampler())
    record = studies.find(storage, STUDY)
    workers.register(storage, claimant.worker_id, record.study_id, [workers.Place("cpu", None)])
    ready.wait(READY_SECONDS)
    while True:
        trial = study.ask()
        with storage.sampling(trial):
            lr = trial.suggest_float("lr", 1e-5, 1.0, log=True)
            trial.set_user_attr("settings", {"lr": lr})
        for epoch in range(1, EPOCHS + 1):
            time.sleep(EPOCH_SECONDS)
            value = random.random()
            told = Epoch(epoch, value, {"accuracy": value}, EPOCH_SECONDS, 1000, "cpu")
            storage.record_epoch(storage.lease_of(trial), told)
        storage.settle(study, trial, Settlement(Outcome.COMPLETE), value)


def epochs_a_second(url: str, seconds: float) -> float:
    """Recorded from now on."""
    first, began = _epochs(url), time.monotonic()
    time.sleep(seconds)
    return (_epochs(url) - first) / (time.monotonic() - began)


def _epochs(url: str) -> int:
    storage = open_storage(url)
    with storage.backend.read() as session:
        count = session.scalar(select(func.count()).select_from(EpochRow)) or 0
    storage.backend.engine.dispose()
    return count


@contextmanager
def serving(url: str, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The real command; its port and its process."""
    dialin = Path(sys.executable).with_name("dialin")
    command = [str(dialin), "serve", "--port", "0", "--storage", url, "--files", str(folder / "files")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        try:
            yield int(line.split("http://127.0.0.1:")[1].split()[0]), psutil.Process(process.pid)
        finally:
            process.terminate()


def poll(port: int, token: str, arguments: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Seconds that answers took, by path; and the epochs a second recorded meanwhile."""
    took: dict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + arguments.seconds
    clients = [
        threading.Thread(target=_ask, args=(port, token, end, arguments.trials, took, number / arguments.clients))
        for number in range(arguments.clients)
    ]
    for client in clients:
        client.start()
    own = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    status, began = _get(own, PATHS[1], token), time.monotonic()
    for client in clients:
        client.join()
    own.close()  # the server closes one that is idle
    later = _get(own, PATHS[1], token)
    return took, (later["epochs_trained"] - status["epochs_trained"]) / (time.monotonic() - began)


def _ask(port: int, token: str, end: float, trials: int, took: dict[str, list[float]], late: float) -> None:
    time.sleep(late)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.monotonic() < end:
        for path in PATHS:
            began = time.monotonic()
            _get(connection, path.format(after=random.randrange(trials)), token)
            took[path].append(time.monotonic() - began)
        time.sleep(1.0)


def _get(connection: http.client.HTTPConnection, path: str, token: str) -> Any:
    connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, (path, answer.status, body[:200])
    return json.loads(body)


def tell(
    arguments: argparse.Namespace, epochs: tuple[float, float], took: dict[str, list[float]], held: list[int]
) -> None:
    """`epochs` a second without clients and with them; `held`: the server's memory before them and after."""
    print(f"{arguments.database}, {arguments.trials} trials, {arguments.clients} clients, {arguments.workers} workers")
    print(f"{'':<48} answers   median      95%  longest, ms")
    for path, seconds in took.items():
        ordered = sorted(seconds)
        cells = (statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])
        print(f"{path:<48} {len(ordered):7} " + " ".join(f"{1000 * cell:8.1f}" for cell in cells))
    print(f"memory of the server: {held[0] / 2**20:.0f} MiB before the clients came, {held[1] / 2**20:.0f} MiB after")
    print(f"epochs a second of the workers: {epochs[0]:.1f} without clients, {epochs[1]:.1f} with them")


if __name__ == "__main__":
    main()
