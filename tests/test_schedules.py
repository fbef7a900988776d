"""The table of schedules against torch's own classes, driven by hand on real optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from search import optimizers
from search.knobs import floating
from search.optimizers import OPTIMIZERS
from search.schedules import SCHEDULES, Schedule, factors, resolve, resolve_all
from search.space import Recipe

pytestmark = pytest.mark.filterwarnings("error")

RATE = 0.037
MOMENTUM = 0.87
ByHand = Callable[[torch.optim.Optimizer, int], lr_scheduler.LRScheduler]

# What a person would write with torch for a run of n steps, beside the shape that asks for the same.
BY_HAND: dict[str, list[tuple[dict[str, float], ByHand]]] = {
    "constant": [({}, lambda o, n: lr_scheduler.LambdaLR(o, lambda step: 1.0))],
    "step": [
        ({}, lambda o, n: lr_scheduler.StepLR(o, -(-n // 3), gamma=0.1)),
        ({"step_size": 0.25, "step_gamma": 0.5}, lambda o, n: lr_scheduler.StepLR(o, -(-n // 4), gamma=0.5)),
    ],
    "multistep": [
        ({}, lambda o, n: lr_scheduler.MultiStepLR(o, [nearest(n * 0.5), nearest(n * 0.75)], gamma=0.1)),
        (
            {"multistep_first": 0.3, "multistep_second": 0.2, "multistep_gamma": 0.2},
            lambda o, n: lr_scheduler.MultiStepLR(o, [nearest(n * 0.3), nearest(n * 0.44)], gamma=0.2),
        ),
    ],
    "exponential": [
        ({}, lambda o, n: lr_scheduler.ExponentialLR(o, math.exp(math.log(0.01) / n))),
        ({"exponential_final": 0.2}, lambda o, n: lr_scheduler.ExponentialLR(o, math.exp(math.log(0.2) / n))),
    ],
    "linear": [
        ({}, lambda o, n: lr_scheduler.LinearLR(o, start_factor=1, end_factor=0, total_iters=n)),
        ({"linear_final": 0.1}, lambda o, n: lr_scheduler.LinearLR(o, 1, end_factor=0.1, total_iters=n)),
    ],
    "cyclic": [
        ({}, lambda o, n: cyclic(o, lowest=RATE / 4, up=nearest(n / 6))),
        ({"cyclic_cycles": 5, "cyclic_base": 0.03}, lambda o, n: cyclic(o, RATE * 0.03, up=nearest(n / 10))),
    ],
    "onecycle": [
        ({}, lambda o, n: lr_scheduler.OneCycleLR(o, RATE, n, pct_start=0.3, cycle_momentum=False)),
        (
            {"onecycle_pct_start": 0.45, "onecycle_div": 8},
            lambda o, n: lr_scheduler.OneCycleLR(o, RATE, n, pct_start=0.45, div_factor=8, cycle_momentum=False),
        ),
    ],
    "cosine": [
        ({}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, n)),
        ({"cosine_final": 0.05}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, n, eta_min=RATE * 0.05)),
    ],
    "cosine_restarts": [
        ({}, lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, -(-n // 7), T_mult=2)),
        (
            {"cosine_restarts_cycles": 4, "cosine_restarts_growth": 1},
            lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, -(-n // 4)),
        ),
    ],
}
CASES = [(name, shape, make) for name, cases in BY_HAND.items() for shape, make in cases]
IDS = [f"{name}-{'-'.join(map(str, shape.values())) or 'default'}" for name, shape, _ in CASES]


def nearest(steps: float) -> int:
    return max(1, round(steps))


def cyclic(optimizer: torch.optim.Optimizer, lowest: float, up: int) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CyclicLR(optimizer, lowest, RATE, step_size_up=up, cycle_momentum=False)


def rates_by_hand(make: ByHand, steps: int) -> list[float]:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    scheduler = make(optimizer, steps)
    rates = []
    for _ in range(steps):
        net(torch.ones(1, 2)).sum().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def shapes(row: Schedule) -> list[dict[str, Any]]:
    """The default shape and the two corners of a row's ranges."""
    low = {knob.name: knob.as_dict()["low"] for knob in row.knobs}
    high = {knob.name: knob.as_dict()["high"] for knob in row.knobs}
    return [row.defaults, low, high]


