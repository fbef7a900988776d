"""A worker of the queue: `dialin worker` without a study's name serves whatever study is open, one after another.

What it serves is decided in `storage.queue`, before it takes a study, after every trial, and every few seconds
meanwhile by a thread of its own (`search.attendant`). Each study is trained by a `search.worker.Worker` made for it.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Sequence
from functools import partial

import torch

from search import solo
from search.allowed import Allowed
from search.attendant import Attendant
from search.by_value import ByValue
from search.devices import SlotPlan
from search.hooks import Hooks
from search.interrupt import Interrupt
from search.kept import Kept
from search.left_alone import LeftAlone
from search.loading import LoadedObjective
from search.place import Place
from search.told import Told
from search.worker import SIGN_OFF_SECONDS, Worker
from storage import queue, studies
from storage.claims import new_uuid
from storage.errors import DialinError, UsageError
from storage.patience import DatabaseAway, waiting
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord
from storage.tables import StudyState

# How soon a worker that has nothing to do hears that it is asked to end.
LISTEN_SECONDS = 0.2
# A worker leaves a study for a fraction of a worker that is due elsewhere only after so long: to begin with a study
# takes a second or two, and its data as long as they take.
STAY_SECONDS = 20.0
# Data of so many studies stay in memory: workers go back and forth between few.
DATA_KEPT = 2


class _Changed(Exception):
    """The source was edited between the look at it and its import."""


class QueueWorker:
    """For the life of the process."""

    def __init__(
        self,
        place: Place,
        given: Sequence[str],
        storage: SharedStorage,
        told: Told,
        idle: float | None = None,
    ) -> None:
        """`given`: modules that it may run beside the built-in ones. `idle`: seconds without a study until it ends."""
        self._place, self._storage, self._told = place, storage, told
        self._idle = idle
        self._me = new_uuid()
        self._ending = Interrupt()
        self._allowed, self._kept = Allowed(given), Kept(DATA_KEPT)
        self._left_alone = LeftAlone(storage, self._allowed, told)
        self._attendant = Attendant(storage, self._me, self._without)
        self._began = self._idle_since = time.monotonic()
        self._back_at: float | None = None  # when the database came back that was away last
        self._away = False
        self._waits = False
        self._moves = ""  # why it leaves its study
        self._plan: SlotPlan | None = None
        self._last_words = solo.words_to_terminal()

    def serve(self) -> None:
        """Work until it is interrupted, or has been idle too long; SIGINT and SIGTERM hand the trial back.

        Raises:
            DatabaseAway: the database went away, and has not come back within the limit.
            DialinError: no place to train is free.
        """
        signals = self._ending.heeding(signal.SIGINT, signal.SIGTERM)
        patience = waiting(stop=lambda: self._ending.requested, tell=self._is_away)
        with signals, self._told.with_warnings(), patience:
            queue.announce(self._storage, self._me)
            try:
                with self._attendant:
                    while not self._ending.requested and not self._idle_too_long():
                        self._once()
            finally:
                self._sign_off()
        why = self._ending.reason or "there was no study for so long"
        self._told("ended", f"ended: {why}", reason=why)

    def _once(self) -> None:
        record = self._taken()
        if self._away:
            self._away, self._back_at = False, time.monotonic()
        if record is not None:
            self._waits = False
            with self._told.about(study=record.name):
                self._serve(record)
            self._idle_since = time.monotonic()
            return
        if not self._waits:
            self._told("waiting", "waiting for a study")
        self._waits = True
        until = time.monotonic() + self._attendant.pause
        while time.monotonic() < until and not self._ending.requested:
            time.sleep(LISTEN_SECONDS)

    def _is_away(self, _line: str) -> None:
        self._away = True

    def _taken(self) -> StudyRecord | None:
        without = self._without()
        # Where it was moved to after its last trial it has not begun yet: it would go on from study to study.
        take = partial(queue.take, self._storage, self._me, may_move=False)
        # One that was opened between the two looks may be one that is to be left alone.
        while (study_id := take(without)) is not None and not self._ending.requested:
            without = self._without()
            if study_id not in without:
                return studies.with_id(self._storage, study_id)
        return None

    def _serve(self, record: StudyRecord) -> None:
        """Train one study until the queue has other work for this worker, or it has none."""
        agreed = self._left_alone.source(record.study_id, record.objective_sha256)
        reference = self._allowed.reference(record.objective, agreed)
        if reference is None:
            return  # it was closed before it could be looked at: the next look is another
        stint = Interrupt(outer=self._ending)
        self._began, self._moves = time.monotonic(), ""
        try:
            with self._attendant.at(stint, record.study_id):
                trained = self._train(record, reference, agreed, stint)
        except DialinError as error:
            if error.exit_status != UsageError.exit_status:
                raise
            self._left_alone.refuse(record.study_id, agreed, str(error))  # the next look says so
            return
        except _Changed:
            return  # the next look says what has become of it
        except Exception:
            if self._now(record) is not None:
                raise
            self._told("study left", f"leaving {record.name}: the study was deleted", reason="the study was deleted")
            return
        self._left(record, stint, trained)
        self._clear_up()

    def _train(self, record: StudyRecord, reference: str, agreed: str, stint: Interrupt) -> int:
        """How many trials it has trained."""
        self._allowed.imports(reference)
        # Made once: a GPU that this process has used looks busy from then on.
        self._plan = self._plan or solo.plan_here(self._place.placement)
        before = self._attendant.slot
        assignment = solo.assignment_here(self._place, self._storage, record, reference, self._plan, before)
        queue.begin(self._storage, self._me, assignment.worker_id)
        worker = Worker(
            assignment,
            stint,
            partial(solo.tell_settled, self._told, record),
            self._last_words,
            told=self._told,
            hooks=Hooks(
                stays=partial(self._stays, record, agreed),
                beside=self._attendant.look,
                back_at=self._back_at,
                open=partial(open_storage, beside=self._storage),
                resolve=partial(self._resolve, agreed),
                load=self._kept.load,
            ),
        )
        self._attendant.slot = worker.slot.name
        self._told("study taken", f"worker for {record.name} on {worker.slot.name}", slot=worker.slot.name)
        with self._told.about(before=f"{record.name}: "):
            worker.work()
        if stint.hurried and not self._ending.requested:
            raise DatabaseAway(stint.reason)
        self._away = self._away or worker.returning
        return worker.trained

    def _resolve(self, agreed: str, given: str | ByValue) -> LoadedObjective:
        loaded = self._kept.resolve(given)
        if loaded.source_sha256 != agreed:
            self._kept.forget_last()
            raise _Changed
        return loaded

    def _stays(self, record: StudyRecord, agreed: str) -> bool:
        """Asked between two trials of a study, which it trains with the `agreed` source."""
        may_move, without = time.monotonic() - self._began >= STAY_SECONDS, self._without()
        if self._left_alone.source(record.study_id, agreed) != agreed:
            self._moves = "it was resumed with another source"
            return False
        taken = queue.take(self._storage, self._me, without, may_move)
        self._moves = "another study is due" if taken not in (None, record.study_id) else ""
        return taken == record.study_id

    def _now(self, record: StudyRecord) -> StudyRecord | None:
        """As it is now; None: it was deleted. SQLite gives the ids of deleted studies again."""
        now = studies.with_id(self._storage, record.study_id)
        return now if now is not None and now.uid == record.uid else None

    def _left(self, record: StudyRecord, stint: Interrupt, trained: int) -> None:
        now = self._now(record)
        if stint.requested:
            why = stint.reason
        elif now is None:
            why = "the study was deleted"
        elif now.state is not StudyState.RUNNING:
            why = f"the study was {now.state}"
        else:
            why = self._moves or "no more work for this worker"
            if not self._moves:
                self._left_alone.rest(record.study_id, trained)
        self._told("study left", f"leaving {record.name}: {why}", reason=why, trials=trained)

    def _without(self) -> set[int]:
        """Ids of the studies that it leaves alone now. Asked by the attendant's thread too."""
        left, self._attendant.note = self._left_alone.look()
        return left

    def _idle_too_long(self) -> bool:
        return self._waits and self._idle is not None and time.monotonic() - self._idle_since >= self._idle

    def _sign_off(self) -> None:
        """Hardly waited for: a worker that is not seen for a lease's length has ended too."""
        try:
            with waiting(SIGN_OFF_SECONDS, stop=lambda: False):
                queue.end(self._storage, self._me)
        except DatabaseAway as error:
            self._told("log", f"the worker ends without signing off: {error}", "warning")

    def _clear_up(self) -> None:
        """A model of the last study must not take the memory of the next one's."""
        gc.collect()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
