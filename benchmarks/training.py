"""Epochs a second of Dialin's training loop, training and evaluation together, against the loop most users write.

    python benchmarks/training.py --data FOLDER
    python benchmarks/training.py --data FOLDER --cases fashion-cnn fashion-mlp --images 20000 --repeats 9
    python benchmarks/training.py --data FOLDER --accuracy --seeds 5

FOLDER has FashionMNIST/raw and text/tinyshakespeare.txt. The baseline is what Optuna's official PyTorch example does:
a torchvision dataset with per-item transforms, a DataLoader to train and one to evaluate, an eager loop of zero_grad,
backward and step. Model, batch size, optimizer and images are the same in both. The two take turns, an epoch each;
the first turn is not counted. "faster" is the ratio within a turn, in wall time and in the CPU's own seconds, which
other work on the machine disturbs less. "floor" is the share of Dialin's time that the model's floating-point
operations would take at the rate of a matrix product (1024 x 1024, float32) timed in the same turn; what is not a
matrix product or a convolution counts for nothing there.

`--accuracy` trains both from the same initial weights, shuffled each in its own way, and prints the mean and the
standard deviation of the accuracy on the test images after the last epoch.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from training_cases import CASES, Case, mean_loss

from search.curve import Curve
from search.fitting import Fitting
from search.objective import Objective
from search.optimizers import OPTIMIZERS
from search.randomness import seed_everything
from search.schedules import SCHEDULES
from search.space import Recipe

MANY_EPOCHS = 10_000
SIDE = 1024


@dataclass(frozen=True)
class Settings:
    """What is the same for every case."""

    device: torch.device
    batch_size: int


@dataclass(frozen=True)
class Turn:
    """What one turn took: (wall, CPU) seconds of an epoch of each, and wall seconds of the floating-point floor."""

    dialin: tuple[float, float]
    baseline: tuple[float, float]
    floor: float


def dialin(case: Case, settings: Settings, seed: int, epochs: int = MANY_EPOCHS) -> Iterator[float]:
    """Train an epoch at each step, and give what it was evaluated to. Nobody is reported to."""
    seed_everything(seed)
    task = case.task()
    row = OPTIMIZERS[case.optimizer]
    betas = {} if row.name == "momentum" else {"betas": (0.9, 0.999)}
    momentum = {"momentum": 0.9} if row.name == "momentum" else {}
    recipe = Recipe(row, case.rate, 0.0, settings.batch_size, SCHEDULES["constant"], **momentum, **betas)
    objective = Objective(
        model=lambda _trial: task,
        data=lambda _root: case.data,
        metric=case.metric,
        epochs=epochs,
        batch_sizes=(settings.batch_size,),
    )
    curve = Curve(task, case.data, recipe, objective, settings.device, seed, Fitting())
    for result in curve.epochs(lambda: False, lambda _batch, _state: None):
        assert result.value is not None
        yield result.value


def baseline(case: Case, settings: Settings, seed: int) -> Iterator[float]:
    """The same, as Optuna's example has it."""
    seed_everything(seed)
    net = case.task().net.to(settings.device)
    fast = settings.device.type == "cuda"
    train = DataLoader(case.train, batch_size=settings.batch_size, shuffle=True, pin_memory=fast)
    test = DataLoader(case.test, batch_size=settings.batch_size, pin_memory=fast)
    if case.optimizer == "momentum":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=case.rate, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=case.rate, weight_decay=0.0)
    while True:
        net.train()
        for inputs, targets in train:
            inputs, targets = inputs.to(settings.device), targets.to(settings.device)
            optimizer.zero_grad()
            loss = mean_loss(net(inputs), targets)
            loss.backward()
            optimizer.step()
        yield evaluated(net, test, case, settings.device)


@torch.no_grad()
def evaluated(net: nn.Module, test: DataLoader, case: Case, device: torch.device) -> float:
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
    samples = len(case.train), len(case.test)  # type: ignore[arg-type]
    return (whole.get_total_flops() * samples[0] + forward.get_total_flops() * samples[1]) / len(targets)


