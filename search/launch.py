"""Starting, following and ending a search on this machine; `dialin run` and `dialin resume` are thin over it.

The parent process imports no torch: it reads the database and shows what it finds.
"""

from __future__ import annotations

import multiprocessing.connection
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from optuna.exceptions import StorageInternalError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from search import children
from search.assignment import Assignment
from search.devices import SlotPlan
from search.feed import Feed
from search.fleet import Fleet
from search.live import View
from search.views import make_view
from storage import queries, studies
from storage.errors import DialinError, UsageError
from storage.patience import one_line
from storage.queries import StudyStatus
from storage.shared import SharedStorage
from storage.studies import StudyRecord

POLL_SECONDS = 0.25
# A worker that has not given its trial back by then (one batch may take minutes) is killed; the trial is adopted.
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Ending:
    """How following a study ended. `signal`: what the person or the system ended it with, if any."""

    status: StudyStatus
    signal: int | None = None

    @property
    def interrupted(self) -> bool:
        """Whether it was ended from outside."""
        return self.signal is not None


class _Interrupts:
    """Counts the person's Ctrl-C."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number


def follow(
    console: Console, storage: SharedStorage, study: StudyRecord, assignment: Assignment, plan: SlotPlan
) -> Ending:
    """Start a worker in each slot and show the study until they have all ended.

    The first Ctrl-C (or SIGTERM) gives the running trials back, a second one kills the workers. Python hears signals on
    its main thread only: elsewhere they are left alone.

    Raises:
        DialinError: the study was deleted meanwhile.
    """
    with _counting_interrupts() as interrupts:
        fleet = Fleet(storage, assignment, plan.slots)
        view = make_view(console, fleet.slots)
        try:
            _watch(storage, study, fleet, view, interrupts)
        finally:
            fleet.kill()
            if assignment.shared is not None:
                assignment.shared.remove()
            with suppress(SQLAlchemyError, StorageInternalError):
                fleet.deaths()  # what they held may be adopted at once
            view.close()
    try:
        status = queries.status(storage, studies.find(storage, study.name))
    except UsageError:
        raise DialinError(f"study {study.name!r} was deleted or renamed while it ran") from None
    return Ending(status, interrupts.first)


def _watch(storage: SharedStorage, study: StudyRecord, fleet: Fleet, view: View, interrupts: _Interrupts) -> None:
    """Redraw until every worker has ended. A database that does not answer is asked again."""
    asked: float | None = None
    failed, shown = "", Feed(storage, study)
    while True:
        alive = fleet.alive
        try:
            for death in fleet.deaths():
                left = "; its trial goes on elsewhere" if death.handed_back else ""
                view.note(f"worker {death.slot.name} failed: {death.reason}{left}")
            shown.show(view)
        except (SQLAlchemyError, StorageInternalError) as error:
            if one_line(error) != failed:
                failed = one_line(error)
                view.note(f"the database does not answer, asking again: {failed}")
        if not alive:
            return
        if interrupts.count and asked is None:
            asked = time.monotonic()
            view.note("giving the trials back (Ctrl-C again to kill)")
        if asked is not None:
            patient = interrupts.count == 1 and time.monotonic() - asked < PATIENCE_SECONDS
            fleet.hand_back() if patient else fleet.kill()
        multiprocessing.connection.wait(fleet.sentinels(), timeout=POLL_SECONDS)


@contextmanager
def _counting_interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM) if children.on_main_thread() else ()
    before = {number: signal.signal(number, interrupts) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
