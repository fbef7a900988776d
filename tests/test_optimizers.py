"""The table of optimizers: what was sampled reaches torch, and only weights decay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from search.knobs import floating
from search.optimizers import OPTIMIZERS, Momentum, Optimizer, build, resolve, resolve_all, set_rate
from search.schedules import SCHEDULES
from search.space import Recipe

pytestmark = pytest.mark.filterwarnings("error")

ROWS = pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)
DECAY = 0.0123


class Net(nn.Module):
    """One of everything: convolution, every kind of norm, attention with 3-d biases, recurrence, a bare
    scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.batch_norm = nn.BatchNorm2d(4)
        self.group_norm = nn.GroupNorm(2, 4)
        self.layer_norm = nn.LayerNorm((4, 2))
        self.rms_norm = nn.RMSNorm((3, 2))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.recurrent = nn.GRU(4, 4)
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))


DECAYED = {
    "conv.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "recurrent.weight_ih_l0",
    "recurrent.weight_hh_l0",
    "embedding.weight",
    "linear.weight",
}


def recipe(row: Optimizer, **changes: Any) -> Recipe:
    momentum = 0.83 if row.momentum is Momentum.MOMENTUM else None
    betas = (0.81, 0.97) if row.momentum is Momentum.BETAS else None
    plain = Recipe(row, 0.02, DECAY, 8, SCHEDULES["constant"], momentum, betas)
    return replace(plain, **changes)


def names_by_decay(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
    return found


def test_the_nine_optimizers_are_there() -> None:
    assert " ".join(OPTIMIZERS) == "sgd momentum nesterov adagrad rmsprop adam adamw nadam radam"


@ROWS
def test_every_row_has_a_text_and_a_base_rate(row: Optimizer) -> None:
    assert row.text.endswith(".")
    usual = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01, "adagrad": 0.01}
    assert row.base_lr == usual.get(row.name, 0.001)


@ROWS
def test_what_was_sampled_reaches_every_param_group(row: Optimizer) -> None:
    for group in build(recipe(row), Net()).param_groups:
        assert group["lr"] == 0.02
        if row.momentum is Momentum.BETAS:
            assert group["betas"] == (0.81, 0.97)
        elif row.momentum is Momentum.MOMENTUM:
            assert group["momentum"] == 0.83
        else:
            assert group.get("momentum", 0) == 0
        assert group.get("nesterov", False) is (row.name == "nesterov")


@ROWS
def test_only_weights_get_the_sampled_decay(row: Optimizer) -> None:
    net = Net()
    everything = {name for name, _ in net.named_parameters()}
    assert names_by_decay(build(recipe(row), net), net) == {DECAY: DECAYED, 0.0: everything - DECAYED}


@ROWS
def test_without_a_gradient_weights_shrink_and_biases_and_norms_stay(row: Optimizer) -> None:
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0).grad = torch.zeros_like(parameter)
    build(recipe(row), net).step()
    moved = {name for name, parameter in net.named_parameters() if (parameter < 1).all()}
    stayed = {name for name, parameter in net.named_parameters() if (parameter == 1).all()}
    assert moved == DECAYED
    assert moved | stayed == {name for name, _ in net.named_parameters()}


def test_decoupled_decay_is_the_rate_times_the_coefficient_and_coupled_is_not() -> None:
    for name, left in (("adamw", 1 - 0.02 * DECAY), ("sgd", 1 - 0.02 * DECAY), ("adam", 1 - 0.02)):
        net = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            net.weight.fill_(1.0).grad = torch.zeros_like(net.weight)
        build(recipe(OPTIMIZERS[name]), net).step()
        assert net.weight.detach() == pytest.approx(torch.full((3, 3), left), rel=1e-5), name
    assert [row.name for row in OPTIMIZERS.values() if row.decoupled] == ["adamw"]


@ROWS
def test_it_trains(row: Optimizer) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    inputs = torch.randn(32, 4)
    targets = inputs.sum(1, keepdim=True)
    optimizer = build(recipe(row, lr=row.base_lr), net)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (net(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@ROWS
def test_a_tasks_own_groups_keep_their_relative_rate(row: Optimizer) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    groups: list[dict[str, Any]] = [
        {"params": net[0].parameters(), "lr_scale": 0.1},
        {"params": list(net[1].parameters())},
    ]
    optimizer = build(recipe(row), net, groups)
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    scaled = pytest.approx(0.002)
    assert found == [(scaled, DECAY, 1), (scaled, 0.0, 1), (0.02, DECAY, 1), (0.02, 0.0, 1)]
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.5, 0.5])


