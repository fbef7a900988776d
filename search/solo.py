"""One worker in the foreground, for one study: `dialin worker STUDY`. `search.queue_worker` serves them all."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

from search import printing
from search.assignment import Assignment
from search.devices import SlotPlan, gpus, plan_slots, usable_cpus
from search.interrupt import Interrupt
from search.loading import reference_here
from search.place import Place
from search.preflight import Placement
from search.told import Told, writer_to
from search.worker import Worker
from storage import workers
from storage.queries import SettledTrial
from storage.shared import SharedStorage
from storage.studies import StudyRecord


def work(place: Place, objective: str | None, storage: SharedStorage, record: StudyRecord, told: Told) -> None:
    """Work on one study to its end; SIGINT and SIGTERM hand the trial back.

    `objective`: where it is on this machine; None: it is a built-in one.
    """
    interrupt = Interrupt()
    reference = reference_here(record.objective, objective, f"dialin worker {record.name}")
    assignment = assignment_here(place, storage, record, reference, plan_here(place.placement))
    signals = interrupt.heeding(signal.SIGINT, signal.SIGTERM)
    with signals, told.about(study=record.name), told.with_warnings():
        last_words = words_to_terminal()  # before a trial's log takes standard error
        worker = Worker(assignment, interrupt, partial(tell_settled, told, record), last_words, told=told)
        told("study taken", f"worker for {record.name} on {worker.slot.name}", slot=worker.slot.name)
        worker.work()
        ended = f"ended: {interrupt.reason}" if interrupt.requested else f"{record.name} has no more work"
        told("study left", ended, reason=interrupt.reason or None)


def assignment_here(
    place: Place, storage: SharedStorage, record: StudyRecord, reference: str, plan: SlotPlan, slot: str = ""
) -> Assignment:
    """Orders of one worker on this machine; `slot`: the name of the place that it would rather have."""
    # Workers started by hand know nothing of each other's threads; the database knows how many there are.
    threads = max(1, plan.threads // (1 + workers.living_here(storage)))
    slots = sorted(plan.slots, key=lambda one: one.name != slot)
    return place.assignment(record.name, reference, threads, tuple(slots))


def tell_settled(told: Told, record: StudyRecord, trial: SettledTrial) -> None:
    """Tell that a trial has ended, and how."""
    told(
        "trial settled",
        printing.settled_line(trial, record.metric),
        trial=trial.number,
        outcome=trial.outcome.value,
        value=trial.value,
        epochs=trial.epochs,
        seconds=round(trial.seconds, 3),
        reason=trial.reason or None,
    )


def words_to_terminal() -> Callable[[str], None]:
    """Takes what a process says at its end, for what is standard error now: later that is a trial's log."""
    write = writer_to(2)
    return lambda said: write(f"dialin: {said}")


def plan_here(placement: Placement) -> SlotPlan:
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
