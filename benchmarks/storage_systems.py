"""One trial in a database as each system lives it, and what it asked of the database. `storage.py` measures with it."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from benchmarks.filled_study import EPOCHS, fill, fill_unfinished, suggest
from search import samplers
from search.checkpointer import Checkpointer
from search.interrupt import Interrupt
from search.reporter import TrialReporter
from search.reporting import EpochResult
from search.shelf import Shelf
from storage import micro_batches, queries, studies
from storage.claims import Claimant, Settlement, new_uuid
from storage.outcomes import Outcome
from storage.retention import retire_weights, worth_keeping
from storage.shared import SharedStorage, open_storage
from storage.studies import StudySpec

NAME = "filled"
MANY = 1_000_000


@dataclass
class Asked:
    """What a block asked of the database. BEGIN is not counted: most drivers send it unseen."""

    statements: int = 0
    commits: int = 0
    seconds: float = 0.0


class Clock:
    """Counts on one engine, and the time inside a storage's methods, whoever of its threads calls them."""

    def __init__(self, storage: Any, engine: Engine) -> None:
        self.asked = Asked()
        self._inside = threading.local()
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "commit", self._commit)
        for name in dir(type(storage)):
            method = getattr(storage, name, None)
            if callable(method) and not name.startswith("_"):
                setattr(storage, name, self.timed(method))

    def _statement(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.asked.statements += not statement.startswith("BEGIN")

    def _commit(self, _connection: Any) -> None:
        self.asked.commits += 1

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same; a call inside another is the other's."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "one", False):
                return method(*args, **kwargs)
            self._inside.one, began = True, time.perf_counter()
            try:
                answer = method(*args, **kwargs)
                return TimedBlock(self, answer) if isinstance(answer, AbstractContextManager) else answer
            finally:
                self._inside.one = False
                self.asked.seconds += time.perf_counter() - began

        return call

    @contextmanager
    def block(self) -> Iterator[Asked]:
        """What is asked in it."""
        self.asked = Asked()
        yield self.asked


class TimedBlock:
    """A context manager of a storage's, such as `sampling`: its beginning and its end are timed, what is in it not."""

    def __init__(self, clock: Clock, block: AbstractContextManager[Any]) -> None:
        self._clock, self._block = clock, block

    def __enter__(self) -> Any:
        return self._clock.timed(self._block.__enter__)()

    def __exit__(self, *raised: Any) -> bool | None:
        silenced: bool | None = self._clock.timed(self._block.__exit__)(*raised)
        return silenced


class PlainOptuna:
    """Optuna as its users write it: `create_study(storage=URL)`, `report` and `should_prune`, `tell`."""

    def __init__(self, url: str, pruner: str | None) -> None:
        self.storage = optuna.storages.get_storage(url)
        self.engine: Engine = cast(Any, self.storage)._backend.engine
        self._pruner: BasePruner = MedianPruner() if pruner is None else samplers.make_pruner(pruner, EPOCHS)

    def make(self, trials: int, unfinished: int, state: TrialState) -> None:
        """A study with so many finished and unfinished trials."""
        study = optuna.create_study(storage=self.storage, study_name=NAME, direction="maximize")
        fill(self.engine, study._study_id, trials, own=False)
        if unfinished:
            fill_unfinished(self.engine, study._study_id, trials, unfinished, state)

    def open(self) -> None:
        """As a process of its own does."""
        sampler = TPESampler(seed=0)
        self.clock = Clock(self.storage, self.engine)
        self.study = optuna.load_study(study_name=NAME, storage=self.storage, sampler=sampler, pruner=self._pruner)

    def trial(self, _apart: float = 0.0) -> None:
        """One of 30 epochs that leads from the first, so that every decision has to look.

        How far they are apart makes no difference to it.
        """
        trial = self.study.ask()
        suggest(trial)
        for epoch in range(1, EPOCHS + 1):
            trial.report(0.9 + epoch / 1000, epoch)
            trial.should_prune()
        self.study.tell(trial, 0.99)

    def looks(self) -> dict[str, Callable[[], Any]]:
        """What people ask of a study."""
        return {"best": lambda: self.study.best_trial}


class Dialin:
    """A worker's own steps around training: claim, sampling, `TrialReporter`, settlement."""

    def __init__(self, url: str, pruner: str | None) -> None:
        self.storage: SharedStorage = open_storage(url, Claimant(new_uuid()))
        self.engine = self.storage.backend.engine
        self._pruner = pruner or "hyperband"

    def make(self, trials: int, unfinished: int, state: TrialState) -> None:
        """A study with so many finished and unfinished trials."""
        spec = StudySpec("digits", "0" * 64, "accuracy", "maximize", EPOCHS, MANY, 0, "tpe", self._pruner)
        record = studies.create(self.storage, spec, name=NAME, stem=NAME)
        fill(self.engine, record.study_id, trials, own=True)
        if unfinished:
            fill_unfinished(self.engine, record.study_id, trials, unfinished, state)

    def open(self) -> None:
        """As a process of its own does."""
        self.record = studies.find(self.storage, NAME)
        self.clock = Clock(self.storage, self.engine)
        self.study = optuna.load_study(
            study_name=NAME,
            storage=cast(BaseStorage, self.storage),
            sampler=samplers.make_sampler("tpe", 0, 0),
            pruner=samplers.make_pruner(self._pruner, EPOCHS),
        )

    def trial(self, apart: float = 0.0) -> None:
        """The same trial, as `search.worker` and `search.trainer` take it through.

        `apart`: so many seconds pass from epoch to epoch, by the clock that the reporter has.
        """
        assert self.storage.adopt(self.record.study_id) is None
        trial = self.study.ask()
        lease = self.storage.lease_of(trial)
        assert self.storage.kills_in_a_row(lease) == 0
        with self.storage.sampling(trial):
            suggest(trial)
            for key, value in (("recipe", "adam"), ("settings", dict(trial.params)), ("lr", 0.1), ("device", "cpu")):
                trial.set_user_attr(key, value)
        interrupt, passed = Interrupt(), 0.0
        shelf = Shelf(cast(Any, None), None, lambda _limit, _last: [])  # no checkpoint is due
        checkpointer = Checkpointer(
            self.storage, lease, folder="trial", shelf=shelf, interrupt=interrupt, shares_cores=True
        )
        reporter = TrialReporter(
            self.storage,
            trial,
            lease,
            epochs=EPOCHS,
            device="cpu",
            checkpointer=checkpointer,
            interrupt=interrupt,
            clock=lambda: time.monotonic() + passed,
        )
        assert reporter.restore() is None
        self.clock.timed(micro_batches.find)(self.storage, "0" * 64, "cpu 8 GiB")
        for epoch in range(1, EPOCHS + 1):
            passed += apart
            value = 0.9 + epoch / 1000
            reporter.report(EpochResult(epoch, value, {"accuracy": value, "loss": 0.5}, 0.01, 1000), None)
        reporter.finish()
        self.clock.timed(worth_keeping)(self.storage, self.record, 0.99)
        self.storage.cost(lease)
        settlement = Settlement(Outcome.COMPLETE, "", EPOCHS, None, {"outcome": "complete", "epochs": EPOCHS})
        self.storage.settle(self.study, trial, settlement, 0.99)
        self.clock.timed(retire_weights)(self.storage, self.record)

    def looks(self) -> dict[str, Callable[[], Any]]:
        """What people ask of a study."""
        return {
            "best": lambda: queries.best(self.storage, self.record, 5),
            "status": lambda: queries.status(self.storage, self.record),
        }


System = PlainOptuna | Dialin

SYSTEMS: dict[str, Callable[[str, str | None], System]] = {"optuna": PlainOptuna, "dialin": Dialin}
