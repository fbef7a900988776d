"""How many trials a second many processes claim and settle, beside plain Optuna, and how many each of them runs.

    python -m benchmarks.claims --repeats 3

2,000 trials whose objective returns at once, random sampling, no pruner: 32 processes on PostgreSQL, 8 on SQLite.
Dialin's are workers as `dialin run` starts them, training a bare function: a lease, a log, a metric on record, a
settlement. Optuna's run the same function by `study.optimize` with MaxTrialsCallback on an RDBStorage of the same
database. Every process waits in its first trial until all have one; seconds count from there to the last settlement.
Prints, for each repeat, trials that were finished and that were left RUNNING, processes that ended in an error, lines
of error in a log, and trials a second; the two take turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import optuna
from optuna.trial import TrialState
from postgres_server import PostgresServer
from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.engine import make_url

from benchmarks.measured import option_parser, print_header, spread
from search import children
from search.assignment import Assignment
from search.devices import Slot
from storage import studies
from storage.optuna_internals import models
from storage.shared import open_storage
from storage.studies import StudySpec

OBJECTIVE = """
import os
import time
from pathlib import Path

HERE = Path(__file__).parent
waited = False


def objective(trial):
    global waited
    value = trial.suggest_float("x", 0, 1)
    if not waited:
        waited = True
        (HERE / "ready" / str(os.getpid())).touch()
        while not (HERE / "go").exists():
            time.sleep(0.01)
    return value
"""
ERRORS = re.compile(r"Traceback|ERROR|Error:|WARNING|Warning")
READY_SECONDS = 600


@dataclass(frozen=True)
class Run:
    """What came of one repeat."""

    finished: int
    running: int
    failed: int
    errors: int
    seconds: float

    @property
    def pace(self) -> float:
        """Trials a second."""
        return self.finished / self.seconds


@dataclass(frozen=True)
class Started:
    """A process, and what it says when it fails."""

    process: BaseProcess
    words: Connection

    def end(self) -> int:
        """Wait for it; its exit status."""
        self.process.join()
        if self.process.exitcode and self.words.poll():
            print(f"    a process ended with {self.process.exitcode}: {self.words.recv()}")
        return self.process.exitcode or 0


def run(system: str, url: str, folder: Path, processes: int, trials: int) -> Run:
    """Start the processes, let them go all at once, and count what they left."""
    (folder / "instant.py").write_text(OBJECTIVE)
    (folder / "ready").mkdir()
    began: list[Started] = SYSTEMS[system](url, folder, processes, trials)
    end = time.monotonic() + READY_SECONDS
    while len([*(folder / "ready").iterdir()]) < sum(one.process.is_alive() for one in began):
        assert time.monotonic() < end, "not every process got a trial"
        time.sleep(0.05)
    go = time.time()
    (folder / "go").touch()
    failed = sum(one.end() != 0 for one in began)
    seconds = time.time() - go
    finished, running = count(url)
    logs = [*folder.rglob("*.log"), *folder.rglob("log.txt")]
    errors = sum(len(ERRORS.findall(log.read_text(errors="replace"))) for log in logs)
    return Run(finished, running, failed, errors, seconds)


def count(url: str) -> tuple[int, int]:
    """Trials that ended and trials that did not."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    state = models.TrialModel.state
    with engine.connect() as connection:
        rows = connection.execute(select(state, func.count()).group_by(state))
        states: dict[TrialState, int] = dict(rows.all())
    engine.dispose()
    return sum(states.values()) - states.get(TrialState.RUNNING, 0), states.get(TrialState.RUNNING, 0)


def start_dialin(url: str, folder: Path, processes: int, trials: int) -> list[Started]:
    """A study and its workers."""
    file = str(folder / "instant.py")
    spec = StudySpec(file, "", "value", "minimize", 0, trials, 0, "random", "none")
    storage = open_storage(url)
    name = studies.create(storage, spec, stem="instant").name
    storage.backend.engine.dispose()
    return [
        start(work, Assignment(url, name, file, (Slot(("cpu",), index, None),), 1, folder / "files", folder))
        for index in range(processes)
    ]


def start_optuna(url: str, folder: Path, processes: int, trials: int) -> list[Started]:
    """The same with plain Optuna."""
    url = url.replace("postgresql://", "postgresql+psycopg://")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=storage, study_name="instant")
    storage.engine.dispose()
    return [start(optimize, url, str(folder), trials, index) for index in range(processes)]


SYSTEMS: dict[str, Callable[[str, Path, int, int], list[Started]]] = {
    "dialin": start_dialin,
    "optuna": start_optuna,
}


def start(target: Callable[..., None], *arguments: object) -> Started:
    """A process forked from one that has imported everything."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = children.start(target, theirs, *arguments)
    theirs.close()
    return Started(process, ours)


def work(connection: Connection, assignment: Assignment) -> None:
    """One worker of Dialin's."""
    from search.worker import run_in_fleet

    run_in_fleet(assignment, connection)


def optimize(_connection: Connection, url: str, folder: str, trials: int, index: int) -> None:
    """One process of plain Optuna's. What it complains of goes to a log."""
    log = os.open(f"{folder}/optuna-{index}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.path.insert(0, folder)
    objective = __import__("instant").objective
    study = optuna.load_study(study_name="instant", storage=url, sampler=optuna.samplers.RandomSampler(index))
    study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(trials)])


def measure(kind: str, processes: int, arguments: argparse.Namespace, server: PostgresServer | None) -> None:
    """The lines of one database."""
    runs: dict[str, list[Run]] = {system: [] for system in SYSTEMS}
    for repeat in range(arguments.repeats):
        for system, had in runs.items():
            with tempfile.TemporaryDirectory(prefix="dialin-claims-") as name:
                url = server.create_database() if server is not None else f"sqlite:///{name}/study.db"
                one = run(system, url, Path(name), processes, arguments.trials)
                if server is not None:
                    server.drop_database(make_url(url).render_as_string(hide_password=False))
            had.append(one)
            print(
                f"{kind:10s} {processes:9d}  {system:6s} {repeat:6d} {one.finished:9d} {one.running:8d} "
                f"{one.failed:7d} {one.errors:7d} {one.seconds:8.1f} {one.pace:9.1f}",
                flush=True,
            )
    for system, had in runs.items():
        paces = spread([one.pace for one in had])
        print(f"{kind}, {processes} processes, {system}: median {paces} trials a second, n = {len(had)}")


def main() -> None:
    """Measure and print the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--postgresql", type=int, default=32, help="processes; 0: not at all")
    parser.add_argument("--sqlite", type=int, default=8, help="processes; 0: not at all")
    arguments = parser.parse_args()
    print_header("optuna", "sqlalchemy", "psycopg")
    print(f"{arguments.trials} trials")
    print("database   processes  system repeat  finished  running  failed  errors  seconds  a second")
    children.warm_up()
    if arguments.postgresql:
        with tempfile.TemporaryDirectory() as folder:
            server = PostgresServer(Path(folder))
            try:
                measure("postgresql", arguments.postgresql, arguments, server)
            finally:
                server.stop()
    if arguments.sqlite:
        measure("sqlite", arguments.sqlite, arguments, None)


if __name__ == "__main__":
    # Under its own name: a forked process finds functions by their module, and `__main__` is another there.
    from benchmarks import claims

    claims.main()