def test_the_nine_schedules_are_there_and_each_is_compared_with_torch() -> None:
    known = "constant step multistep exponential linear cyclic onecycle cosine cosine_restarts"
    assert list(SCHEDULES) == known.split()
    assert set(BY_HAND) == set(SCHEDULES)


@pytest.mark.parametrize("steps", [2, 3, 7, 20, 101, 400])
@pytest.mark.parametrize(("name", "shape", "make"), CASES, ids=IDS)
def test_a_whole_runs_rates_are_those_of_torchs_own_class(
    name: str, shape: Mapping[str, float], make: ByHand, steps: int
) -> None:
    table = factors(name, shape, steps)
    assert table.shape == (steps,)
    assert table.dtype == torch.float64
    assert (RATE * table).tolist() == pytest.approx(rates_by_hand(make, steps), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("row", SCHEDULES.values(), ids=SCHEDULES)
def test_any_schedule_works_for_any_length_of_run(row: Schedule) -> None:
    for shape in shapes(row):
        for steps in range(1, 60):
            table = factors(row, shape, steps, warmup=0.1)
            assert table.shape == (steps,)
            assert table.min() > 0, (shape, steps)
            assert table.max() <= 1 + 1e-12, (shape, steps)


@pytest.mark.parametrize("row", SCHEDULES.values(), ids=SCHEDULES)
def test_a_run_of_one_step_takes_the_full_rate(row: Schedule) -> None:
    assert factors(row, {}, 1, warmup=1.0).tolist() == [1.0]


@pytest.mark.parametrize("row", SCHEDULES.values(), ids=SCHEDULES)
def test_warm_up_multiplies_any_schedule_linearly(row: Schedule) -> None:
    plain, warmed = factors(row, {}, 200), factors(row, {}, 200, warmup=0.05)
    assert (warmed / plain)[:10].tolist() == pytest.approx([k / 10 for k in range(1, 11)])
    assert torch.equal(warmed[10:], plain[10:])


@pytest.mark.parametrize(("warmup", "length"), [(0.29, 29), (0.0, 0), (0.009, 0), (0.019, 1), (1.0, 100)])
def test_a_warm_up_is_that_fraction_of_the_run_rounded_down(warmup: float, length: int) -> None:
    table = factors("constant", {}, 100, warmup)
    assert int((table < 1).sum()) == max(0, length - 1)


@pytest.mark.parametrize("steps", [23, 100, 400, 999])
@pytest.mark.parametrize("rise", [0.1, 0.101, 0.2345, 0.3, 0.5])
def test_onecycle_with_warm_up_still_reaches_its_maximum(rise: float, steps: int) -> None:
    plain = factors("onecycle", {"onecycle_pct_start": rise}, steps)
    assert plain.max() > (0.9 if steps < 100 else 0.99)
    for warmup in (0.01, 0.05, 0.0999, rise - 1e-6):
        warmed = factors("onecycle", {"onecycle_pct_start": rise}, steps, warmup)
        assert warmed.max() == plain.max(), warmup


def test_onecycle_reaches_exactly_the_recipes_rate_when_its_rise_is_whole_steps() -> None:
    table = factors("onecycle", {"onecycle_pct_start": 0.3}, 100, warmup=0.1)
    assert table.argmax() == 29
    assert table[29] == pytest.approx(1.0, abs=1e-12)


def test_onecycle_works_when_its_rise_is_exactly_one_step() -> None:
    table = factors("onecycle", {"onecycle_pct_start": 0.1}, 10)
    assert table[0] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(table.tolist()))


@pytest.mark.parametrize("schedule", ["onecycle", "cyclic"])
@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam", "adamw", "nadam", "radam"])
def test_a_sampled_momentum_survives_a_whole_run(optimizer: str, schedule: str) -> None:
    for step, group in enumerate(groups_of_a_run(optimizer, schedule, steps=40)):
        remembered = group.get("momentum", group.get("betas"))
        assert remembered == (MOMENTUM if "momentum" in group else (MOMENTUM, 0.99)), step


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adagrad_takes_every_schedule(schedule: str) -> None:
    rates = [group["lr"] for group in groups_of_a_run("adagrad", schedule, steps=40)]
    assert rates == pytest.approx((RATE * factors(schedule, {}, 40)).tolist())


