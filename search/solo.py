"""One worker in the foreground: `dialin worker`, for one study or for whatever study is open."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

from search import printing
from search.devices import SlotPlan, gpus, plan_slots, usable_cpus
from search.interrupt import Interrupt
from search.loading import reference_here
from search.preflight import Placement
from search.searches import Place
from search.worker import Worker
from storage import studies, workers
from storage.errors import UsageError
from storage.queries import SettledTrial
from storage.shared import SharedStorage
from storage.studies import StudyRecord

# How often a worker that waits looks for a study.
LOOK_SECONDS = 2.0


def work(
    place: Place, objective: str | None, storage: SharedStorage, record: StudyRecord, say: Callable[[str], None]
) -> None:
    """Work on one study to its end; SIGINT and SIGTERM hand the trial back.

    `objective`: where it is on this machine; None: it is a built-in one.
    """
    ending = Interrupt()
    ending.on_signals(signal.SIGINT, signal.SIGTERM)
    _work(place, objective, storage, record, say, ending)


def serve(place: Place, objective: str | None, storage: SharedStorage, say: Callable[[str], None]) -> None:
    """Work on the newest open study whose objective is allowed here, then on the next, until interrupted."""
    ending = Interrupt()
    ending.on_signals(signal.SIGINT, signal.SIGTERM)
    refused: set[int] = set()
    say("waiting for a study")
    while not ending.requested:
        record = studies.newest_open(storage, refused)
        if record is None:
            time.sleep(LOOK_SECONDS)
            continue
        try:
            _work(place, objective, storage, record, say, ending)
        except UsageError as error:
            say(f"leaving {record.name} alone: {error}")
            refused.add(record.study_id)


def _work(
    place: Place,
    objective: str | None,
    storage: SharedStorage,
    record: StudyRecord,
    say: Callable[[str], None],
    ending: Interrupt,
) -> None:
    reference = reference_here(record.objective, objective, f"dialin worker {record.name}")
    plan = _plan(place.placement)
    # Workers started by hand know nothing of each other's threads; the database knows how many there are.
    threads = max(1, plan.threads // (1 + workers.living_here(storage)))
    assignment = place.assignment(record.name, reference, threads, plan.slots)

    def tell(trial: SettledTrial) -> None:
        say(printing.settled_line(trial, record.metric))

    # The end of one study is not the end of a worker that serves them all.
    interrupt = Interrupt(outer=ending)
    terminal = os.dup(2)  # what a trial prints, and standard error with it, goes to its log
    worker = Worker(assignment, interrupt, tell, partial(_tell, terminal))
    say(f"worker for {record.name} on {worker.slot.name}")
    worker.work()
    say(f"ended: {interrupt.reason}" if interrupt.requested else f"{record.name} has no more work")


def _tell(terminal: int, said: str) -> None:
    os.write(terminal, f"dialin: {said}\n".encode())


def _plan(placement: Placement) -> SlotPlan:
    """Every place that this one worker may take: the first free one is leased when it registers."""
    found = gpus() if placement.devices != "cpu" else []
    named = placement.devices
    if named is None and (placement.per_device or 1) > 1:
        # A GPU with a worker on it looks busy, but has places left: the database knows which.
        named = ",".join(str(gpu.index) for gpu in found) or None
    on_gpu = bool(found) and named != "cpu"
    return plan_slots(
        found,
        usable_cpus(),
        workers=None if on_gpu else 1,
        devices=named,
        per_device=placement.per_device,
    )
