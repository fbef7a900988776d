"""Convolutions train channels last on a CPU, and nobody notices: not what is saved, nor a network that views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from options_helpers import recipe
from torch import Tensor, nn
from training_helpers import CPU, Recorder, fit

from search.data import Data
from search.layout import Layout
from search.objective import Objective
from search.optimizers import Optimizer
from search.reporting import Interrupted

IMAGES = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 2


class Net(nn.Module):
    """`views`: in which mode it views its features, as only the usual layout lets it."""

    def __init__(self, *views: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()
        self.head = nn.Linear(4 * 4 * 4, 2)
        self.views = views
        self.seen: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(self.conv.weight.is_contiguous(memory_format=torch.channels_last))
        features = self.norm(self.conv(images))
        flat = features.view(len(features), -1) if self.training in self.views else features.flatten(1)
        return self.head(self.dropout(flat))


class Plain(Net):
    """Lays its weights as usual, whatever the trainer would like."""

    def forward(self, images: Tensor) -> Tensor:
        self.conv.weight.data = self.conv.weight.data.contiguous()
        return super().forward(images)


def of(net: Net) -> Objective:
    data = Data((IMAGES, CLASSES), (IMAGES, CLASSES))
    loss = nn.CrossEntropyLoss()
    return Objective(model=lambda _trial: net, data=lambda _root: data, loss=loss, metric="loss", epochs=3)


def trained(kind: type[Net], *views: bool) -> tuple[Net, Recorder, dict[str, Any]]:
    torch.manual_seed(1)
    net, recorder = kind(*views), Recorder()
    weights = fit(of(net), recorder).weights
    assert weights is not None
    return net, recorder, weights


def test_the_curve_is_that_of_the_usual_layout_but_for_rounding() -> None:
    net, recorder, _ = trained(Net)
    assert all(net.seen)
    _, plain, _ = trained(Plain)
    for one, other in zip(recorder.curve, plain.curve, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


class Viewing(torch.optim.SGD):
    """A person's own, which views gradients in another shape."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad.view(len(weight), -1)
        return super().step(closure)


def test_an_optimizer_that_is_not_torchs_own_steps_in_the_usual_layout() -> None:
    torch.manual_seed(1)
    net = Net()
    objective, row = of(net), Optimizer("viewing", Viewing, 0.1, "Views.")
    plain = recipe(objective)
    fit(objective, Recorder(), replace(plain, optimizer=row, momentum=None))
    assert not any(net.seen)


def test_one_channel_makes_features_with_the_channels_last() -> None:
    conv = nn.Conv2d(1, 4, 3)
    Layout(conv, CPU, torch.optim.SGD(conv.parameters())).begin()
    assert conv(torch.rand(2, 1, 6, 6)).is_contiguous(memory_format=torch.channels_last)


def test_what_is_kept_lies_as_people_expect() -> None:
    _, _, weights = trained(Net)
    assert all(tensor.is_contiguous() for tensor in weights.values())


@pytest.mark.parametrize("views", [(True,), (False,), (True, False)], ids=["training", "evaluation", "both"])
def test_a_network_that_views_its_features_trains_in_the_usual_layout(views: tuple[bool, ...]) -> None:
    net, recorder, _ = trained(Net, *views)
    assert net.seen[0]
    assert not net.seen[-1]
    _, plain, _ = trained(Plain, *views)
    for one, other in zip(recorder.curve, plain.curve, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("views", [(), (False,)], ids=["channels last", "evaluated in the usual layout"])
def test_it_goes_on_bit_for_bit(views: tuple[bool, ...]) -> None:
    _, whole, _ = trained(Net, *views)
    torch.manual_seed(1)
    first = Recorder(keep=(1,), keep_within=((1, 1),), stop_after=5)
    with pytest.raises(Interrupted):
        fit(of(Net(*views)), first)
    torch.manual_seed(2)
    rest = Recorder(restored=first.within[1, 1])
    fit(of(Net(*views)), rest)
    assert rest.curve == whole.curve[1:]


def test_another_error_of_the_network_is_its_own() -> None:
    class Broken(Net):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        fit(of(Broken()), Recorder())
