"""Two hundred workers of the queue on one PostgreSQL as it is installed: connections, waiting, shares, nothing lost.

    python -m benchmarks.many_workers                 # 200 workers, three studies of priority 3, 2 and 1
    python -m benchmarks.many_workers --held          # the same with SQLAlchemy's pool, which holds connections

The workers are simulated: they do all that a worker of the queue does with the database (take a study, claim, sample,
record epochs, settle; the very threads beside it that renew leases and listen), sleep in place of training and import
no torch. They are threads, 25 to a process, each with connections of its own. max_connections is 100, PostgreSQL's
default. After half of the time the priorities are turned round.

Prints connections (counted by the server five times a second), how often one was refused since all were taken, what a
transaction takes, trials settled and lost, each study's share of the time that workers trained before and after the
change, and how long it took until their shares were as promised, to a fiftieth.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import optuna
import psycopg
from optuna.samplers import RandomSampler
from optuna.trial import Trial
from postgres_server import PostgresServer
from sqlalchemy import QueuePool, delete, func, select

from benchmarks.measured import option_parser, print_header
from search.attendant import Attendant
from search.interrupt import Interrupt
from search.keeper import LeaseKeeper
from storage import engine, queue, steering, studies, workers
from storage.brief_pool import BriefPool
from storage.claims import BudgetSpent, Claimant, Epoch, GivenUp, LeaseLost, Settlement, StudyStopped, new_uuid
from storage.outcomes import Outcome
from storage.patience import waiting
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.studies import StudyRecord, StudySpec
from storage.tables import LeaseRow, TrialRow, WorkerRow

PRIORITIES = (3, 2, 1)
THREADS = 25
EPOCHS = 4
# Seconds that a database which does not answer is waited for, as by a real worker.
AWAY = 600.0


class Held(QueuePool):
    """Two connections that are held, and more for a moment: what was there before."""

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(creator, **({"pool_size": 2} | options))


# The study of a trial, and from when to when a worker trained it, in seconds since 1970.
Stint: TypeAlias = tuple[int, float, float]


@dataclass
class Seen:
    """What one process's workers found out. Seconds of each kind of transaction; `refused` connections.

    `stints`: the study of each trial that was trained here, from when to when. `lost` leases, by a worker that trained
    on; `idle`: workers that never had a trial.
    """

    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"take": [], "claim": [], "epoch": [], "settle": []}
    )
    stints: list[Stint] = field(default_factory=list)
    refused: int = 0
    lost: int = 0
    idle: int = 0
    errors: list[str] = field(default_factory=list)


class Simulated:
    """One worker of the queue."""

    def __init__(self, url: str, seen: Seen, end: float, epoch_seconds: float, number: int) -> None:
        self._url, self._seen, self._end = url, seen, end
        self._epoch_seconds, self._number = epoch_seconds, number
        self._me = new_uuid()
        self._study_id = self._trained = 0

    def run(self) -> None:
        """Work to the end; whatever goes wrong is on record in `seen`."""
        with waiting(AWAY, tell=self._refused):
            try:
                self._work()
            except Exception as error:
                self._seen.errors.append(f"{type(error).__name__}: {error}"[:200])
        self._seen.idle += not self._trained

    def _refused(self, _line: str) -> None:
        self._seen.refused += 1

    def _work(self) -> None:
        time.sleep(self._number % THREADS)  # nobody starts two hundred workers in one moment
        self._queue, worker_id = open_storage(self._url), new_uuid()
        self._storage = open_storage(self._url, Claimant(worker_id), beside=self._queue)
        queue.announce(self._queue, self._me)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with Attendant(self._queue, self._me, self._without) as attendant:
            while time.time() < self._end:
                study_id = self._timed("take", partial(queue.take, self._queue, self._me, self._without()))
                record = studies.with_id(self._queue, study_id) if study_id is not None else None
                if record is None:
                    time.sleep(attendant.pause)
                else:
                    self._serve(record, worker_id, attendant)
        queue.end(self._queue, self._me)
        workers.end(self._storage, worker_id)

    def _without(self) -> list[int]:
        """A real worker looks which of the open studies it may train."""
        return [study.study_id for study in queue.open_now(self._queue) if not study.sha256]

    def _serve(self, record: StudyRecord, worker_id: str, attendant: Attendant) -> None:
        self._study_id = record.study_id
        queue.begin(self._queue, self._me, worker_id)
        self._register(worker_id)
        sampler = RandomSampler(seed=self._number)
        study = optuna.load_study(study_name=record.name, storage=self._storage, sampler=sampler)
        stint = Interrupt()
        keeper = LeaseKeeper(self._storage, record.study_id, stint, beside=attendant.look)
        with keeper, attendant.at(stint, record.study_id):
            while not stint.requested and time.time() < self._end:
                self._train(study, keeper, stint)
                if queue.take(self._queue, self._me, self._without(), may_move=False) != record.study_id:
                    return

    def _register(self, worker_id: str) -> None:
        with self._storage.backend.write() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.worker_id == worker_id))
        workers.register(self._storage, worker_id, self._study_id, [workers.Place("cpu", None)])

    def _train(self, study: Any, keeper: LeaseKeeper, stint: Interrupt) -> None:
        """One trial, new or left by another; handed back when the worker is wanted elsewhere."""
        began = time.time()
        try:
            found = self._storage.adopt(self._study_id)
            assert not isinstance(found, GivenUp)
            trial = Trial(study, found.trial_id) if found is not None else self._timed("claim", study.ask)
            keeper.lease = lease = self._storage.lease_of(trial)
            self._trained += 1
            if found is None:
                with self._storage.sampling(trial):
                    for name in ("lr", "momentum", "width"):
                        trial.suggest_float(name, 0, 1)
            for number in range(self._storage.cost(lease)[0] + 1, EPOCHS + 1):
                if self._is_trained(stint):
                    epoch = Epoch(number, 0.5, {"loss": 1.0}, self._epoch_seconds, 64, "cpu")
                    self._timed("epoch", partial(self._storage.record_epoch, lease, epoch))
                if stint.overdue or (stint.requested and number < EPOCHS):
                    self._storage.hand_back(lease)
                    break
            else:
                self._timed("settle", partial(self._storage.settle, study, trial, Settlement(Outcome.COMPLETE), 0.5))
        except LeaseLost:
            self._seen.lost += 1
        except (BudgetSpent, StudyStopped):
            time.sleep(0.5)
        finally:
            keeper.lease = None
            self._seen.stints.append((self._study_id, began, time.time()))

    def _is_trained(self, stint: Interrupt) -> bool:
        """Whether an epoch came to its end: a worker that is wanted elsewhere gives up a long one."""
        until = time.monotonic() + self._epoch_seconds
        while (left := until - time.monotonic()) > 0 and not stint.overdue:
            time.sleep(min(left, 0.5))
        return left <= 0

    def _timed(self, kind: str, act: Any) -> Any:
        began = time.monotonic()
        try:
            return act()
        finally:
            self._seen.seconds[kind].append(time.monotonic() - began)


def crowd(url: str, first: int, count: int, end: float, epoch_seconds: float, held: bool, to: Any) -> None:
    """One process of simulated workers."""
    if held:
        setattr(engine, BriefPool.__name__, Held)  # to compare with
    seen = Seen()
    here = [Simulated(url, seen, end, epoch_seconds, first + number) for number in range(count)]
    threads = [threading.Thread(target=one.run) for one in here]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "torch" not in sys.modules
    to.send(seen)


def watch(url: str, over: threading.Event, counts: list[int]) -> None:
    """Count Dialin's connections as the server sees them."""
    with psycopg.connect(url, autocommit=True) as connection:
        while not over.wait(0.2):
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dialin'"
            ).fetchone()
            counts.append(int(row[0]) if row else 0)


