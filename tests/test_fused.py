"""A fused step is the same step but for rounding, whatever lies how in memory and whatever has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_optimizers import recipe
from torch import Tensor, nn

from search.optimizers import OPTIMIZERS, Optimizer, build

FUSED = [row for row in OPTIMIZERS.values() if row.fused]
ROWS = pytest.mark.parametrize("row", FUSED, ids=[row.name for row in FUSED])


class Net(nn.Module):
    """A convolution, a dense layer and one that is not used at first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.late = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor, late: bool = False) -> Tensor:
        features = self.conv(images).mean((2, 3))
        outputs: Tensor = self.head(self.late(features) if late else features)
        return outputs


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)


def made(row: Optimizer, fused: bool = True) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    optimizer = build(recipe(row, lr=row.base_lr), net)
    for group in optimizer.param_groups:
        group["fused"] = fused
    return net, optimizer


def steps(net: Net, optimizer: torch.optim.Optimizer, count: int = 4, **given: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.rand(5, 3, 6, 6, generator=draw), **given).square().mean().backward()
        optimizer.step()


def assert_alike(one: Net, other: Net) -> None:
    torch.testing.assert_close(dict(one.named_parameters()), dict(other.named_parameters()), rtol=1e-5, atol=1e-6)


def relaid(net: Net, layout: torch.memory_format) -> None:
    net.conv.weight.data = net.conv.weight.data.to(memory_format=layout)


@ROWS
def test_it_is_the_same_step_but_for_rounding(row: Optimizer) -> None:
    (net, optimizer), (plain, loop) = made(row), made(row, fused=False)
    steps(net, optimizer)
    steps(plain, loop)
    assert is_fused(optimizer)
    assert not is_fused(loop)
    assert_alike(net, plain)


@ROWS
def test_weights_may_be_laid_otherwise_between_two_steps(row: Optimizer) -> None:
    (net, optimizer), (plain, loop) = made(row), made(row, fused=False)
    for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        relaid(net, layout)
        steps(net, optimizer)
        steps(plain, loop)
    assert is_fused(optimizer)
    assert_alike(net, plain)


@ROWS
def test_state_that_lies_otherwise_goes_on(row: Optimizer) -> None:
    (net, optimizer), (plain, loop) = made(row), made(row, fused=False)
    steps(net, optimizer)
    resumed, again = made(row)
    relaid(resumed, torch.channels_last)
    resumed.load_state_dict(net.state_dict())
    again.load_state_dict(optimizer.state_dict())
    steps(resumed, again)
    steps(plain, loop)
    steps(plain, loop)
    assert_alike(resumed, plain)


@ROWS
def test_a_layer_may_join_late(row: Optimizer) -> None:
    (net, optimizer), (plain, loop) = made(row), made(row, fused=False)
    for late in (False, True, False):
        steps(net, optimizer, late=late)
        steps(plain, loop, late=late)
    assert is_fused(optimizer)
    assert_alike(net, plain)


def transposed(weight: Tensor) -> Tensor:
    return weight.mT.contiguous().mT


@pytest.mark.parametrize("change", [transposed, Tensor.to_sparse], ids=["another order", "sparse"])
def test_a_gradient_that_lies_otherwise_ends_it(change: Callable[[Tensor], Tensor]) -> None:
    row = OPTIMIZERS["sgd"]
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = nn.Linear(4, 3, bias=False)
        optimizer = build(recipe(row, weight_decay=0.0), net)
        for group in optimizer.param_groups:
            group["fused"] = fused
        net.weight.grad = change(torch.arange(12.0).view(3, 4))
        optimizer.step()
        assert not is_fused(optimizer)
        found.append(net.weight.detach())
    torch.testing.assert_close(*found)


def test_a_checkpoint_from_before_goes_on_as_it_began() -> None:
    net, optimizer = made(OPTIMIZERS["adam"])
    state = made(OPTIMIZERS["adam"])[1].state_dict()
    for group in state["param_groups"]:
        group["fused"] = None
    optimizer.load_state_dict(state)
    steps(net, optimizer)
    assert not is_fused(optimizer)


def test_weights_that_are_not_there_yet_are_not_fused() -> None:
    assert not is_fused(build(recipe(OPTIMIZERS["adam"]), nn.LazyLinear(2)))


def test_a_persons_own_row_that_asks_for_it_is_looked_after() -> None:
    own = Optimizer("own", torch.optim.Adam, 0.001, "Adam.", OPTIMIZERS["adam"].momentum, fixed={"fused": True})
    (net, optimizer), (plain, loop) = made(own), made(OPTIMIZERS["adam"], fused=False)
    for layout in (torch.contiguous_format, torch.channels_last):
        relaid(net, layout)
        steps(net, optimizer)
        steps(plain, loop)
    assert_alike(net, plain)
