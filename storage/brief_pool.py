"""A pool that keeps a connection while there is room: so hundreds of workers fit into one server's few connections.

`storage.engine` uses it for PostgreSQL, and notes with each new connection how long it may rest. Of a server with room
it is kept from epoch to epoch; of a crowded one only what comes in quick succession shares it. A connection that the
server refuses since all are taken is asked for again (`storage.patience`). `benchmarks/many_workers.py` compares it
with connections that are held.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, Pool

# How long a thread waits for one of its own process's connections: longer than any transaction of ours.
WAIT_SECONDS = 60.0
# The key in a connection's `info` of the seconds for which it may rest, unused; BRIEF where nothing is noted.
REST = "rest"
BRIEF, LONG = 0.1, 30.0
# After so many seconds a connection is made anew, and whether there is room is asked again.
RENEWED = 60.0


class BriefPool(Pool):
    """At most `most` connections, each closed when it was not used for as long as it may rest."""

    def __init__(self, creator: Any, most: int = 4, recycle: float = RENEWED, **options: Any) -> None:
        super().__init__(creator, recycle=int(recycle), **options)
        self._most = most
        self._free = threading.BoundedSemaphore(most)
        self._changed = threading.Lock()
        self._idle: list[tuple[float, ConnectionPoolEntry]] = []
        self._timer: threading.Timer | None = None
        self._due = 0.0

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._free.acquire(timeout=WAIT_SECONDS):
            raise PoolTimeout(f"all {self._most} connections of this process are in use", code="3o7r")
        with self._changed:
            entry = self._idle.pop()[1] if self._idle else None
        if entry is not None:
            return entry
        try:
            return self._create_connection()
        except BaseException:
            self._free.release()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        until = time.monotonic() + record.info.get(REST, BRIEF)
        with self._changed:
            self._idle.append((until, record))
            self._look_again()
        self._free.release()

    def _look_again(self) -> None:
        """When the first of those idle has rested long enough. The lock is held."""
        first = min(until for until, _ in self._idle)
        if self._timer is not None:
            if self._due <= first:
                return
            self._timer.cancel()
        self._due = first
        self._timer = threading.Timer(max(0.0, first - time.monotonic()), self._close_idle)
        self._timer.daemon = True
        self._timer.start()

    def _close_idle(self) -> None:
        now = time.monotonic()
        with self._changed:
            old = [record for until, record in self._idle if until <= now]
            self._idle = [(until, record) for until, record in self._idle if until > now]
            self._timer = None
            if self._idle:
                self._look_again()
        for record in old:
            record.close()

    def recreate(self) -> BriefPool:
        """A new pool like this one, as `Engine.dispose` puts in its place."""
        return type(self)(
            self._creator,
            most=self._most,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close what is not in use."""
        with self._changed:
            old, self._idle = [record for _, record in self._idle], []
        for record in old:
            record.close()

    def status(self) -> str:
        """For a log."""
        return f"{len(self._idle)} idle of at most {self._most} connections"
