"""Epochs a second of Dialin's training loop, training and evaluation together, against the loop most users write.

    python -m benchmarks.training --data FOLDER
    python -m benchmarks.training --data FOLDER --cases fashion-cnn fashion-mlp --images 20000 --repeats 9
    python -m benchmarks.training --data FOLDER --accuracy --seeds 5

FOLDER has FashionMNIST/raw and text/tinyshakespeare.txt. The baseline is what Optuna's official PyTorch example does:
a torchvision dataset with per-item transforms, a DataLoader to train and one to evaluate, an eager loop of zero_grad,
backward and step. Model, batch size, optimizer and images are the same in both. Each has a process of its own, with
one thread; the two take turns, an epoch each, and the first turn is not counted. "faster" is the ratio within a turn,
in wall time and in the process's own seconds of the CPU, which other work on the machine disturbs less. "floor" is the
share of Dialin's time that the model's floating-point operations would take at the rate of a matrix product (1024 x
1024, float32) timed in the same turn; what is not a matrix product or a convolution counts for nothing there.

`--accuracy` trains both from the same initial weights, shuffled each in its own way, at a rate that falls to zero on
half a cosine (at a constant one the last few batches decide), and prints the mean and the standard deviation of the
accuracy on the test images after the last epoch, and how far apart the two are, with its standard error.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measured import option_parser, print_header, spread
from benchmarks.training_cases import CASES, Case, mean_loss
from search.memory import keep_freed
from search.objective import Objective
from search.optimizers import OPTIMIZERS, Momentum
from search.randomness import seed_everything
from search.reporting import EpochResult, Verdict
from search.schedules import SCHEDULES
from search.space import Recipe
from search.training import train

MANY_EPOCHS = 10_000
PRODUCT_SIZE = 1024


@dataclass(frozen=True)
class Settings:
    """What is the same for every case. `annealed`: so many epochs bring the rate to zero; 0 leaves it as it is."""

    data: Path
    images: int
    device: torch.device
    batch_size: int
    annealed: int = 0

    def case(self, name: str) -> Case:
        return CASES[name](self.data, self.images)


@dataclass(frozen=True)
class Epoch:
    """Its seconds, wall and the process's own of the CPU, and what the network was evaluated to after it."""

    wall: float
    used: float
    value: float


@dataclass(frozen=True)
class Turn:
    """An epoch of each, and the wall seconds of the floating-point floor."""

    dialin: Epoch
    baseline: Epoch
    floor: float


class Turns:
    """One side's end of the pipe: it trains an epoch whenever it is told to."""

    def __init__(self, pipe: Connection, device: torch.device) -> None:
        self._pipe, self._device = pipe, device
        self._began = 0.0, 0.0

    def wait(self) -> None:
        """Until the next epoch is wanted. SystemExit: none is."""
        if not self._pipe.recv():
            raise SystemExit
        self._began = time.perf_counter(), time.process_time()

    def ended(self, value: float) -> None:
        """Tell of an epoch, and wait."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        wall, used = self._began
        self._pipe.send(Epoch(time.perf_counter() - wall, time.process_time() - used, value))
        self.wait()


@dataclass
class KeepsNothing:
    """A `search.reporting.Reporter` that writes nothing anywhere."""

    turns: Turns

    def restore(self) -> None:
        self.turns.wait()

    def report(self, result: EpochResult, state: object) -> Verdict:
        assert result.value is not None
        self.turns.ended(result.value)
        return Verdict.GO_ON

    def between_batches(self, batch: int, state: object) -> None:
        pass

    def interrupted(self) -> bool:
        return False


def dialin(case: Case, settings: Settings, seed: int, turns: Turns) -> None:
    """Train as a worker does."""
    task, row, size = case.task(), OPTIMIZERS[case.optimizer], settings.batch_size
    momentum = {"momentum": 0.9} if row.momentum is Momentum.MOMENTUM else {"betas": (0.9, 0.999)}
    schedule = ("cosine", {"cosine_final": 0.0}) if settings.annealed else ("constant", {})
    recipe = Recipe(row, case.rate, 0.0, size, SCHEDULES[schedule[0]], shape=schedule[1], **momentum)
    objective = Objective(
        model=lambda _trial: task,
        data=lambda _root: case.data,
        metric=case.metric,
        epochs=settings.annealed or MANY_EPOCHS,
        batch_sizes=(size,),
    )
    train(task, case.data, recipe, objective, device=settings.device, seed=seed, reporter=KeepsNothing(turns))


def baseline(case: Case, settings: Settings, seed: int, turns: Turns) -> None:
    """Train as Optuna's example does."""
    net, device = case.task().net.to(settings.device), settings.device
    options: dict[str, Any] = {"batch_size": settings.batch_size, "pin_memory": device.type == "cuda"}
    batches, held_out = DataLoader(case.train, shuffle=True, **options), DataLoader(case.test, **options)
    optimizer: torch.optim.Optimizer
    if case.optimizer == "momentum":
        optimizer = torch.optim.SGD(net.parameters(), lr=case.rate, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=case.rate, weight_decay=0.0)
    schedule: Any = CosineAnnealingLR(optimizer, settings.annealed * len(batches)) if settings.annealed else None
    turns.wait()
    while True:
        net.train()
        for inputs, targets in batches:
            inputs, targets = inputs.to(device), targets.to(device)
            optimizer.zero_grad()
            loss = mean_loss(net(inputs), targets)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        turns.ended(evaluated(net, held_out, case, device))


System: TypeAlias = Callable[[Case, Settings, int, Turns], None]


