"""The table of learning-rate schedules, and how one becomes a factor for each optimizer step of a run.

Read by `space.py` (what can be sampled) and by the trainer, which multiplies the recipe's rate by
`factors(...)[step]`; resuming therefore needs only the step. Adding a schedule is adding one row: its knobs,
its torch class, its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from search.errors import ObjectiveError
from search.knobs import Knob, floating, integer, rows_by_name

Shape = Mapping[str, float]
Builder = Callable[[torch.optim.Optimizer, Shape, int], LRScheduler]


@dataclass(frozen=True)
class Schedule:
    """A row. `build(optimizer, shape, steps)` makes torch's scheduler for an optimizer whose rate is 1.

    `shape` holds the values of `knobs` by name, each a fraction of the run, a factor or a count, so that it
    means the same for any length of run. The highest factor is 1: the recipe's rate is the highest rate of
    the run.
    """

    name: str
    text: str
    build: Builder
    knobs: tuple[Knob, ...] = ()

    @property
    def defaults(self) -> dict[str, Any]:
        """The shape that practice starts from."""
        return {knob.name: knob.default for knob in self.knobs}


def part(fraction: float, steps: int) -> int:
    """A fraction of the run in optimizer steps: at least one."""
    return max(1, round(fraction * steps))


def _constant(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _step(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    # Rounded up (0.1 * 30 is a hair over 3): thirds of a run never drop once more on its last step.
    interval = max(1, math.ceil(shape["step_size"] * steps - 1e-9))
    return lr_scheduler.StepLR(optimizer, interval, shape["step_gamma"])


def _multistep(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    first = shape["multistep_first"]
    second = first + (1 - first) * shape["multistep_second"]
    milestones = [part(first, steps), part(second, steps)]
    return lr_scheduler.MultiStepLR(optimizer, milestones, shape["multistep_gamma"])


def _exponential(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    return lr_scheduler.ExponentialLR(optimizer, shape["exponential_final"] ** (1 / steps))


def _linear(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    return lr_scheduler.LinearLR(optimizer, 1.0, shape["linear_final"], total_iters=steps)


def _cyclic(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    up = part(0.5 / shape["cyclic_cycles"], steps)
    return lr_scheduler.CyclicLR(optimizer, shape["cyclic_base"], 1.0, step_size_up=up, cycle_momentum=False)


def _onecycle(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    rise = float(shape["onecycle_pct_start"])
    if rise * steps == 1.0:
        # torch would divide by the length of the rise, rise * steps - 1: start a hair after the maximum
        # instead.
        rise *= 1 - 1e-9
    return lr_scheduler.OneCycleLR(
        optimizer,
        1.0,
        total_steps=steps,
        pct_start=rise,
        div_factor=shape["onecycle_div"],
        cycle_momentum=False,
    )


def _cosine(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=shape["cosine_final"])


def _cosine_restarts(optimizer: torch.optim.Optimizer, shape: Shape, steps: int) -> LRScheduler:
    growth = int(shape["cosine_restarts_growth"])
    firsts = sum(growth**cycle for cycle in range(int(shape["cosine_restarts_cycles"])))
    # Rounded up, so that a run never ends on the first high steps of one cycle too many.
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=math.ceil(steps / firsts), T_mult=growth)


_ROWS = (
    Schedule("constant", "The same rate all the way.", _constant),
    # He et al. 2016 (ResNet on ImageNet) divide by 10 every 30 of 90 epochs.
    Schedule(
        "step",
        "Multiplies the rate by a factor at regular intervals.",
        _step,
        (
            floating("step_size", 0.1, 0.5, 1 / 3, "interval, as a fraction of the run"),
            floating("step_gamma", 0.05, 0.8, 0.1, "factor at each interval", log=True),
        ),
    ),
    # He et al. 2016 (ResNet on CIFAR-10): divided by 10 at 32k and 48k of 64k steps. Wide ResNets use a
    # factor of 0.2.
    Schedule(
        "multistep",
        "Multiplies the rate by a factor at two moments of the run.",
        _multistep,
        (
            floating("multistep_first", 0.3, 0.7, 0.5, "first moment, as a fraction of the run"),
            floating(
                "multistep_second",
                0.2,
                0.8,
                0.5,
                "second moment, as a fraction of what is left after the first",
            ),
            floating("multistep_gamma", 0.05, 0.5, 0.1, "factor at each moment", log=True),
        ),
    ),
    # Two to three decades over the run, as a step schedule with two or three drops by 10 has.
    Schedule(
        "exponential",
        "Multiplies the rate by the same factor at every step.",
        _exponential,
        (
            floating(
                "exponential_final",
                0.001,
                0.3,
                0.01,
                "share of the rate left at the end of the run",
                log=True,
            ),
        ),
    ),
    # Devlin et al. 2019 (BERT): linearly to zero.
    Schedule(
        "linear",
        "Falls on a straight line to the end of the run.",
        _linear,
        (floating("linear_final", 0.0, 0.1, 0.0, "share of the rate left at the end of the run"),),
    ),
    # Smith 2017 (Cyclical Learning Rates): lowest rate a third or a quarter of the highest, at least three
    # cycles a run.
    Schedule(
        "cyclic",
        "Rises and falls on straight lines, several times; ends low.",
        _cyclic,
        (
            integer("cyclic_cycles", 1, 8, 3, "rises and falls in the run"),
            floating("cyclic_base", 0.02, 0.5, 0.25, "lowest rate, as a share of the highest", log=True),
        ),
    ),
    # Smith & Topin 2018 (Super-Convergence); 0.3 and 25 are the defaults of torch, 0.25 and 25 those of
    # fastai.
    Schedule(
        "onecycle",
        "One rise to the full rate and one long fall to almost nothing.",
        _onecycle,
        (
            floating("onecycle_pct_start", 0.1, 0.5, 0.3, "length of the rise, as a fraction of the run"),
            floating("onecycle_div", 5.0, 100.0, 25.0, "full rate divided by the first rate", log=True),
        ),
    ),
    # Loshchilov & Hutter 2017 (SGDR) without restarts.
    Schedule(
        "cosine",
        "Falls on half a cosine to the end of the run.",
        _cosine,
        (floating("cosine_final", 0.0, 0.1, 0.0, "share of the rate left at the end of the run"),),
    ),
    # Loshchilov & Hutter 2017 (SGDR): equal cycles, or each twice as long as the one before (10, 20, 40, ...
    # epochs).
    Schedule(
        "cosine_restarts",
        "Falls on half a cosine to zero, several times.",
        _cosine_restarts,
        (
            integer("cosine_restarts_cycles", 2, 5, 3, "falls in the run"),
            integer("cosine_restarts_growth", 1, 2, 2, "length of a fall, in lengths of the one before"),
        ),
    ),
)
SCHEDULES: Mapping[str, Schedule] = MappingProxyType({row.name: row for row in _ROWS})


def resolve(schedule: str | Schedule) -> Schedule:
    """The row of that name, or the row itself. Raises ObjectiveError naming the known ones."""
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ObjectiveError(f"unknown schedule {schedule!r}: known are {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule]


def resolve_all(schedules: Iterable[str | Schedule]) -> dict[str, Schedule]:
    """Rows by name, in the order given. Raises ObjectiveError when there are none, or two of one name."""
    return rows_by_name("schedule", map(resolve, schedules), SCHEDULES)


class _RateOfOne(torch.optim.Optimizer):
    """Something for a scheduler to act on: one group with rate 1, and steps that do nothing."""

    def __init__(self) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(1))], {"lr": 1.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: torch warns when a scheduler moves before its optimizer has."""


