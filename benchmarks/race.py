"""Who finds the better network in the same time: Dialin, plain Optuna or Ray Tune.

    pip install -e '.[benchmarks]' -c constraints.txt
    python -m benchmarks.race --data FOLDER --plot race.png --output race.json
    python -m benchmarks.race --contest adult --systems dialin optuna --data FOLDER

FOLDER has FashionMNIST/raw, or tabular/adult.data. All search the same space (Dialin's recipe and the network's own
knobs) for the same network on the same examples, 10 epochs a full trial, two processes with one thread each: a small
convolutional network on images of Fashion-MNIST, or the built-in objectives `digits` and `adult`. What differs is in
benchmarks/rivals:

- dialin: `dialin run` and its defaults (`auto`), but for the recipes that it starts with: those that ship were chosen
  on these tasks too, so it has those of portfolio_left_out.json, which saw neither them nor any image.
- optuna: the loop of Optuna's official PyTorch example (torchvision dataset, transforms for each item, DataLoader,
  eager), TPESampler, MedianPruner, one process a core on one SQLite file.
- ray: the same loop under Ray Tune, OptunaSearch with TPESampler, ASHAScheduler, one trial a core, actors reused.

A system is a whole process that is interrupted when the time is over; the clock starts with it, imports included. An
epoch counts once its validation accuracy is on record: in Dialin's database, else in a log that the loop writes. A
trial is finished when it was trained to its end or pruned. The systems take turns, each seed beginning with another.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, select
from torchvision.datasets import FashionMNIST

from benchmarks.measured import option_parser, print_header, versions
from benchmarks.race_curves import Run, header, plot, print_medians, print_seed
from search import find_dataset
from search.portfolio import VARIABLE as PORTFOLIO_VARIABLE
from storage.tables import EpochRow, TrialRow

RIVALS = Path(__file__).resolve().parent / "rivals"
# What `dialin run` is given.
CONTESTS = {"fashion": str(RIVALS / "dialin_objective.py"), "digits": "digits", "adult": "adult"}
PORTFOLIO = Path(__file__).resolve().parent / "portfolio_left_out.json"
# To hand back trials and write results once it is interrupted, before it is ended for good.
GRACE_SECONDS = 30
MANY = 1_000_000


@dataclass(frozen=True)
class Event:
    """A trial's start, the end of one of its epochs (with its accuracy), or its end. `at` is seconds since 1970."""

    at: float
    trial: str
    event: str
    accuracy: float = 0.0


@dataclass(frozen=True)
class System:
    """How it is started in a folder of its own, and what it left there."""

    command: Callable[[argparse.Namespace, int, Path], list[str]]
    events: Callable[[Path], Iterator[Event]]


def dialin_command(given: argparse.Namespace, seed: int, _folder: Path) -> list[str]:
    """`dialin run`, with more trials than there is time for."""
    options = {"workers": given.workers, "epochs": given.epochs, "trials": MANY, "seed": seed, "data": given.root}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "search.cli", "run", CONTESTS[given.contest], *words, "--devices", "cpu"]


def dialin_events(folder: Path) -> Iterator[Event]:
    """From its database."""
    engine = create_engine(f"sqlite:///{folder / 'dialin.db'}")
    with engine.connect() as connection:
        trials = connection.execute(select(TrialRow.trial_id, TrialRow.started_at, TrialRow.settled_at)).all()
        epochs = connection.execute(select(EpochRow.trial_id, EpochRow.ended_at, EpochRow.metrics)).all()
    engine.dispose()
    for trial, started, settled in trials:
        yield Event(started, str(trial), "start")
        if settled is not None:
            yield Event(settled, str(trial), "end")
    for trial, ended, metrics in epochs:
        yield Event(ended, str(trial), "epoch", json.loads(metrics)["accuracy"])


