"""A thread beside training that keeps the lease alive and listens: is the study stopped, is the parent gone?

Started by `search.worker`. An epoch's own transaction renews the lease too; this covers epochs longer than a lease.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import threading
import time
from collections.abc import Callable

from search.interrupt import Interrupt
from storage import workers
from storage.claims import Lease, LeaseLost
from storage.patience import DATABASE_ERRORS, Outage, away_seconds, waiting
from storage.shared import SharedStorage
from storage.tables import StudyState

LISTEN_SECONDS = 1.0
# A sixth of a lease: five renewals may fail before it expires.
RENEW_SECONDS = 5.0
# After a database was away leases may have expired while nobody could renew them; their owners do so as soon as they
# see that it is back, which takes them so many seconds: the longest pause between two rounds, as in a crowd, or between
# two attempts, and listening.
RETURN_SECONDS = 15.0

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """`lease` is the trial in hand, None between trials. Use as a context manager around a worker's life."""

    def __init__(
        self,
        storage: SharedStorage,
        study_id: int,
        interrupt: Interrupt,
        parent: int | None = None,
        back_at: float | None = None,
        trial: Interrupt | None = None,
        beside: Callable[[], float] | None = None,
    ) -> None:
        """`parent`: a file descriptor that becomes readable when the parent process is gone.

        `back_at`: when the database came back that the worker waited for at its start, by `time.monotonic`.
        `trial`: what asks for the trial in hand alone, while the worker goes on; without, `interrupt`.
        `beside`: what else is to be asked in every round, on the same connection; it says when the next round is.
        """
        self._storage = storage
        self._study_id = study_id
        self._interrupt = interrupt
        self._trial = interrupt if trial is None else trial
        self._beside, self._rest = beside, LISTEN_SECONDS
        self._parent = parent
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)
        self._renewed = time.monotonic()
        self._outage = Outage(lambda line: _log.warning("%s", line))
        self._back_at = back_at
        self.lease: Lease | None = None

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def returning(self) -> bool:
        """Whether the database is away or has come back just now: an expired lease may still be its owner's."""
        back_at = self._back_at
        return self._outage.seconds is not None or (back_at is not None and time.monotonic() - back_at < RETURN_SECONDS)

    def _keep(self) -> None:
        with waiting(0):  # this thread asks again by itself, and listens to its parent meanwhile
            while not self._pause():
                try:
                    if time.monotonic() - self._renewed >= RENEW_SECONDS or self._outage.seconds is not None:
                        self._renew()
                        self._heed_the_limit()
                        self._renewed = time.monotonic()
                    self._listen()
                    if self._beside is not None:
                        self._rest = self._beside()
                    self._answered()
                except DATABASE_ERRORS as error:
                    self._not_answered(error)

    def _pause(self) -> bool:
        """Wait for the next round; True at the end. A parent that dies ends the wait at once."""
        if self._parent is not None and multiprocessing.connection.wait([self._parent], timeout=0):
            self._interrupt.request("the command that started this worker is gone")
            self._parent = None
        return self._end.wait(self._rest)

    def _not_answered(self, error: Exception) -> None:
        if (self._outage.seconds or 0.0) > away_seconds():
            self._interrupt.give_up("the database does not answer")
        self._outage.not_answered(error)

    def _answered(self) -> None:
        if self._outage.seconds is not None:
            self._back_at = time.monotonic()  # first: `returning` is asked by another thread
        self._outage.answered()

    def _listen(self) -> None:
        state = self._storage.study_state(self._study_id)
        if state is StudyState.PAUSED:
            if self.lease is not None:
                self._trial.request("the study was paused")
        elif state is not StudyState.RUNNING:
            self._interrupt.request("the study was deleted" if state is None else "the study was stopped")

    def _heed_the_limit(self) -> None:
        lease = self.lease
        if lease is not None and workers.is_one_too_many(self._storage, lease) and lease is self.lease:
            self._trial.request("the study may train fewer trials at once")

    def _renew(self) -> None:
        lease = self.lease
        try:
            self._storage.renew(lease)
        except LeaseLost as lost:
            if lease is self.lease:  # not a trial that was settled while we asked
                self._trial.lose(str(lost))
