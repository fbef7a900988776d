"""Short ways to a study that was searched by workers in the test's own process, for what is made of studies after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from studies import TINY, engines_disposed

from search.assignment import Assignment
from search.devices import Slot
from search.interrupt import Interrupt
from search.judge import MakeStrategy
from search.reporter import TrialReporter
from search.reporting import EpochResult, Verdict
from search.worker import Worker
from storage import provenance, queries, studies
from storage.provenance import Origin
from storage.queries import TrialDetail
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec

Found = TypeVar("Found")


@dataclass(frozen=True)
class Place:
    """A database, and a folder with its files."""

    url: str
    folder: Path

    @property
    def at(self) -> tuple[str, ...]:
        """What tells commands where it is."""
        return "--storage", self.url, "--files", str(self.folder)

    def study(self, objective: Path | str = TINY, **changes: Any) -> str:
        """A new study of the objective; its name."""
        given: dict[str, Any] = {"metric": "accuracy", "direction": "maximize", "epochs": 4, "trials": 1, "seed": 3}
        given |= {"sampler": "random", "pruner": "none", "objective_sha256": ""}
        with engines_disposed():
            spec = StudySpec(objective=str(objective), **given | changes)
            return studies.create(open_storage(self.url), spec, stem=Path(objective).stem).name

    def work(
        self,
        name: str,
        objective: Path | str = TINY,
        threads: int = 1,
        interrupt: Interrupt | None = None,
        make_strategy: MakeStrategy | None = None,
        data: Path | None = None,
    ) -> None:
        """A worker trains it until nothing is left, or it is interrupted."""
        slots = (Slot(("cpu",), 0, None),)
        orders = Assignment(self.url, name, str(objective), slots, threads, self.folder, data or self.folder)
        with engines_disposed():
            Worker(orders, interrupt or Interrupt(), make_strategy=make_strategy).work()

    def searched(self, objective: Path | str = TINY, data: Path | None = None, **changes: Any) -> str:
        """A study that is finished; its name."""
        name = self.study(objective, **changes)
        self.work(name, objective, data=data)
        return name

    def look(self, ask: Callable[[SharedStorage, StudyRecord], Found], name: str) -> Found:
        """Ask something of the study."""
        with engines_disposed():
            storage = open_storage(self.url)
            return ask(storage, studies.find(storage, name))

    def trial(self, name: str, number: int = 0) -> TrialDetail:
        return self.look(lambda storage, record: queries.trial(storage, record, number), name)

    def origin(self, name: str, number: int = 0) -> Origin:
        attrs = self.trial(name, number).attrs
        return self.look(lambda storage, record: provenance.origin(storage, record.study_id, attrs), name)


def interrupted_after(epoch: int, patch: pytest.MonkeyPatch) -> Interrupt:
    """What ends a worker when it has recorded so many epochs of a trial."""
    interrupt, report = Interrupt(), TrialReporter.report

    def then_stop(self: TrialReporter, result: EpochResult, state: Any) -> Verdict:
        if result.epoch == epoch and not interrupt.requested:
            interrupt.request("enough")
        return report(self, result, state)

    patch.setattr(TrialReporter, "report", then_stop)
    return interrupt
