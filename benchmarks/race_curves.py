"""What came of each run of `race.py`, what it says about the systems, as a table and as a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Of its budget: the plot begins where a system has trained long enough to be more than noise.
PLOTTED_FROM = 0.2
# Nearer to the best value than this lies luck, where data are large enough: on 5,000 examples an accuracy of 0.9 has a
# standard error of 0.004.
NEAR = 0.001


@dataclass(frozen=True)
class Run:
    """One system, one seed. All moments are seconds since its process was started; what came too late is not in it.

    `starts` and `ends` are of trials; `epochs` are (moment, trial, validation accuracy), in order. `load` is the
    machine's, at the beginning.
    """

    system: str
    seed: int
    load: float
    starts: list[float]
    ends: list[float]
    epochs: list[tuple[float, str, float]]

    @property
    def best(self) -> float:
        """The best accuracy of any epoch; not a number, which nobody reaches, where there was none."""
        return max((accuracy for _, _, accuracy in self.epochs), default=math.nan)

    @property
    def first_trial(self) -> float:
        """When its first trial began."""
        return min(self.starts, default=math.inf)

    def pace(self, seconds: float) -> float:
        """Epochs a second over the whole time."""
        return len(self.epochs) / seconds

    def pace_in_trials(self, seconds: float) -> float:
        """Epochs a second from the first trial's start to the end of the time."""
        return len(self.epochs) / (seconds - self.first_trial) if self.starts else math.nan

    def reached(self, accuracy: float) -> float:
        """When an epoch was first as good as that; infinity for never."""
        return next((moment for moment, _, found in self.epochs if found >= accuracy), math.inf)

    def best_at(self, moment: float) -> float:
        """The best accuracy of the epochs until then."""
        return max((accuracy for ended, _, accuracy in self.epochs if ended <= moment), default=math.nan)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def print_seed(runs: list[Run], seconds: float) -> None:
    """The lines of one seed, and who reached whose value when."""
    for run in runs:
        reached = "  ".join(f"{moment(run.reached(other.best)):>8s}" for other in runs)
        print(
            f"{run.seed:4d}  {run.system:6s} {len(run.starts):6d} {len(run.ends):8d} {len(run.epochs):6d} "
            f"{run.pace(seconds):8.2f}  {run.best:.4f} {moment(run.first_trial):>11s}  {reached} {run.load:5.1f}",
            flush=True,
        )


def header(systems: Iterable[str]) -> str:
    """Over the lines of the seeds."""
    names = "  ".join(f"{name:>8s}" for name in systems)
    return f"seed  system trials finished epochs a second    best first trial  {names}  load"


def print_medians(seeds: list[list[Run]], seconds: float) -> None:
    """A line for each figure of each system: the median over the seeds, the least and the most."""
    systems = [run.system for run in seeds[0]]
    figures: dict[str, tuple[Callable[[Run], float], int]] = {
        "trials started": (lambda run: len(run.starts), 0),
        "trials finished": (lambda run: len(run.ends), 0),
        "epochs": (lambda run: len(run.epochs), 0),
        "epochs a second": (lambda run: run.pace(seconds), 2),
        "epochs a second from the first trial's start on": (lambda run: run.pace_in_trials(seconds), 2),
        "best accuracy": (lambda run: run.best, 4),
        "first trial began after, s": (lambda run: run.first_trial, 1),
    }
    for name, (figure, digits) in figures.items():
        print(name)
        for index, system in enumerate(systems):
            print(f"    {system:6s}  {spread([figure(runs[index]) for runs in seeds], digits)}")
    print("seconds to the other's final value of the same seed, from the process's start; from its first trial's")
    for index, system in enumerate(systems):
        for other, rival in enumerate(systems):
            times = [runs[index].reached(runs[other].best) for runs in seeds]
            later = [time - runs[index].first_trial for time, runs in zip(times, seeds, strict=True)]
            whose = "its own" if other == index else f"{rival}'s"
            print(f"    {system:6s}  {whose:9s} {spread(times, 1)};  {spread(later, 1)}")
    print(f"seconds to {NEAR} below the seed's best value of any system")
    for index, system in enumerate(systems):
        best = [max((run.best for run in runs if run.epochs), default=math.nan) for runs in seeds]
        near = [runs[index].reached(value - NEAR) for runs, value in zip(seeds, best, strict=True)]
        print(f"    {system:6s}  {spread(near, 1)}")
    if "dialin" in systems:
        print_ratios(seeds, systems.index("dialin"), seconds)


def print_ratios(seeds: list[list[Run]], ours: int, seconds: float) -> None:
    """How much of the others' time one system needed for the same value."""
    print(f"{seeds[0][ours].system}'s time to the other's final value, in the other's own time to it; in the budget")
    for other, rival in enumerate(seeds[0]):
        if other != ours:
            finals = [runs[other].best for runs in seeds]
            mine = [runs[ours].reached(best) for runs, best in zip(seeds, finals, strict=True)]
            theirs = [runs[other].reached(best) for runs, best in zip(seeds, finals, strict=True)]
            own = spread([one / two for one, two in zip(mine, theirs, strict=True)], 2)
            print(f"    {rival.system:6s}  {own};  {spread([one / seconds for one in mine], 2)}")


def spread(values: list[float], digits: int) -> str:
    """The median, the least and the most. What never came is later than all that did; what is no number is left out."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return "none"
    middle = statistics.median_high(numbers) if math.inf in numbers else statistics.median(numbers)
    return f"{moment(middle, digits)} ({moment(min(numbers), digits)} to {moment(max(numbers), digits)})"


def moment(value: float, digits: int = 1) -> str:
    """A number, or a word for what never came."""
    return "never" if math.isinf(value) else f"{value:.{digits}f}"


def plot(seeds: list[list[Run]], seconds: float, title: str, file: Path) -> None:
    """Best accuracy so far against time: each seed thin, the median of the seeds thick."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    moments = [seconds * part / 500 for part in range(501)]
    shown = []
    for index, first in enumerate(seeds[0]):
        curves = [[runs[index].best_at(at) for at in moments] for runs in seeds]
        for curve in curves:
            axes.step(moments, curve, where="post", color=f"C{index}", alpha=0.3, linewidth=0.8)
        # Before all seeds have a value, their median would jump when another begins.
        middle = [math.nan if any(map(math.isnan, at)) else statistics.median(at) for at in zip(*curves, strict=True)]
        axes.step(moments, middle, where="post", color=f"C{index}", linewidth=2.2, label=first.system)
        shown += [value for at, value in zip(moments, middle, strict=True) if at >= PLOTTED_FROM * seconds]
    values = [value for value in shown if not math.isnan(value)]
    if values:
        margin = 0.05 * (max(values) - min(values)) + 0.005
        axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set(
        xlim=(0, seconds), xlabel="seconds since the command", ylabel="best validation accuracy so far", title=title
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", title=f"median of {len(seeds)} seeds, each of them thin" if len(seeds) > 1 else None)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