def groups_of_a_run(optimizer: str, schedule: str, steps: int) -> list[dict[str, Any]]:
    """The first param group at each step of a real training run, as the trainer does it."""
    row = OPTIMIZERS[optimizer]
    momentum = MOMENTUM if row.momentum == "momentum" else None
    betas = (MOMENTUM, 0.99) if row.momentum == "betas" else None
    recipe = Recipe(row, RATE, 1e-4, 8, SCHEDULES[schedule], momentum, betas)
    net = nn.Linear(3, 1)
    real = optimizers.build(recipe, net)
    table = recipe.factors(steps).tolist()
    seen = []
    for step in range(steps):
        optimizers.set_rate(real, recipe.lr * table[step])
        real.zero_grad()
        net(torch.ones(2, 3)).square().mean().backward()
        real.step()
        seen.append({key: value for key, value in real.param_groups[0].items() if key != "params"})
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    return seen


@pytest.mark.parametrize("steps", [8, 30, 31, 64, 100, 1000])
def test_a_run_never_ends_on_a_fresh_restart(steps: int) -> None:
    for growth in (1, 2):
        for cycles in (2, 3, 4, 5):
            shape = {"cosine_restarts_cycles": cycles, "cosine_restarts_growth": growth}
            table = factors("cosine_restarts", shape, steps)
            restarts = sum(later > earlier for earlier, later in pairwise(table.tolist()))
            assert restarts < cycles, shape


def test_milestones_that_coincide_drop_twice_at_once() -> None:
    shape = {"multistep_first": 0.6, "multistep_second": 0.2, "multistep_gamma": 0.1}
    assert factors("multistep", shape, 3).tolist() == pytest.approx([1.0, 1.0, 0.01])


@pytest.mark.parametrize("steps", [3, 10, 99, 100, 1000])
def test_a_step_schedule_of_thirds_drops_twice(steps: int) -> None:
    assert factors("step", {}, steps)[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("row", SCHEDULES.values(), ids=SCHEDULES)
def test_every_row_has_a_text_and_knobs_of_its_own_name(row: Schedule) -> None:
    assert row.text.endswith(".")
    for knob in row.knobs:
        assert knob.name.startswith(f"{row.name}_")
        assert knob.text
        assert knob.default is not None


def test_a_row_of_ones_own_brings_its_knob_and_builder() -> None:
    knob = floating("halving_at", 0.1, 0.9, 0.5, "moment of the only drop")

    def build(optimizer: torch.optim.Optimizer, shape: Mapping[str, float], steps: int) -> Any:
        return lr_scheduler.StepLR(optimizer, int(shape["halving_at"] * steps), gamma=0.5)

    row = Schedule("halving", "Halves once.", build, (knob,))
    assert factors(row, {}, 4).tolist() == [1.0, 1.0, 0.5, 0.5]
    assert factors(row, {"halving_at": 0.75}, 4).tolist() == [1.0, 1.0, 1.0, 0.5]


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        SCHEDULES["mine"] = SCHEDULES["cosine"]  # type: ignore[index]


def test_bad_input_is_named_with_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin': known are constant, step, .*cosine"):
        resolve("cosin")
    with pytest.raises(ValueError, match="unknown schedule 'cosin'"):
        factors("cosin", {}, 10)
    with pytest.raises(ValueError, match="'cosine' is listed twice"):
        resolve_all(["cosine", SCHEDULES["cosine"]])
    with pytest.raises(ValueError, match="no schedule to choose from"):
        resolve_all([])
    with pytest.raises(ValueError, match="'cosine' has no shape step_size: known are cosine_final"):
        factors("cosine", {"step_size": 0.5}, 10)


@pytest.mark.parametrize("steps", [0, -3])
def test_a_run_of_no_steps_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be at least 1, but got {steps}"):
        factors("cosine", {}, steps)


@pytest.mark.parametrize("warmup", [-0.1, 1.1, math.nan])
def test_a_warm_up_outside_the_run_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 1, but got {warmup}"):
        factors("cosine", {}, 10, warmup)