def test_a_relative_rate_survives_a_checkpoint() -> None:
    net = nn.Linear(4, 3)
    groups = [{"params": list(net.parameters()), "lr_scale": 0.25}]
    saved = build(recipe(OPTIMIZERS["adam"]), net, groups).state_dict()
    restored = build(recipe(OPTIMIZERS["adam"]), net, groups)
    restored.load_state_dict(saved)
    set_rate(restored, 1.0)
    assert [group["lr"] for group in restored.param_groups] == [0.25, 0.25]


def test_an_option_of_a_groups_own_wins_but_biases_never_decay() -> None:
    net = nn.Linear(4, 3)
    groups = [{"params": net.parameters(), "weight_decay": 0.5, "momentum": 0.1}]
    decayed, others = build(recipe(OPTIMIZERS["momentum"]), net, groups).param_groups
    assert (decayed["weight_decay"], decayed["momentum"]) == (0.5, 0.1)
    assert (others["weight_decay"], others["momentum"]) == (0.0, 0.1)


def test_a_tasks_groups_are_left_as_they_were() -> None:
    net = nn.Linear(4, 3)
    groups = [{"params": list(net.parameters()), "lr_scale": 0.5}]
    build(recipe(OPTIMIZERS["sgd"]), net, groups)
    assert list(groups[0]) == ["params", "lr_scale"]
    assert len(groups[0]["params"]) == 2  # type: ignore[arg-type]


@ROWS
def test_frozen_parameters_are_left_out(row: Optimizer) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    for groups in (None, [{"params": net.parameters()}]):
        optimizer = build(recipe(row), net, groups)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert {id(p) for p in trained} == {id(p) for p in net[1].parameters()}


def test_a_shared_weight_is_trained_once() -> None:
    net = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    assert [len(group["params"]) for group in build(recipe(OPTIMIZERS["sgd"]), net).param_groups] == [1]


def test_groups_may_hold_one_tensor_or_named_ones() -> None:
    net = nn.Linear(4, 3)
    for params in (net.weight, list(net.named_parameters())):
        optimizer = build(recipe(OPTIMIZERS["sgd"]), net, [{"params": params}])
        assert optimizer.param_groups[0]["params"][0] is net.weight


def test_a_group_that_cannot_be_right_is_refused_in_one_line() -> None:
    net = nn.Linear(4, 3)
    sgd = recipe(OPTIMIZERS["sgd"])
    with pytest.raises(ValueError, match="give 'lr_scale' instead of 'lr'"):
        build(sgd, net, [{"params": net.parameters(), "lr": 0.1}])
    with pytest.raises(ValueError, match="no 'params', only lr_scale"):
        build(sgd, net, [{"lr_scale": 0.1}])
    with pytest.raises(ValueError, match="'params' is a set"):
        build(sgd, net, [{"params": set(net.parameters())}])
    with pytest.raises(ValueError, match="nothing to train"):
        build(sgd, net, [])
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build(sgd, net)


def test_a_row_of_ones_own_brings_its_arguments_and_knobs() -> None:
    alpha = floating("centered_alpha", 0.9, 0.999, 0.99, "decay of the mean square")
    row = Optimizer("centered", torch.optim.RMSprop, 0.003, "Mine.", fixed={"centered": True}, extra=(alpha,))
    (group,) = build(recipe(row, extra={"centered_alpha": 0.95}), nn.Linear(2, 2, bias=False)).param_groups
    assert (group["centered"], group["alpha"], group["weight_decay"]) == (True, 0.95, DECAY)
    assert row.knobs == (alpha,)


def test_a_row_that_cannot_be_right_is_refused() -> None:
    with pytest.raises(ValueError, match="base_lr must be positive, but got 0"):
        Optimizer("mine", torch.optim.SGD, 0, "Mine.")
    with pytest.raises(ValueError, match="'alpha' must be named 'mine_"):
        Optimizer("mine", torch.optim.SGD, 1, "Mine.", extra=(floating("alpha", 0, 1, 0, ""),))


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OPTIMIZERS["mine"] = OPTIMIZERS["sgd"]  # type: ignore[index]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer 'adm': known are sgd, .*adam, .*radam"):
        resolve("adm")
    with pytest.raises(ValueError, match="'adam' is listed twice"):
        resolve_all(["adam", "adam"])
    with pytest.raises(ValueError, match="no optimizer to choose from"):
        resolve_all(())
