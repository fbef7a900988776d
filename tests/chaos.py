"""Workers that die at any moment: a study is trained by processes that are killed, frozen and replaced at random.

`test_chaos.py` runs a short one, `benchmarks/chaos.py` long ones; `chaos_checks.py` says what must hold afterwards.
A worker is what `dialin run` forks; this stands in for the command, which sees its workers die and starts new ones.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import halving
from postgres_server import PostgresServer
from sqlalchemy import Engine, NullPool, create_engine, text
from studies import OBJECTIVES, optuna_url

from search import children
from search.assignment import Assignment
from search.devices import Slot
from storage import studies, workers
from storage.patience import DATABASE_ERRORS
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec

OBJECTIVE = OBJECTIVES / "chaotic.py"
LOOK_SECONDS = 0.05

# What may happen to a worker.
KILL, END, FREEZE = "SIGKILL", "SIGTERM", "SIGSTOP"


@dataclass(frozen=True)
class Plan:
    """How much happens. Blows fall at even distances of the epochs on record, so that all of them do fall.

    Attributes:
        blows: what may happen to a worker, with weights.
        every: seconds from blow to blow, from least to most; None: as epochs come in.
        unseen: the share of deaths that nobody reports: those trials wait for the end of their leases.
        outages: how often the server is killed and started again.
        away: seconds that it is away, from least to most.
        frozen: seconds that a worker is frozen, from least to most.
        step_seconds: least time of a batch.
        tempo: constants of the workers' modules ("module:NAME") that are other than for people.
        pauses: whether the strategy is that of `halving`.
    """

    workers: int
    trials: int
    epochs: int
    blows_in_all: int
    blows: Mapping[str, float] = field(default_factory=lambda: {KILL: 1.0})
    every: tuple[float, float] | None = None
    unseen: float = 0.0
    outages: int = 0
    away: tuple[float, float] = (0.2, 1.0)
    frozen: tuple[float, float] = (1.0, 3.0)
    lease_seconds: float = 30.0
    step_seconds: float = 0.005
    pruner: str = "none"
    seed: int = 0
    tempo: Mapping[str, float] = field(default_factory=dict)
    pauses: bool = False
    limit_seconds: float = 600.0


@dataclass
class Member:
    """A worker process. `thaw_at`: when it is let go on, for one that is frozen."""

    process: BaseProcess
    worker_id: str
    words: Connection
    struck: str = ""
    thaw_at: float | None = None


@dataclass
class Report:
    """What happened: blows by kind, outages, workers started, last words of workers that failed by themselves."""

    blows: Counter[str] = field(default_factory=Counter)
    outages: int = 0
    started: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Chaos:
    """One study and those who train it. `run` returns when all workers have ended by themselves."""

    def __init__(self, url: str, folder: Path, plan: Plan, server: PostgresServer | None = None) -> None:
        """`folder` takes files and logs; `server` is the one to kill, for a plan with outages."""
        self.url, self.folder, self.plan = url, folder, plan
        self.files, self.steps = folder / "files", folder / "steps"
        self.steps.mkdir(parents=True)
        self.report = Report()
        self._server = server
        self._random = random.Random(plan.seed)
        self._storage: SharedStorage = open_storage(url)
        spec = StudySpec(
            str(OBJECTIVE), "", "loss", "minimize", plan.epochs, plan.trials, plan.seed, "random", plan.pruner
        )
        self.study: StudyRecord = studies.create(self._storage, spec, stem="chaotic")
        self._members: list[Member] = []
        self._seen: list[str] = []
        self._unseen: list[str] = []
        self._next_blow = 0.0

    def run(self) -> Report:
        """Train the study to its end under blows.

        Raises:
            AssertionError: it did not end within the plan's limit.
        """
        began = time.monotonic()
        children.warm_up()
        try:
            while self._go_on():
                assert time.monotonic() - began < self.plan.limit_seconds, f"no end: {self.report}, {self._told()}"
                time.sleep(LOOK_SECONDS)
            self._report(self._unseen)  # somebody looks in the end
        finally:
            for member in self._members:
                member.process.kill()
                member.process.join()
            self._storage.backend.engine.dispose()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _go_on(self) -> bool:
        """One look at everything; False when nobody works any more and nobody need be started."""
        self._thaw()
        for member in [one for one in self._members if not one.process.is_alive()]:
            self._bury(member)
        try:
            self._report(self._seen)
            done, epochs = self._progress()
        except DATABASE_ERRORS:
            return True
        while not done and len(self._members) < self.plan.workers:
            self._start()
        self._strike(epochs)
        return bool(self._members) or not done

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        assignment = Assignment(
            self.url,
            self.study.name,
            str(OBJECTIVE),
            (Slot(("cpu",), len(self._members), None),),
            threads=1,
            files=self.files,
            data=self.folder,
            lease_seconds=self.plan.lease_seconds,
        )
        steps = {"CHAOS_STEPS": str(self.steps), "CHAOS_STEP_SECONDS": str(self.plan.step_seconds)}
        process = children.start(work, theirs, assignment, steps, dict(self.plan.tempo), self.plan.pauses)
        theirs.close()
        self._members.append(Member(process, assignment.worker_id, ours))
        self.report.started += 1

    def _bury(self, member: Member) -> None:
        """What the command does for a worker that is dead; one that nobody saw is reported when all is over."""
        self._members.remove(member)
        code = member.process.exitcode
        # One that only starts dies of SIGTERM.
        if code and not (member.struck and code in (-signal.SIGKILL, -signal.SIGTERM)):
            self.report.failures.append(_last_words(member))
        if code:
            unseen = member.struck and self._random.random() < self.plan.unseen
            (self._unseen if unseen else self._seen).append(member.worker_id)
        member.words.close()
        member.process.close()

    def _report(self, dead: list[str]) -> None:
        while dead:
            workers.end(self._storage, dead[-1])
            dead.pop()

    def _progress(self) -> tuple[bool, int]:
        """Whether all trials are settled, and how many epochs are on record."""
        with looking(self.url) as engine, engine.connect() as connection:
            settled = connection.scalar(text("SELECT count(*) FROM dialin_trials WHERE settlement IS NOT NULL"))
            epochs = connection.scalar(text("SELECT count(*) FROM dialin_epochs"))
        return bool(settled == self.plan.trials), int(epochs or 0)

    # -- What happens to them.

    def _strike(self, epochs: int) -> None:
        plan, total = self.plan, self.plan.trials * self.plan.epochs
        if self.report.outages < plan.outages and epochs * (plan.outages + 1) >= total * (self.report.outages + 1):
            self._crash()
        fallen = sum(self.report.blows.values())
        due = (
            epochs * (plan.blows_in_all + 1) >= total * (fallen + 1)
            if plan.every is None
            else time.monotonic() >= self._next_blow
        )
        if fallen < plan.blows_in_all and due and (victims := [one for one in self._members if not one.thaw_at]):
            self._hit(self._random.choice(victims))
            self._next_blow = time.monotonic() + self._random.uniform(*(plan.every or (0.0, 0.0)))

    def _hit(self, member: Member) -> None:
        [blow] = self._random.choices([*self.plan.blows], [*self.plan.blows.values()])
        pid = member.process.pid
        assert pid is not None
        with suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, blow))
        member.struck = blow
        if blow == FREEZE:
            member.thaw_at = time.monotonic() + self._random.uniform(*self.plan.frozen)
        elif blow == KILL:
            member.process.join()
        self.report.blows[blow] += 1

    def _thaw(self) -> None:
        for member in self._members:
            if member.thaw_at is not None and time.monotonic() >= member.thaw_at and member.process.pid is not None:
                member.thaw_at = None
                os.kill(member.process.pid, signal.SIGCONT)

    def _crash(self) -> None:
        assert self._server is not None, "a plan with outages needs a server to kill"
        self._server.crash()
        time.sleep(self._random.uniform(*self.plan.away))
        self._server.start_again()
        self.report.outages += 1

    def _told(self) -> str:
        return "; ".join(f"{member.process.pid} alive, struck: {member.struck or 'never'}" for member in self._members)


@contextmanager
def looking(url: str) -> Iterator[Engine]:
    """An engine beside Dialin's own."""
    engine = create_engine(optuna_url(url), poolclass=NullPool)
    try:
        yield engine
    finally:
        engine.dispose()


def work(
    connection: Connection, assignment: Assignment, steps: dict[str, str], tempo: dict[str, float], pauses: bool
) -> None:
    """The body of a worker process: `search.worker`'s, with the test's environment, tempo and strategy."""
    from search.worker import run_in_fleet

    os.environ.update(steps)
    for name, value in tempo.items():
        module, constant = name.split(":")
        assert hasattr(importlib.import_module(module), constant), f"there is no {name}"
        setattr(importlib.import_module(module), constant, value)
    if pauses:
        run_in_fleet(assignment, connection, halving.make)
    else:
        run_in_fleet(assignment, connection)


def _last_words(member: Member) -> str:
    said: Any = ""
    with suppress(EOFError):
        said = member.words.recv() if member.words.poll() else ""
    return f"a worker ended with {member.process.exitcode} after {member.struck or 'nothing'}: {said}"
