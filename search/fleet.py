"""Many workers on this machine, one a slot, forked from a process that has imported torch once.

`search.launch` uses it. This process never imports torch.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from search import children
from search.assignment import Assignment
from search.crew import Death
from search.devices import Slot
from search.memory import OomKills
from search.restarts import Restarts
from storage import workers
from storage.claims import new_uuid
from storage.errors import UsageError
from storage.shared import SharedStorage
from storage.tables import OwnerEnding


@dataclass
class Member:
    """A worker process of the fleet, and the one that takes its place when it dies."""

    slot: Slot
    worker_id: str
    process: BaseProcess
    words: Connection
    started: float
    restarts: Restarts = field(default_factory=Restarts)
    ended: bool = False
    again_at: float | None = None
    wanted_memory: bool | None = None


class Fleet:
    """A `search.crew.Crew` of processes on this machine."""

    def __init__(
        self,
        storage: SharedStorage,
        assignment: Assignment,
        slots: Sequence[Slot],
        oom_kills: OomKills | None = None,
    ) -> None:
        """Each worker gets the assignment with a slot and an identity of its own.

        `oom_kills` tells whether one was killed by the system, for want of memory.

        Raises:
            DialinError: one cannot be started; then none is left.
        """
        self._storage, self._assignment = storage, assignment
        self._oom_kills = oom_kills or OomKills()
        self.members: list[Member] = []
        self.slots: dict[int, str] = {}
        self._closing = False
        try:
            for slot in slots:
                self.members.append(Member(slot, *self._start(slot), time.monotonic()))
                self._name_slots()
        except BaseException:
            self.kill()
            self.close()
            raise

    def _start(self, slot: Slot) -> tuple[str, BaseProcess, Connection]:
        assignment = replace(self._assignment, places=(slot,), worker_id=new_uuid())
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = children.start(_run_worker, theirs, assignment)
        theirs.close()
        return assignment.worker_id, process, ours

    def _name_slots(self) -> None:
        """Keep `slots`, the name of each worker's slot by its process id, which views hold on to."""
        named = {member.process.pid: member.slot.name for member in self.members}
        self.slots.clear()
        self.slots.update({pid: name for pid, name in named.items() if pid is not None})

    @property
    def alive(self) -> bool:
        """Whether any worker still runs, or is going to."""
        return any(member.process.is_alive() or member.again_at is not None for member in self.members)

    @property
    def unheard(self) -> bool:
        """Whether a worker has ended of which `deaths` has not told."""
        return any(not member.ended and not member.process.is_alive() for member in self.members)

    def deaths(self) -> Iterator[Death]:
        """Workers that have failed and were not told of. What they held may be adopted at once."""
        for member in self.members:
            if member.ended or member.process.is_alive():
                continue
            if member.process.exitcode == 0:
                member.ended = True
                continue
            how = OwnerEnding.OUT_OF_MEMORY if self._wanted_memory(member) else OwnerEnding.DIED
            handed_back = workers.end(self._storage, member.worker_id, how)
            work = workers.work_of(self._storage, member.worker_id)
            member.ended = True
            yield self._mourn(member, work, handed_back)

    def _wanted_memory(self, member: Member) -> bool:
        """Whether the system killed it for want of memory: asked once, also where the database must be asked twice."""
        if member.wanted_memory is None:
            killed = member.process.exitcode == -signal.SIGKILL
            member.wanted_memory = killed and self._oom_kills.risen()
        return member.wanted_memory

    def _mourn(self, member: Member, work: workers.Work, handed_back: int) -> Death:
        """What is said of a death, and when its slot has another worker: not after a mistake of the person's."""
        reason = "killed by the system for want of memory" if member.wanted_memory else _last_words(member)
        if self._closing or member.process.exitcode == UsageError.exit_status:
            return Death(member.slot, reason, handed_back)
        pause = member.restarts.after(work, time.monotonic() - member.started)
        member.again_at = None if pause is None else time.monotonic() + pause
        return Death(member.slot, reason, handed_back, pause, hopeless=pause is None)

    def start_again(self) -> None:
        """Start the workers whose time has come. Raises DialinError."""
        for member in self.members:
            if member.again_at is not None and time.monotonic() >= member.again_at:
                member.words.close()
                member.worker_id, member.process, member.words = self._start(member.slot)
                member.started, member.again_at, member.ended = time.monotonic(), None, False
                member.wanted_memory = None
                self._name_slots()

    def no_more(self) -> None:
        """Start no worker again, whichever dies."""
        self._closing = True
        for member in self.members:
            member.again_at = None

    def sentinels(self) -> list[int]:
        """File descriptors that become readable when a worker ends, for waiting.

        None of one that has ended: while the database is away `deaths` cannot tell of it, and nobody would wait.
        """
        return [member.process.sentinel for member in self.members if member.process.is_alive()]

    def wait(self, seconds: float) -> None:
        """So long at most, and no longer than until a worker has ended."""
        multiprocessing.connection.wait(self.sentinels(), timeout=seconds)

    def hand_back(self) -> None:
        """Ask every worker to hand its trial back and end. Asked again it does no harm: one that starts is deaf yet."""
        for member in self.members:
            if member.process.is_alive():
                member.process.terminate()

    def kill(self) -> None:
        """End every worker now; what they held may be adopted at once."""
        self.no_more()
        for member in self.members:
            if member.process.is_alive():
                member.process.kill()
                member.process.join()

    def close(self) -> None:
        """Let go of the data that the workers shared; none of them is left."""
        if self._assignment.shared is not None:
            self._assignment.shared.remove()


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