def quantiles(found: list[float]) -> str:
    """`median 3 ms, 99%: 20 ms, longest 80 ms`."""
    if not found:
        return "never"
    found = sorted(found)
    median, most, last = found[len(found) // 2], found[int(0.99 * (len(found) - 1))], found[-1]
    return f"median {1000 * median:.0f} ms, 99%: {1000 * most:.0f} ms, longest {1000 * last:.0f} ms (n={len(found)})"


def main() -> None:
    """Run it, and print what came of it."""
    parser = option_parser(__doc__)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--epoch-seconds", type=float, default=15)
    parser.add_argument("--held", action="store_true", help="hold connections, to compare")
    options = parser.parse_args()
    print_header("optuna", "sqlalchemy", "psycopg")
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder))
        server.execute("ALTER SYSTEM SET max_connections = 100")
        server.crash()
        server.start_again()
        try:
            measure(server.create_database(), options)
        finally:
            server.stop()


def measure(url: str, options: argparse.Namespace) -> None:
    """One run on an empty database."""
    storage = open_storage(url)
    made = [make_study(storage, priority) for priority in PRIORITIES]
    began = time.time() + 10
    turn, end = began + options.seconds / 2, began + options.seconds
    counts: list[int] = []
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(url, over, counts))
    watcher.start()
    pipes, processes = [], []
    for first in range(0, options.workers, THREADS):
        ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        count = min(THREADS, options.workers - first)
        arguments = (url, first, count, end, options.epoch_seconds, options.held, theirs)
        process = multiprocessing.get_context("spawn").Process(target=crowd, args=arguments)
        process.start()
        pipes.append(ours)
        processes.append(process)
    time.sleep(max(0.0, turn - time.time()))
    for study_id, priority in zip(made, reversed(PRIORITIES), strict=True):
        steering.change(storage, study_id, Wish(priority=priority), "benchmark")
    everything = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    over.set()
    watcher.join()
    report(storage, made, everything, counts)
    stints = [stint for one in everything for stint in one.stints]
    report_shares(made, stints, (began + options.epoch_seconds, turn, end))


