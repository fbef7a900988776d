"""A thread beside training that keeps the lease alive and listens: is the study stopped, is the parent gone?

Started by `search.worker`. An epoch's own transaction renews the lease too; this covers epochs longer than a lease.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import threading
import time

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from search.interrupt import Interrupt
from storage.claims import Lease, LeaseLost
from storage.shared import SharedStorage
from storage.tables import StudyState

LISTEN_SECONDS = 1.0
# A sixth of a lease: five renewals may fail before it expires.
RENEW_SECONDS = 5.0

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """`lease` is the trial in hand, None between trials. Use as a context manager around a worker's life."""

    def __init__(self, storage: SharedStorage, study_id: int, interrupt: Interrupt, parent: int | None = None) -> None:
        """`parent`: a file descriptor that becomes readable when the parent process is gone."""
        self._storage = storage
        self._study_id = study_id
        self._interrupt = interrupt
        self._parent = parent
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)
        self.lease: Lease | None = None

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._pause():
            try:
                self._listen()
                if time.monotonic() - renewed >= RENEW_SECONDS:
                    self._renew()
                    renewed = time.monotonic()
            except (SQLAlchemyError, StorageInternalError) as error:
                _log.warning("the database did not answer, trying again: %s", error)

    def _pause(self) -> bool:
        """Wait for the next round; True at the end. A parent that dies ends the wait at once."""
        if self._parent is not None and multiprocessing.connection.wait([self._parent], timeout=0):
            self._interrupt.request("the command that started this worker is gone")
            self._parent = None
        return self._end.wait(LISTEN_SECONDS)

    def _listen(self) -> None:
        state = self._storage.study_state(self._study_id)
        if state is not StudyState.RUNNING:
            self._interrupt.request("the study was deleted" if state is None else "the study was stopped")

    def _renew(self) -> None:
        lease = self.lease
        try:
            self._storage.renew(lease)
        except LeaseLost as lost:
            if lease is self.lease:  # not a trial that was settled while we asked
                self._interrupt.lose(str(lost))
