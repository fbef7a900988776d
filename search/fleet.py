"""Many workers on this machine, one a slot, forked from a process that has imported torch once.

`search.launch` uses it. This process never imports torch.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from search import children
from search.assignment import Assignment
from search.by_value import ByValue
from search.devices import Slot
from search.failures import RaisedError
from search.preflight import NOTHING, Placement, Preflight, look_in_child
from search.shared_data import NamelessFile, Packed
from storage import workers
from storage.claims import new_uuid
from storage.errors import DialinError, UsageError
from storage.shared import SharedStorage


def preflight(
    objective: str | ByValue,
    data: Path,
    placement: Placement,
    direction: str | None = None,
    space: Mapping[str, Any] = NOTHING,
) -> Preflight:
    """Check an objective and this machine in a child process; `direction` is that of a bare function's study.

    `space`: the study's narrowing, as it is stored.

    Raises:
        RaisedError: what is wrong, in one line, perhaps with the person's own frames.
        DialinError: the child died without a word.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    file = _nameless_file()
    child = children.start(look_in_child, theirs, objective, data, placement, direction, dict(space), file)
    theirs.close()
    try:
        answer = ours.recv()
    except KeyboardInterrupt:
        child.kill()
        raise
    except EOFError:
        child.join()
        raise DialinError(
            f"{objective} ended its process (exit code {child.exitcode}) when it was tried on one batch"
        ) from None
    finally:
        ours.close()
    child.join()
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


@dataclass
class Member:
    """A worker process of the fleet."""

    slot: Slot
    worker_id: str
    process: BaseProcess
    words: Connection
    ended: bool = False


@dataclass(frozen=True)
class Death:
    """A worker that ended otherwise than by itself: its last words, or the signal or status it died of."""

    slot: Slot
    reason: str
    handed_back: int


class Fleet:
    """Starts a worker in every slot, notices deaths, and passes on a wish to end."""

    def __init__(self, storage: SharedStorage, assignment: Assignment, slots: Sequence[Slot]) -> None:
        """Each worker gets the assignment with a slot and an identity of its own."""
        self._storage = storage
        self.members = [self._start(replace(assignment, places=(slot,), worker_id=new_uuid())) for slot in slots]

    def _start(self, assignment: Assignment) -> Member:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = children.start(_run_worker, theirs, assignment)
        theirs.close()
        return Member(assignment.places[0], assignment.worker_id, process, ours)

    @property
    def slots(self) -> dict[int, str]:
        """Name of the slot of each worker, by the worker's process id."""
        return {member.process.pid: member.slot.name for member in self.members if member.process.pid is not None}

    @property
    def alive(self) -> bool:
        """Whether any worker still runs."""
        return any(member.process.is_alive() for member in self.members)

    def deaths(self) -> list[Death]:
        """Workers that failed since the last call. What they held may be adopted at once."""
        found = []
        for member in self.members:
            if member.ended or member.process.is_alive():
                continue
            if member.process.exitcode != 0:
                handed_back = workers.end(self._storage, member.worker_id)
                found.append(Death(member.slot, _last_words(member), handed_back))
            member.ended = True
        return found

    def sentinels(self) -> list[int]:
        """File descriptors that become readable when a worker ends, for waiting."""
        return [member.process.sentinel for member in self.members if not member.ended]

    def hand_back(self) -> None:
        """Ask every worker to hand its trial back and end. Asked again it does no harm: one that starts is deaf yet."""
        for member in self.members:
            if member.process.is_alive():
                member.process.terminate()

    def kill(self) -> None:
        """End every worker now; what they held may be adopted at once."""
        for member in self.members:
            if member.process.is_alive():
                member.process.kill()
                member.process.join()


def _last_words(member: Member) -> str:
    code = member.process.exitcode
    try:
        if member.words.poll():
            return str(member.words.recv())
    except EOFError:
        pass
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with status {code}"


def _run_worker(connection: Connection, assignment: Assignment) -> None:
    from search.worker import run_in_fleet

    run_in_fleet(assignment, connection)