def script_command(script: str) -> Callable[[argparse.Namespace, int, Path], list[str]]:
    """One of the rivals' scripts."""

    def command(given: argparse.Namespace, seed: int, folder: Path) -> list[str]:
        options = {"contest": given.contest, "workers": given.workers, "epochs": given.epochs, "seed": seed}
        options |= {"data": given.root, "log": folder / "log"}
        (folder / "log").touch()
        return [sys.executable, str(RIVALS / script), *(f"--{name}={value}" for name, value in options.items())]

    return command


def script_events(folder: Path) -> Iterator[Event]:
    """From the log that `plain_loop.note` wrote."""
    for line in (folder / "log").read_text().splitlines():
        yield Event(**json.loads(line))


SYSTEMS = {
    "dialin": System(dialin_command, dialin_events),
    "optuna": System(script_command("plain_optuna.py"), script_events),
    "ray": System(script_command("ray_tune.py"), script_events),
}


def run(system: str, seed: int, given: argparse.Namespace) -> Run:
    """One system with one seed for the whole time."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="race-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        output = folder / "output"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RACE_IMAGES": str(given.images)}
        environment[PORTFOLIO_VARIABLE] = str(PORTFOLIO)
        command = SYSTEMS[system].command(given, seed, folder)
        with output.open("w") as file:
            started = time.time()
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(given.seconds)
                    raise SystemExit(f"{system} ended before its time:\n{output.read_text()[-3000:]}")
            finally:
                interrupt(process)
        print(f"seed {seed}, {system}: done", file=sys.stderr)
        events = sorted(SYSTEMS[system].events(folder), key=lambda event: event.at)
        if not any(event.event == "epoch" for event in events):
            raise SystemExit(f"{system} trained no epoch:\n{output.read_text()[-3000:]}")
    moments = [(event.at - started, event) for event in events if event.at - started <= given.seconds]
    return Run(
        system,
        seed,
        load,
        starts=[at for at, event in moments if event.event == "start"],
        ends=[at for at, event in moments if event.event == "end"],
        epochs=[(at, event.trial, event.accuracy) for at, event in moments if event.event == "epoch"],
    )


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C in a terminal does: the command and the processes it started."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def options() -> argparse.Namespace:
    """What was asked for; `root` is where the data lie, images unpacked, so that no system pays for that."""
    parser = option_parser(__doc__)
    parser.add_argument("--contest", choices=CONTESTS, default="fashion")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240.0, help="for each system and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--images", type=int, default=10_000, help="of Fashion-MNIST that train; a quarter as many validate"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of a full trial")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--output", type=Path, help="a JSON file for every curve")
    given = parser.parse_args()
    given.root = given.data.resolve()
    if given.contest == "fashion":
        given.root = find_dataset("FashionMNIST/raw", FashionMNIST.resources, given.data, get="").resolve()
    if "ray" in given.systems and not versions(["ray"]):
        parser.error(
            "Ray is not installed: pip install -e '.[benchmarks]' -c constraints.txt, or leave it out: --systems"
        )
    return given


def main() -> None:
    """Race, print the table, and draw."""
    given = options()
    print_header("torch", "torchvision", "optuna", "ray")
    what = f"{given.images:,} images of Fashion-MNIST" if given.contest == "fashion" else given.contest
    setting = f"{what}, {given.seconds:g} s, {given.workers} workers"
    print(f"{setting}, {given.epochs} epochs a full trial; n = {given.seeds}, medians (least to most)")
    print("under a system's name: seconds until its final value was reached")
    print(header(given.systems))
    seeds = []
    for seed in range(given.seeds):
        turn = seed % len(given.systems)
        done = {system: run(system, seed, given) for system in given.systems[turn:] + given.systems[:turn]}
        seeds.append([done[system] for system in given.systems])
        print_seed(seeds[-1], given.seconds)
        if given.output:
            given.output.write_text(json.dumps([one.as_dict() for runs in seeds for one in runs], indent=1))
    print_medians(seeds, given.seconds)
    if given.plot:
        plot(seeds, given.seconds, setting, given.plot)


if __name__ == "__main__":
    main()
