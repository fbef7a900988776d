"""What a trial costs the database, and how long it waits for it, beside plain Optuna.

    python -m benchmarks.storage --repeats 5

A trial has 10 parameters (3 of them conditional), 30 reports and a pruning decision at each; it leads from its first
epoch, so that none prunes it. Both sample with TPE; each prunes as it does by default (Optuna: median, Dialin:
Hyperband), or both as `--pruner` says. "ms" is the time inside the storage's methods, for Dialin in all threads: what
TPE computes is neither's. Dialin's epochs come back to back, when most share a transaction, and a second apart by the
clock that it is given, when none does: what it gains on plain Optuna, which commits each, lies between. The study has
so many finished trials of 30 values, and for "waiting" and "running" 500 unfinished ones beside them. Each system has a
database of its own for each of them, in one server or folder, and they take turns.
Then, on the largest study, in a process of its own: the first read of all trials, what it adds to the process's memory,
and what `best`, `status` and a poll of optuna-dashboard take.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import optuna
import optuna_dashboard
import psutil
from optuna.trial import TrialState
from postgres_server import PostgresServer

from benchmarks.measured import print_header
from benchmarks.storage_systems import NAME, SYSTEMS, Asked, System

UNFINISHED = 500
# What is printed, by the name of its system and the seconds from epoch to epoch. The first is what the others are to.
LINES = {"optuna": ("optuna", 0.0), "dialin": ("dialin", 0.0), "dialin, 1 s apart": ("dialin", 1.0)}
# What is counted, and by what it is multiplied to be printed.
COLUMNS = {"statements": 1, "commits": 1, "seconds": 1000}


@contextmanager
def places(kind: str, names: list[str]) -> Iterator[dict[str, str]]:
    """URLs of an empty database for each system."""
    with tempfile.TemporaryDirectory(prefix="dialin-storage-") as folder:
        if kind == "sqlite":
            yield {name: f"sqlite:///{folder}/{name}.db" for name in names}
            return
        server = PostgresServer(Path(folder))
        try:
            urls = {name: server.create_database() for name in names}
            yield {name: url.replace("postgresql://", "postgresql+psycopg://") for name, url in urls.items()}
        finally:
            server.stop()


@dataclass(frozen=True)
class Case:
    """A study with so many finished trials, and UNFINISHED others that are "waiting" or "running", or "-" for none."""

    trials: int
    unfinished: str

    def made(self, name: str, url: str, pruner: str | None) -> System:
        """The study in a system's database, with what is read once read."""
        system = SYSTEMS[name](url, pruner)
        state = TrialState.RUNNING if self.unfinished == "running" else TrialState.WAITING
        system.make(self.trials, 0 if self.unfinished == "-" else UNFINISHED, state)
        system.open()
        system.trial()
        return system


def measure_trials(kind: str, cases: list[Case], given: argparse.Namespace) -> None:
    """The lines of several studies. Systems and studies take turns: a machine's pace changes from minute to minute."""
    lines = {line: how for line, how in LINES.items() if how[0] in given.systems}
    names = {
        (name, case): f"{name}_{case.trials}_{number}" for name in given.systems for number, case in enumerate(cases)
    }
    with places(kind, [*names.values()]) as urls:
        systems = {key: key[1].made(key[0], urls[place], given.pruner) for key, place in names.items()}
        had: dict[tuple[str, Case], list[Asked]] = {(line, case): [] for case in cases for line in lines}
        for _ in range(given.repeats):
            for line, case in had:
                name, apart = lines[line]
                with systems[name, case].clock.block() as asked:
                    systems[name, case].trial(apart)
                had[line, case].append(asked)
        for system in systems.values():
            system.engine.dispose()
    for (line, case), all_asked in had.items():
        told = [spread([getattr(one, what) for one in all_asked], scale) for what, scale in COLUMNS.items()]
        cells = " ".join(f"{cell:>20s}" for cell in told)
        ratio = ""
        if line != "optuna" and "optuna" in lines:
            pairs = zip(all_asked, had["optuna", case], strict=True)
            ratio = spread([ours.seconds / theirs.seconds for ours, theirs in pairs], 1, 2)
        print(f"{kind:10s} {case.trials:6d} {case.unfinished:10s} {line:17s} {cells} {ratio}")
    sys.stdout.flush()