def rate_of_products(device: torch.device) -> float:
    """Floating-point operations a second of a matrix product, the best of a few."""
    one, other = torch.randn(2, SIDE, SIDE, device=device)
    seconds = min(timed(lambda: one @ other, device)[0] for _ in range(10))
    return float(2 * SIDE**3 / seconds)


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, used = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - used


def measure(case: Case, settings: Settings, repeats: int) -> list[Turn]:
    """An epoch of each in every turn."""
    flops = operations(case, settings)
    ours, theirs = dialin(case, settings, seed=0), baseline(case, settings, seed=0)
    turns = []
    for _ in range(repeats + 1):
        seconds = [timed(lambda side=side: next(side), settings.device) for side in (ours, theirs)]  # type: ignore[misc]
        turns.append(Turn(*seconds, flops / rate_of_products(settings.device)))
    return turns[1:]


def print_speeds(cases: dict[str, Case], settings: Settings, repeats: int) -> None:
    """The table."""
    print(f"n = {repeats} turns, medians (least to most)")
    titles = "epochs/s: dialin", "baseline", "faster, wall", "faster, CPU"
    print("case         images  ", *(f"{title:24s}" for title in titles), "floor", sep="")
    for name, case in cases.items():
        turns = measure(case, settings, repeats)
        ours, theirs = [1 / one.dialin[0] for one in turns], [1 / one.baseline[0] for one in turns]
        wall, used = ([one.baseline[i] / one.dialin[i] for one in turns] for i in (0, 1))
        floor = statistics.median(100 * one.floor / one.dialin[0] for one in turns)
        print(
            f"{name:12s} {len(case.train):6d}  {spread(ours, 2)}{spread(theirs, 2)}"  # type: ignore[arg-type]
            f"{spread(wall, 2)}{spread(used, 2)}{floor:3.0f} %",
            flush=True,
        )


def print_accuracies(cases: dict[str, Case], settings: Settings, seeds: int, epochs: int) -> None:
    """Both trained by the same recipe for the same few epochs."""
    print(f"n = {seeds} seeds, {epochs} epochs; mean and standard deviation of what the last epoch was evaluated to")
    print("case         images  value     dialin             baseline           apart")
    for name, case in cases.items():
        found: list[list[float]] = [[], []]
        for seed in range(seeds):
            for values, side in zip(found, (dialin, baseline), strict=True):
                steps = side(case, settings, seed)
                values.append([next(steps) for _ in range(epochs)][-1])
        ours, theirs = (f"{statistics.mean(one):.4f} +- {statistics.stdev(one):.4f}" for one in found)
        apart = statistics.mean(found[0]) - statistics.mean(found[1])
        images = len(case.train)  # type: ignore[arg-type]
        print(f"{name:12s} {images:6d}  {case.metric:8s}  {ours}  {theirs}  {apart:+.4f}", flush=True)


def spread(values: list[float], digits: int) -> str:
    """The median, the least and the most."""
    told = f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return f"{told:24s}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all, with --accuracy fashion-mlp and -cnn")
    parser.add_argument("--images", type=int, default=10_000, help="to train on, at most; resnet18 and text take fewer")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="with --accuracy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(torch.device(given.device), given.batch_size)
    names = given.cases or (["fashion-mlp", "fashion-cnn"] if given.accuracy else list(CASES))
    cases = {name: CASES[name](given.data, given.images) for name in names}
    print_header(settings)
    if given.accuracy:
        print_accuracies(cases, settings, given.seeds, given.epochs)
    else:
        print_speeds(cases, settings, given.repeats)


def print_header(settings: Settings) -> None:
    """Where and with what it was measured."""
    hardware = f"{processor()}, {len(os.sched_getaffinity(0))} cores, 1 thread"
    if settings.device.type == "cuda":
        hardware += f", {torch.cuda.get_device_name(settings.device)}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
    print(f"{hardware}; Python {platform.python_version()}, {versions}; float32, batch size {settings.batch_size}")
    print(f"load average {os.getloadavg()[0]:.1f}")


def processor() -> str:
    """The model's name, which Linux alone tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
