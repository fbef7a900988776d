"""One process that trains trials of one study until there is nothing left to do: claim or adopt, train, settle.

`search.fleet` forks these; `dialin worker` is one in the foreground. Everything a worker knows comes in one
picklable `Assignment`; everything it finds out goes to the database.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial

from search import memory, narrowing, samplers, space_changes, strategies, watchdog
from search.assignment import Assignment
from search.chooser import Chooser
from search.data import Data, Folds
from search.devices import Slot
from search.hooks import OWN, Hooks
from search.interrupt import Interrupt
from search.judge import Judge, MakeStrategy
from search.keeper import LeaseKeeper
from search.objective import Objective
from search.outbox import HAND_BACK_SECONDS
from search.provenance import provenance
from search.reporting import Interrupted, Paused
from search.settings import of_study
from search.shelf import Shelf, open_store
from search.sizes import StoredSizes
from search.telling import Teller
from search.told import SILENT, Told
from search.trackers import make_trackers
from search.trainer import Trainer
from search.trial_log import printing_to
from search.watchdog import Watchdog
from storage import confirmations, first_trials, matching, pausing, stalling, studies, workers
from storage import provenance as provenances
from storage.claims import Claimant, GivenUp, Lease, LeaseLost
from storage.closing import close
from storage.errors import DialinError
from storage.file_names import trial_folder
from storage.patience import DatabaseAway, patiently, waiting
from storage.queries import SettledTrial
from storage.retention import make_room
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.suggesting import EXHAUSTED
from storage.unseen import is_exhausted

# How long a database that is away is waited for at the end: with HAND_BACK_SECONDS before it that is less than 5 s.
SIGN_OFF_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a study's trials train: the objective, as long as the study says and with its data, and its module's file.

    data: None where the objective trains itself. sha256: of the source.
    """

    objective: Objective
    data: Data | Folds | None
    path: Path
    sha256: str


def load_work(assignment: Assignment, storage: SharedStorage, record: StudyRecord, hooks: Hooks = OWN) -> Work:
    """Load the objective and its data, both as the study began with them.

    Raises:
        DialinErrors: there is no such objective here, or it or its data are not what the study was made with.
    """
    loaded = hooks.resolve(assignment.objective).to(record.direction)
    searched = loaded.objective.searched
    matching.check_same(record, loaded.reference, searched.name, searched.direction)
    loaded = replace(loaded, objective=of_study(loaded.objective, record.space))
    now = space_changes.describe(loaded.objective, loaded.source_sha256, whole=False)
    space_changes.open_for(storage, record, now, narrowing.beliefs(loaded.objective.knobs), _log.warning)
    # The study's length, which `--epochs` may have set, is the horizon of every schedule.
    objective = replace(loaded.objective, epochs=record.epochs)
    if objective.trains_itself:
        return Work(objective, None, loaded.path, loaded.source_sha256)
    data = hooks.load(assignment.shared, loaded, assignment.data, _log.warning)
    matching.check_folds(record, len(data.folds))
    return Work(objective, data, loaded.path, loaded.source_sha256)