def spread(values: list[float], scale: float = 1, digits: int = 0) -> str:
    """Median, least and most."""
    numbers = (statistics.median(values), min(values), max(values))
    median, low, high = (f"{number * scale:.{digits}f}" for number in numbers)
    return f"{median} ({low} to {high})"


def measure_reads(kind: str, trials: int, given: argparse.Namespace) -> None:
    """The lines of the largest study, each from a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    with places(kind, list(SYSTEMS)) as urls:
        for name, make in SYSTEMS.items():
            system = make(urls[name], given.pruner)
            system.make(trials, 0, TrialState.RUNNING)
            system.engine.dispose()
        had: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
        for _ in range(given.reads):
            for name in SYSTEMS:
                ours, theirs = fresh.Pipe(duplex=False)
                process = fresh.Process(target=read, args=(theirs, name, urls[name], given.pruner, trials))
                process.start()
                had[name].append(ours.recv())
                process.join()
    for what in had["dialin"][0]:
        theirs_all = [one[what] for one in had["optuna"] if what in one]
        ours_all = [one[what] for one in had["dialin"]]
        ratio = spread([a / b for a, b in zip(ours_all, theirs_all, strict=True) if b], 1, 3) if theirs_all else ""
        told = f"optuna {spread(theirs_all, 1, 2)}" if theirs_all else "optuna -"
        print(f"{kind:10s} {trials:6d} {what:28s} {told:36s} dialin {spread(ours_all, 1, 2):28s} ratio {ratio}")
    sys.stdout.flush()


def read(connection: Any, name: str, url: str, pruner: str | None, trials: int) -> None:
    """In a process of its own: everything that is read of a large study, in seconds and MB."""
    quiet()
    system = SYSTEMS[name](url, pruner)
    study_id = system.storage.get_study_id_from_name(NAME)
    before = memory()
    began = time.perf_counter()
    system.storage.get_all_trials(study_id, deepcopy=False)
    told = {"first read, s": time.perf_counter() - began}
    gc.collect()
    told["memory of it, MB"] = memory() - before
    system.open()
    system.trial()
    told["memory after a trial, MB"] = memory() - before
    for what, look in system.looks().items():
        told[f"{what}, s"] = timed(look)
    app = optuna_dashboard.wsgi(system.storage)
    poll(app, study_id, trials)
    app._inmemory_cache._trials_last_fetched_at.clear()  # ten seconds later
    with system.clock.block() as asked:
        poll(app, study_id, trials)
    told["poll's storage time, s"] = asked.seconds
    connection.send(told)


def timed(look: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    look()
    return time.perf_counter() - began


def poll(app: Any, study_id: int, trials: int) -> None:
    """What the dashboard's page asks every few seconds, from the last of so many trials on."""
    environ: dict[str, Any] = {"QUERY_STRING": f"after={max(0, trials - 1)}", "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    environ |= {"PATH_INFO": f"/api/studies/{study_id}", "REQUEST_METHOD": "GET"}
    assert "trials" in json.loads(b"".join(app(environ, lambda *_: None)))


def memory() -> float:
    """This process's resident set in MB."""
    return float(psutil.Process().memory_info().rss) / 1e6


def quiet() -> None:
    """No lines from Optuna."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="trials of each system on each study")
    parser.add_argument("--reads", type=int, default=3, help="first reads of each system")
    parser.add_argument("--trials", type=int, nargs="*", default=[0, 1000, 10_000], help="finished trials")
    parser.add_argument("--pruner", help="the same for both, by Dialin's names; default: each its own")
    parser.add_argument("--databases", nargs="*", default=["sqlite", "postgresql"])
    parser.add_argument("--systems", nargs="*", default=[*SYSTEMS], choices=[*SYSTEMS], help="of trials")
    given = parser.parse_args()
    quiet()
    print_header("optuna", "sqlalchemy", "psycopg")
    print(f"n = {given.repeats} trials and {given.reads} first reads of each: median (least to most)")
    print(f"database   trials unfinished {'system':17s} {'statements':>20s} {'commits':>20s} {'ms':>20s}  ratio")
    for kind in given.databases:
        for trials in given.trials:
            crowds = ("-", "waiting", "running") if trials == max(given.trials) else ("-",)
            measure_trials(kind, [Case(trials, crowd) for crowd in crowds], given)
    if given.reads:
        for kind in given.databases:
            measure_reads(kind, max(given.trials), given)


if __name__ == "__main__":
    main()
