"""Workers killed at random, and the database's server: is anything lost, and what does a death cost?

    python -m benchmarks.chaos --databases sqlite postgresql --plans kill mixed

Six workers train 40 trials of 12 epochs. "kill": every second or two one of them gets SIGKILL, 30 times, and another
is started; whoever sees it gives its trial free at once, as `dialin run` does. "mixed": SIGKILL, SIGTERM, and SIGSTOP
for longer than a lease (of 3 s here), and half of the deaths are seen by nobody. On PostgreSQL the server with all its
processes is killed by SIGKILL and started again three times meanwhile. Then: exactly 40 trials settled, none RUNNING,
no lease left, every epoch on record by the one who held the lease then, and every curve equal, bit for bit, to that of
its recipe trained undisturbed in this process. Prints what is not as it must be (exit status 1), what files are left
that nothing records, and the epochs that were trained again, counted in batches.

An epoch takes 0.6 or 1.2 s (4 or 8 batches, made slow), a state is written every 5 s: what a person has.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from chaos import END, FREEZE, KILL, Chaos, Plan
from chaos_checks import complaints, files_left_over, lost, unlike_their_twins
from postgres_server import PostgresServer

from benchmarks.measured import option_parser, print_header

KILLING = Plan(workers=6, trials=40, epochs=12, blows_in_all=30, every=(1.0, 2.0), outages=3, step_seconds=0.15)
PLANS = {
    "kill": KILLING,
    "mixed": replace(
        KILLING,
        blows={KILL: 0.4, END: 0.3, FREEZE: 0.3},
        unseen=0.5,
        lease_seconds=3.0,
        frozen=(0.5, 8.0),
        tempo={"search.keeper:RENEW_SECONDS": 0.5, "search.keeper:LISTEN_SECONDS": 0.25},
    ),
}


def show(name: str, database: str, plan: Plan) -> bool:
    """Run one and print its line; whether all was as it must be."""
    with tempfile.TemporaryDirectory(prefix="dialin-chaos-") as name_of_folder, database_of(database) as (url, server):
        folder = Path(name_of_folder)
        chaos = Chaos(url or f"sqlite:///{folder / 'study.db'}", folder, plan, server)
        report = chaos.run()
        wrong = [*complaints(chaos), *unlike_their_twins(chaos)]
        cost, left = lost(chaos), files_left_over(chaos)
    blows = sum(report.blows.values())
    wrong += [f"only {blows} of {plan.blows_in_all} blows fell"] if blows < plan.blows_in_all else []
    kinds = " ".join(f"{kind[3:].lower()} {count}" for kind, count in sorted(report.blows.items()))
    print(
        f"{name:5s}  {database:10s} {plan.seed:4d}  {kinds:21s}  {report.outages:7d} {report.started:8d} "
        f"{report.seconds:8.1f} {cost.trained:7.1f} {cost.epochs:8.1f} {cost.epochs / blows:7.2f} "
        f"{cost.seconds / blows:8.2f}  {f'{len(wrong)} wrong' if wrong else 'nothing lost'}",
        flush=True,
    )
    for line in (*wrong, *left):
        print(f"    {line}")
    return not wrong


@contextmanager
def database_of(kind: str) -> Iterator[tuple[str, PostgresServer | None]]:
    """An empty database's URL and its server; of SQLite neither."""
    if kind == "sqlite":
        yield "", None
        return
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder))
        try:
            yield server.create_database(), server
        finally:
            server.stop()


def main() -> None:
    """Run them and print the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    parser.add_argument("--plans", nargs="+", choices=[*PLANS], default=[*PLANS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=KILLING.workers)
    parser.add_argument("--trials", type=int, default=KILLING.trials)
    parser.add_argument("--blows", type=int, default=KILLING.blows_in_all)
    parser.add_argument("--outages", type=int, default=KILLING.outages)
    parser.add_argument("--pruner", default="none")
    arguments = parser.parse_args()
    print_header("torch", "optuna")
    print(
        f"{arguments.workers} workers, {arguments.trials} trials of {KILLING.epochs} epochs; pruner {arguments.pruner}"
    )
    print(
        "                                                       workers             epochs  trained    epochs  seconds"
    )
    print(
        "plan   database   seed blows                      outages  started  seconds  in all    again  a blow   a blow"
    )
    fine = True
    for name in arguments.plans:
        for database in arguments.databases:
            for seed in arguments.seeds:
                plan = replace(
                    PLANS[name],
                    workers=arguments.workers,
                    trials=arguments.trials,
                    blows_in_all=arguments.blows,
                    outages=arguments.outages if database == "postgresql" else 0,
                    pruner=arguments.pruner,
                    seed=seed,
                )
                fine &= show(name, database, plan)
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