class Worker:
    """Holds the study, the objective and its data for the life of the process."""

    def __init__(
        self,
        assignment: Assignment,
        interrupt: Interrupt,
        tell: Callable[[SettledTrial], None] = lambda _settled: None,
        last_words: Callable[[str], None] = lambda _line: None,
        make_strategy: MakeStrategy | None = None,
        told: Told = SILENT,
        hooks: Hooks = OWN,
    ) -> None:
        """Opens everything, and registers. `last_words`: told why the process ends, when training hangs.

        `make_strategy`: in place of the study's own. `told`: of what happens to trials. `hooks`: of a worker of
        the queue; without, it is the study's own.

        Raises DialinErrors: storage, study, objective, no free place."""
        samplers.quiet_optuna()
        torch.set_num_threads(assignment.threads)
        memory.keep_freed()
        self.interrupt, self._tell, self._told = interrupt, tell, told
        self._trial = Interrupt(outer=interrupt)  # what asks for the trial in hand alone
        self.trained, self._hooks = 0, hooks
        self.returning = False  # whether a database that was away has come back just before it ended
        self._claimant = Claimant(assignment.worker_id, assignment.lease_seconds)
        self._back_at = hooks.back_at
        self._storage = self._open(assignment.storage)
        self._record = studies.find(self._storage, assignment.study)
        # Before the first claim: a machine without the data must not spend trials to find out.
        work = load_work(assignment, self._storage, self._record, hooks)
        self._watchdog = Watchdog(
            watchdog.patience_with(work.objective, assignment.hang),
            lambda said: watchdog.end_process(said, last_words),
            step="report" if work.objective.trains_itself else "batch",
        )
        self._min_gain = stalling.wanted(self._storage, self._record)
        self._slot = self._register(assignment)
        try:
            self._set_up(assignment, work, make_strategy)
        except BaseException:
            self._end()  # or a process that goes on with another study would find its place taken, by itself
            raise

    def _set_up(self, assignment: Assignment, work: Work, make_strategy: MakeStrategy | None) -> None:
        """What needs the place that it took."""
        self._files, self._folder = assignment.files, assignment.files / self._record.folder
        self._shelf = self._open_shelf(assignment)
        ordinal = workers.ordinal(self._storage, self._claimant.worker_id)
        self._study = self._open_study(ordinal)
        self._judge = Judge(self._storage, self._study, make_strategy or strategies.of_study(self._record, ordinal))
        ends = self._give_up, self._close_if_done, self._hooks.stays
        self._chooser = Chooser(self._storage, self._study, self._judge, self.interrupt, *ends)
        self._trainer = self._make_trainer(work, assignment.data)
        self._trackers = make_trackers(assignment.log, self._folder)

    def _open_study(self, ordinal: int) -> optuna.Study:
        record = self._record
        return optuna.load_study(
            study_name=record.name,
            storage=self._storage,
            sampler=samplers.make_sampler(record.sampler, record.seed, ordinal),
            pruner=samplers.make_pruner(record.pruner, record.length),
        )

    def _make_trainer(self, work: Work, data_root: Path) -> Trainer:
        device, record = torch.device(self._slot.devices[0]), self._record
        own_loop = work.objective.train is not None
        found = provenance(work.objective, work.sha256, work.path, work.data, str(device))
        return Trainer(
            storage=self._storage,
            study=self._study,
            record=self._record,
            objective=work.objective,
            data=work.data,
            data_root=data_root,
            device=device,
            folder=self._folder,
            shelf=self._shelf,
            path=work.path,
            interrupt=self._trial,
            teller=self._teller,
            sizes=StoredSizes(self._storage, device),
            watchdog=self._watchdog,
            judge=self._judge,
            first_trials=first_trials.noted(self._storage, record.study_id) if own_loop else (),
            provenance=provenances.keep(self._storage, record.study_id, found),
        )

    def _open(self, url: str) -> SharedStorage:
        """Waited for: whoever starts workers has reached the database a moment ago."""
        waits: list[str] = []

        def tell(line: str) -> None:
            if not waits:  # a server that has begun to start says so: that is another wait, but the same outage
                _log.warning("%s", line)
            waits.append(line)

        with waiting(stop=lambda: self.interrupt.hurried, tell=tell):
            storage = patiently(lambda: self._hooks.open(url, self._claimant))
        if waits:
            self._back_at = time.monotonic()
        return storage

    @property
    def slot(self) -> Slot:
        """The place that this worker took."""
        return self._slot

    def work(self) -> None:
        """Train until the study has nothing left for this worker, or it is interrupted. Then sign off.

        Raises:
            DatabaseAway: the database went away, and has not come back within the limit. What was being trained may
                be adopted when its lease has expired.
        """
        sentinel = getattr(multiprocessing.parent_process(), "sentinel", None)
        try:
            with (
                waiting(stop=self._ends_while_waiting, tell=lambda _line: None),  # its keeper sees an outage itself
                self._keeper(sentinel) as keeper,
            ):
                while not self.interrupt.requested and (trial := self._chooser.next(keeper)) is not None:
                    self._work_on(trial, keeper)
                self.returning = keeper.returning
        finally:
            self._sign_off()
            self._trackers.close(hurried=lambda: self.interrupt.hurried)
            self._storage.backend.engine.dispose()  # a process that goes on with another study opens its own

    def _keeper(self, parent: int | None) -> LeaseKeeper:
        ends = self.interrupt, parent, self._back_at
        return LeaseKeeper(self._storage, self._record.study_id, *ends, trial=self._trial, beside=self._hooks.beside)

    def _ends_while_waiting(self) -> bool:
        """Asked several times a second while the database is away: that is no hang."""
        self._watchdog.beat()
        return self.interrupt.hurried

    def _teller(self, trial: Trial, lease: Lease) -> Teller:
        return Teller(
            self._trackers,
            self._storage,
            self._record,
            trial,
            lease,
            files=self._files,
            slot=self._slot.name,
            interrupt=self._trial,
            late=self._trainer.objective.trains_itself,
        )

    def _open_shelf(self, assignment: Assignment) -> Shelf:
        settings, record = assignment.checkpoints, self._record
        return Shelf(
            open_store(settings, assignment.files, record.folder),
            settings.limit,
            lambda limit, last_too: make_room(self._storage, record, limit, last_too),
        )

    def _register(self, assignment: Assignment) -> Slot:
        by_name = {slot.name: slot for slot in assignment.places}
        places = [workers.Place(slot.name, slot.key) for slot in assignment.places]
        place = workers.register(self._storage, assignment.worker_id, self._record.study_id, places)
        return by_name[place.name]

    def _sign_off(self) -> None:
        self._end(self._tidy_paused)

    def _end(self, first: Callable[[], None] = lambda: None) -> None:
        """Hardly waited for where the process ends: a worker that is not seen for a lease's length has ended too.

        One that goes on with another study must not find its own place taken; it does not where the database is away.
        """
        ends = self._hooks.stays is None or self.interrupt.hurried or isinstance(sys.exception(), DatabaseAway)
        try:
            with waiting(SIGN_OFF_SECONDS if ends else None):
                first()
                workers.end(self._storage, self._claimant.worker_id)
        except DatabaseAway as error:
            _log.info("the worker ends without signing off: %s", error)

    def _close_if_done(self) -> bool:
        """A study may come to an end before its budget does: no trial is started to find that out.

        Whether there is a trial to start that was not there before: a confirmation has those again that raised.
        """
        storage, study_id = self._storage, self._record.study_id
        assert storage.view is not None
        if self._record.confirms:
            return confirmations.fill_up(storage, study_id)
        if not storage.view.endless and is_exhausted(storage.view.today(storage.recorded(study_id))):
            close(storage, study_id, EXHAUSTED)
        elif self._min_gain is not None:
            stalling.close_if_stalled(storage, self._record)
        return False

    def _give_up(self, lost: GivenUp) -> None:
        """A trial that kills its workers is settled: nobody will need its checkpoints."""
        self._shelf.discard(trial_folder(lost.number))
        _log.warning("trial %d is lost: %s", lost.number, lost.reason)

    def _work_on(self, trial: Trial, keeper: LeaseKeeper) -> None:
        lease = self._storage.lease_of(trial)
        self.trained += 1
        with self._told.about(trial=trial.number):
            self._told("trial began", f"trial {trial.number} began", generation=lease.generation)
            self._train(trial, lease, keeper)

    def _train(self, trial: Trial, lease: Lease, keeper: LeaseKeeper) -> None:
        self._trial.forget()
        keeper.lease = lease
        folder = self._folder / trial_folder(trial.number)
        try:
            with printing_to(folder / "log.txt"):
                settled = self._trainer.train(trial, lease, folder, keeper)
            self._tell(settled)
        except Paused:
            self._pause(trial, lease, keeper)
        except Interrupted:
            if self._trial.lost:
                self._let_go(trial, lease, self._trial.reason)
            else:
                self._hand_back(trial, lease)
        except LeaseLost as lost:
            self._let_go(trial, lease, str(lost))
        finally:
            keeper.lease = None

    def _hand_back(self, trial: Trial, lease: Lease) -> None:
        hurried = waiting(HAND_BACK_SECONDS, stop=lambda: False)
        with hurried if self._trial.hurried else contextlib.nullcontext():
            self._storage.hand_back(lease)
        why = self._trial.reason
        self._told("trial handed back", f"trial {trial.number} handed back: {why}", reason=why)

    def _pause(self, trial: Trial, lease: Lease, keeper: LeaseKeeper) -> None:
        keeper.lease = None  # first: it must not renew what is let go
        try:
            paused = pausing.pause(self._storage, lease)
        except LeaseLost as lost:
            self._let_go(trial, lease, str(lost))
            return
        if paused:
            self._told("trial paused", f"trial {trial.number} paused by the strategy")
            self._shelf.trim()
        else:
            self._shelf.discard(trial_folder(trial.number))

    def _tidy_paused(self) -> None:
        """Whoever settled trials that were paused, in a transaction, left their files."""
        if self._storage.study_state(self._record.study_id) is not None:
            for number in pausing.settled_in_a_pause(self._storage, self._record.study_id):
                self._shelf.discard(trial_folder(number))

    def _let_go(self, trial: Trial, lease: Lease, why: str) -> None:
        """The lease is lost; where another program told the trial, that goes on record and its checkpoints go."""
        told = self._storage.let_go(lease)
        if told is not None:
            why = f"another program told it {told.name}"
            self._shelf.discard(trial_folder(trial.number))
        _log.warning("trial %d: %s; going on with another", trial.number, why)


def run_in_fleet(assignment: Assignment, connection: Any, make_strategy: MakeStrategy | None = None) -> None:
    """The body of a forked worker. What stops it from working goes to `connection` as one line.

    Its exit status is 2 for a mistake of the person's, which starting again would not mend, and 1 for all else.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C reaches the parent, which decides
    interrupt = Interrupt()
    interrupt.on_signals(signal.SIGTERM, then=signal.SIG_IGN)  # a parent that has lost patience kills
    with printing_to(assignment.files / "workers.log"):
        try:
            Worker(assignment, interrupt, last_words=connection.send, make_strategy=make_strategy).work()
        except DialinError as error:
            _last_words(connection, str(error), error.exit_status)
        except Exception as error:  # a bug of ours or a database that went away: the parent must hear of it
            _log.exception("the worker failed")
            _last_words(connection, f"{type(error).__name__}: {error}".splitlines()[0])


def _last_words(connection: Any, text: str, status: int = 1) -> None:
    with contextlib.suppress(OSError):
        connection.send(text)
    sys.exit(status)