def _process(train_it: System, name: str, settings: Settings, seed: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if train_it is dialin:
        keep_freed()  # as a worker does
    case = settings.case(name)
    seed_everything(seed)
    train_it(case, settings, seed, Turns(pipe, settings.device))


@contextmanager
def at_work(train_it: System, name: str, settings: Settings, seed: int) -> Iterator[Callable[[], Epoch]]:
    """A process of its own, which has the memory of no other; each call has it train one epoch."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(train_it, name, settings, seed, theirs))
    process.start()
    theirs.close()

    def epoch() -> Epoch:
        ours.send(True)
        found: Epoch = ours.recv()
        return found

    yield epoch
    ours.send(False)
    process.join()


@torch.no_grad()
def evaluated(net: nn.Module, test: DataLoader[Any], case: Case, device: torch.device) -> float:
    """The share of right classes, or the mean loss."""
    net.eval()
    total, count = 0.0, 0
    for inputs, targets in test:
        inputs, targets = inputs.to(device), targets.to(device)
        outputs = net(inputs)
        if case.hits:
            total += outputs.argmax(dim=1).eq(targets).sum().item()
        else:
            total += mean_loss(outputs, targets).item() * len(targets)
        count += len(targets)
    return total / count


def operations(case: Case, settings: Settings) -> float:
    """Floating-point operations of an epoch: a step's for every training sample, a forward pass's for every other."""
    task = case.task()
    inputs, targets = next(iter(DataLoader(case.train, batch_size=settings.batch_size)))
    with FlopCounterMode(display=False) as whole:
        mean_loss(task.net.train()(inputs), targets).backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        task.net.eval()(inputs)
    train, test = case.counts
    return float(whole.get_total_flops() * train + forward.get_total_flops() * test) / len(targets)


def rate_of_products(device: torch.device) -> float:
    """Floating-point operations a second of a matrix product, the best of a few."""
    one = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device)
    seconds = min(product(one) for _ in range(10))
    return float(2 * PRODUCT_SIZE**3 / seconds)


def product(one: torch.Tensor) -> float:
    """The seconds of a matrix product."""
    began = time.perf_counter()
    one @ one
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
    return time.perf_counter() - began


def measure(name: str, settings: Settings, repeats: int) -> list[Turn]:
    """An epoch of each in every turn."""
    flops = operations(settings.case(name), settings)
    turns = []
    with at_work(dialin, name, settings, 0) as ours, at_work(baseline, name, settings, 0) as theirs:
        for _ in range(repeats + 1):
            turns.append(Turn(ours(), theirs(), flops / rate_of_products(settings.device)))
    return turns[1:]


def print_speeds(names: Sequence[str], settings: Settings, repeats: int) -> None:
    """The table."""
    print(f"n = {repeats} turns, medians (least to most)")
    titles = "epochs/s: dialin", "baseline", "faster, wall", "faster, CPU"
    print("case         images  ", *(f"{title:24s}" for title in titles), "floor", sep="")
    for name in names:
        turns = measure(name, settings, repeats)
        columns = (
            [1 / one.dialin.wall for one in turns],
            [1 / one.baseline.wall for one in turns],
            [one.baseline.wall / one.dialin.wall for one in turns],
            [one.baseline.used / one.dialin.used for one in turns],
        )
        floor = statistics.median(100 * one.floor / one.dialin.wall for one in turns)
        images, _ = settings.case(name).counts
        print(
            f"{name:12s} {images:6d}  {''.join(f'{spread(column, 2):24s}' for column in columns)}{floor:3.0f} %",
            flush=True,
        )


def print_accuracies(names: Sequence[str], settings: Settings, seeds: int, epochs: int) -> None:
    """Both trained by the same recipe for the same few epochs."""
    print(f"n = {seeds} seeds, {epochs} epochs; mean and standard deviation of what the last one was evaluated to")
    print("case         images  value     dialin             baseline           apart")
    for name in names:
        ours, theirs = (
            [last_value(system, name, settings, seed, epochs) for seed in range(seeds)] for system in (dialin, baseline)
        )
        told = [f"{statistics.mean(one):.4f} +- {statistics.stdev(one):.4f}" for one in (ours, theirs)]
        case = settings.case(name)
        pairs = [one - other for one, other in zip(ours, theirs, strict=True)]
        apart, error = statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
        print(
            f"{name:12s} {case.counts[0]:6d}  {case.metric:8s}  {told[0]}  {told[1]}  {apart:+.4f} +- {error:.4f}",
            flush=True,
        )


def last_value(system: System, name: str, settings: Settings, seed: int, epochs: int) -> float:
    """What it was evaluated to after so many epochs."""
    with at_work(system, name, settings, seed) as epoch:
        return [epoch().value for _ in range(epochs)][-1]


def main() -> None:
    """Measure and print the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all, with --accuracy fashion-mlp and -cnn")
    parser.add_argument("--images", type=int, default=10_000, help="to train on, at most; resnet18 and text take fewer")
    parser.add_argument("--batch-size", type=int, default=128, help="128, as in Optuna's example, unless given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="with --accuracy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    annealed = given.epochs if given.accuracy else 0
    settings = Settings(given.data, given.images, torch.device(given.device), given.batch_size, annealed)
    names = given.cases or (["fashion-mlp", "fashion-cnn"] if given.accuracy else list(CASES))
    gpus = [torch.cuda.get_device_name(settings.device)] if settings.device.type == "cuda" else []
    print_header("torch", "torchvision", gpus=gpus)
    print(f"1 thread of the CPU, float32, batch size {settings.batch_size}")
    if given.accuracy:
        print_accuracies(names, settings, given.seeds, given.epochs)
    else:
        print_speeds(names, settings, given.repeats)


if __name__ == "__main__":
    main()
