"""What `dialin run` must know before it spends a trial, found out in a child process that imports torch.

The parent stays free of torch and of a person's code: whatever that code does, the view and the workers live.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

from search import children
from search.by_value import ByValue
from search.devices import Gpu, SlotPlan, plan_slots, usable_cpus
from search.failures import RaisedError
from search.shared_data import NamelessFile, NotPacked, Packed
from search.space_changes import Space
from storage.errors import DialinError, UsageError
from storage.first_trials import FirstTrial
from storage.history import PastStudy

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Placement:
    """The options that say where to train, as a person gave them."""

    workers: int | None = None
    devices: str | None = None
    per_device: int | None = None

    @property
    def by_memory(self) -> bool:
        """Whether they leave it open how many workers a GPU has."""
        return self.workers is None and self.per_device is None

    def plan(self, gpus: list[Gpu], bytes_each: int | None = None) -> SlotPlan:
        """The slots they mean on this machine. `bytes_each`: what a worker takes on a GPU. Raises UsageError."""
        return plan_slots(
            gpus,
            usable_cpus(),
            workers=self.workers,
            devices=self.devices,
            per_device=self.per_device,
            bytes_each=bytes_each,
        )


@dataclass(frozen=True)
class Preflight:
    """An objective that loads and trains a batch, and the slots to train it on. Plain values only."""

    reference: str
    name: str
    sha256: str
    metric: str
    direction: str
    epochs: int
    trials: int
    first_trials: tuple[FirstTrial, ...]
    plan: SlotPlan
    notes: tuple[str, ...]
    shared: Packed | NotPacked | None = None
    folds: int = 1
    space: Space = field(default_factory=Space)
    trains_itself: bool = False
    bare: bool = False


@dataclass(frozen=True)
class Known:
    """What is known before an objective is looked at. `transfer`: a new study starts with what served elsewhere.

    `past`: the finished studies of the database. `sha256`: of the source whose space a study has that goes on.
    """

    past: tuple[PastStudy, ...] = ()
    transfer: bool = True
    sha256: str | None = None


NEW_DATABASE = Known()


def look(
    given: str | ByValue,
    data: Path,
    placement: Placement,
    direction: str | None = None,
    space: Mapping[str, Any] = NOTHING,
    file: NamelessFile | None = None,
    known: Known = NEW_DATABASE,
) -> Preflight:
    """Load the objective, plan the slots and train one batch on the first of them. Raises DialinErrors.

    What trains itself is only loaded; `direction` is that of a bare function, `space` the study's narrowing as stored.
    What `data` returned is packed into the file, when there is one and more than one worker will want it.
    The space is told with the model's own knobs where the source is another than the one of `known`.
    """
    import torch

    from search.device_memory import bytes_each
    from search.devices import gpus
    from search.first_trials import first_trials
    from search.loading import resolve
    from search.packing import load_to_share
    from search.preview import build_task, load_data, try_out
    from search.settings import check_knobs, of_study
    from search.space_changes import describe

    loaded = resolve(given).to(direction)
    if loaded.undirected:
        raise UsageError(
            f"cannot tell which way {loaded.reference} is better, as its script sets direction only when it runs: "
            "give --direction minimize or --direction maximize"
        )
    loaded = replace(loaded, objective=of_study(loaded.objective, space))
    found_gpus = gpus() if placement.devices != "cpu" else []
    plan = placement.plan(found_gpus)
    device = torch.device(plan.slots[0].devices[0])
    by_memory = device.type == "cuda" and placement.by_memory
    torch.set_num_threads(plan.threads)
    objective = loaded.objective
    shared: Packed | NotPacked | None = None
    folds = 1
    if not objective.trains_itself:
        if file is None or (len(plan.slots) == 1 and not by_memory):
            found = load_data(loaded, data)
        else:
            found, shared = load_to_share(loaded, data, file)
        folds = len(found.folds)
        task = build_task(loaded)
        try_out(loaded, found, task, device)
        if by_memory:
            before = next(gpu.free_bytes for gpu in found_gpus if torch.device(gpu.device) == device)
            plan = placement.plan(found_gpus, bytes_each(loaded, found.folds[0], task, device, before))
    else:
        check_knobs(objective)
    return Preflight(
        reference=loaded.reference,
        name=loaded.name,
        sha256=loaded.source_sha256,
        metric=objective.searched.name,
        direction=objective.searched.direction,
        epochs=objective.epochs,
        trials=objective.trials,
        first_trials=first_trials(objective, loaded.reference, known.past, known.transfer),
        plan=plan,
        notes=(*loaded.notes, *plan.notes),
        shared=shared,
        folds=folds,
        space=describe(objective, loaded.source_sha256, known.sha256 not in (None, loaded.source_sha256)),
        trains_itself=objective.trains_itself,
        bare=objective.function is not None,
    )


def _look_in_child(
    connection: Connection,
    given: str | ByValue,
    data: Path,
    placement: Placement,
    direction: str | None,
    space: Mapping[str, Any],
    file: NamelessFile | None,
    known: Known,
) -> None:
    """The body of the child process: sends a Preflight, or what is wrong (message, frames, exit status)."""
    try:
        answer: Any = look(given, data, placement, direction, space, file, known)
    except DialinError as error:
        answer = (str(error), getattr(error, "frames", ""), error.exit_status)
    with contextlib.suppress(BrokenPipeError):  # Ctrl-C before this process was up: nobody listens
        connection.send(answer)


def try_in_child(
    objective: str | ByValue,
    data: Path,
    placement: Placement,
    direction: str | None = None,
    space: Mapping[str, Any] = NOTHING,
    known: Known = NEW_DATABASE,
) -> Preflight:
    """Check an objective and this machine in a child process; `direction` is that of a bare function's study.

    `space`: the study's narrowing, as it is stored. `known`: what its first trials may be chosen from.

    Raises:
        RaisedError: what is wrong, in one line, perhaps with the person's own frames.
        DialinError: the child died without a word, or took longer than `children.at_most` allows.
    """
    file = _nameless_file()
    try:
        answer = children.ask(_look_in_child, objective, data, placement, direction, dict(space), file, known)
    except children.Silent as died:
        raise DialinError(
            f"{objective} ended its process (exit code {died.exit_code}) when it was tried on one batch"
        ) from None
    except children.NotDone as late:
        raise DialinError(f"{objective} was not done with one batch after {late.seconds:.0f} s") from None
    if isinstance(answer, Preflight):
        shared = answer.shared
        return replace(answer, shared=replace(shared, file=file) if isinstance(shared, Packed) else shared)
    message, frames, status = answer
    raise RaisedError(message, frames) if status == UsageError.exit_status else DialinError(message)


def _nameless_file() -> NamelessFile | None:
    """Where what the workers share will be; without it each of them loads its own."""
    try:
        return NamelessFile.make()
    except OSError:
        return None