def make_study(storage: SharedStorage, priority: int) -> int:
    """A study that does not run out of trials."""
    spec = StudySpec(
        objective="digits",
        objective_sha256="0" * 64,
        metric="accuracy",
        direction="maximize",
        epochs=EPOCHS,
        trials=100_000,
        seed=1,
        sampler="random",
        pruner="none",
        priority=priority,
    )
    return studies.create(storage, spec, stem="many").study_id


def report(storage: SharedStorage, made: list[int], everything: list[Seen], counts: list[int]) -> None:
    """Print what was seen."""
    busy = counts[len(counts) // 10 :]
    print(f"connections: at most {max(busy)}, on average {sum(busy) / len(busy):.0f}")
    print(
        f"waits for the database, such as for a connection that was refused: {sum(one.refused for one in everything)}"
    )
    for kind in ("take", "claim", "epoch", "settle"):
        print(f"{kind}: {quantiles([second for one in everything for second in one.seconds[kind]])}")
    with storage.backend.read() as session:
        settled = session.scalar(select(func.count()).select_from(TrialRow).where(TrialRow.outcome.is_not(None)))
        left = session.scalar(select(func.count()).select_from(LeaseRow).where(LeaseRow.expires_at > 0))
    taken = sum(found.taken for one in made if (found := studies.with_id(storage, one)) is not None)
    lost, idle = sum(one.lost for one in everything), sum(one.idle for one in everything)
    print(f"trials: {taken} begun, {settled} settled, {left} still held; {lost} leases lost; {idle} workers had none")
    errors = Counter(error for one in everything for error in one.errors)
    print(f"errors: {sum(errors.values())}")
    for error, count in errors.most_common(5):
        print(f"  {count} times {error}")


def report_shares(made: list[int], stints: list[Stint], times: tuple[float, float, float]) -> None:
    """Print each study's share of the time that was trained, and how soon it was another."""
    began, turn, end = times
    promised = [priority / sum(PRIORITIES) for priority in reversed(PRIORITIES)]
    late = [turn + second for second in range(int(end - turn))]
    settled = next((at for at in late if is_near(shares(made, stints, at, at + 1), promised)), None)
    print_shares("before the change", shares(made, stints, began, turn), [*reversed(promised)])
    print_shares("after the change", shares(made, stints, turn if settled is None else settled, end), promised)
    print(f"as promised: {'never' if settled is None else f'{settled - turn:.0f} s'} after the change")


def shares(made: list[int], stints: list[Stint], since: float, until: float) -> list[float]:
    """Each study's share of the time that workers trained in this stretch of time."""
    spent: dict[int, float] = defaultdict(float)
    for study_id, began, ended in stints:
        spent[study_id] += max(0.0, min(ended, until) - max(began, since))
    return [spent[one] / (sum(spent.values()) or 1) for one in made]


def is_near(found: list[float], promised: list[float]) -> bool:
    """To a fiftieth."""
    return all(abs(one - other) <= 0.02 for one, other in zip(found, promised, strict=True))


def print_shares(when: str, found: list[float], promised: list[float]) -> None:
    """A line of them."""
    print(f"shares {when}: " + ", ".join(f"{a:.1%} (promised {b:.1%})" for a, b in zip(found, promised, strict=True)))


if __name__ == "__main__":
    main()