def factors(schedule: str | Schedule, shape: Shape, steps: int, warmup: float = 0.0) -> torch.Tensor:
    """The factor of the recipe's rate at each optimizer step of a run: float64 of shape (steps,), on the CPU.

    torch's own scheduler class is driven once over the run. It never sees the real optimizer, so it cannot
    overwrite a sampled momentum, and any optimizer can take any schedule. `shape` is what the schedule's
    knobs sampled (a missing one takes its default). The first `warmup * steps` steps (rounded down) are
    multiplied by (step + 1) / that number (Goyal et al. 2017). A run of one step has no shape: its factor is
    1.

    Raises ValueError for an unknown schedule or shape, steps below 1, or a warm-up outside 0..1.
    """
    row = resolve(schedule)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but got {steps}")
    if not 0.0 <= warmup <= 1.0:
        raise ValueError(f"warmup is a fraction of the run, from 0 to 1, but got {warmup}")
    unknown = sorted(set(shape) - set(row.defaults))
    if unknown:
        known = ", ".join(row.defaults) or "none"
        raise ValueError(f"schedule {row.name!r} has no shape {', '.join(unknown)}: known are {known}")
    if steps == 1:
        return torch.ones(1, dtype=torch.float64)
    return _drive(row, {**row.defaults, **shape}, steps) * _warm_up(steps, warmup)


def _drive(row: Schedule, shape: Shape, steps: int) -> torch.Tensor:
    optimizer = _RateOfOne()
    scheduler = row.build(optimizer, shape, steps)
    group = optimizer.param_groups[0]
    optimizer.step()
    table = [float(group["lr"])]
    for _ in range(steps - 1):
        scheduler.step()
        table.append(float(group["lr"]))
    return torch.tensor(table, dtype=torch.float64)


def _warm_up(steps: int, warmup: float) -> torch.Tensor:
    # Rounded down: a warm-up shorter than OneCycle's rise is over when that reaches its maximum. The 1e-9
    # keeps 0.29 * 100 from being 28.
    length = math.floor(warmup * steps + 1e-9)
    ramp = torch.arange(1, steps + 1, dtype=torch.float64) / max(1, length)
    return ramp.clamp(max=1.0)
