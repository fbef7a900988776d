"""Options of the optimizer step, each on real training: what it says it changes, it changes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from options_helpers import digits, goes_on_the_same, network, on_digits, recipe, watched, with_norm
from torch import Tensor, nn
from training_helpers import Recorder, fit

from search.objective import Objective, Task
from search.reporting import Result
from search.steps import Stepper
from storage.outcomes import Outcome


def norms(objective: Objective) -> list[float]:
    """The norm of the whole gradient at each step of a training."""
    found: list[float] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        found.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

    fit(objective, Recorder(), watched(objective, look))
    return found


def test_a_clipped_gradient_is_no_longer_than_asked() -> None:
    free, clipped = norms(on_digits()), norms(on_digits(clip_norm=0.3))
    assert max(free) > 0.6
    assert max(clipped) == pytest.approx(0.3, rel=1e-4)
    assert len(free) == len(clipped) == 3 * 8


def test_a_gradient_shorter_than_the_clip_stays_as_it_is() -> None:
    free, clipped = Recorder(), Recorder()
    fit(on_digits(), free)
    fit(on_digits(clip_norm=1000.0), clipped)
    assert free.curve == clipped.curve


def weights_of(objective: Objective, **changes: Any) -> tuple[Result, Recorder]:
    recorder = Recorder(keep=(3,))
    result = fit(objective, recorder, recipe(objective, **changes))
    return result, recorder


@pytest.mark.parametrize(("batch", "accumulate"), [(16, 2), (8, 4), (10, 5)])
def test_accumulated_batches_make_the_step_of_one_large_batch(batch: int, accumulate: int) -> None:
    """230 samples at batch 16 are 15 batches, the last of six: the last of 8 steps is of one batch only."""
    together = batch * accumulate
    large, one = weights_of(on_digits(batch_sizes=(together,)))
    parts, many = weights_of(on_digits(batch_sizes=(batch,), accumulate=accumulate))
    alone, _ = weights_of(on_digits(batch_sizes=(batch,)))
    assert large.weights
    assert parts.weights
    assert alone.weights
    for name, tensor in large.weights.items():
        torch.testing.assert_close(parts.weights[name], tensor, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(alone.weights["0.weight"], large.weights["0.weight"], rtol=1e-2)
    assert one.states[3]["step"] == many.states[3]["step"] == 3 * math.ceil(230 / together)


def test_a_schedule_counts_optimizer_steps_when_batches_are_accumulated() -> None:
    objective = on_digits(batch_sizes=(16,), accumulate=2, schedules=("linear",))
    recorder, plan = Recorder(), recipe(objective)
    fit(objective, recorder, plan)
    rates = (plan.lr * plan.factors(24)).tolist()
    assert [epoch.metrics["lr"] for epoch in recorder.results] == rates[7::8]


def test_accumulation_weighs_batches_by_what_their_losses_weigh() -> None:
    """Losses on some of the targets only, as of a sequence with padding: 3 in one batch, 1 in the other."""
    net = nn.Linear(1, 1, bias=False)
    inputs = torch.tensor([[1.0], [2.0], [3.0], [10.0]])

    def step(net: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        return net(batch).sum(), torch.tensor(float(len(batch)))

    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    stepper = Stepper(Task(net, step), optimizer, on_digits(accumulate=2), torch.device("cpu"))
    before = net.weight.detach().clone()
    for batch in (inputs[:3], inputs[3:]):
        stepper.add(*stepper.loss(batch))
    assert stepper.full
    stepper.step()
    assert float(before - net.weight.detach()) == pytest.approx(float(inputs.mean()))


class Seen(nn.Sequential):
    """Notes the types that it computes in: (training, what comes out)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.types: set[tuple[bool, torch.dtype]] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        self.types.add((self.training, outputs.dtype))
        return outputs


class Judge:
    """A metric that notes the type of the outputs it is given."""

    higher_is_better = True
    types: set[torch.dtype] = set()  # noqa: RUF012  one for all copies

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.types.add(outputs.dtype)

    def compute(self) -> float:
        return 0.5

    def reset(self) -> None: ...


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precision_is_what_the_network_computes_in_and_not_what_its_weights_are(
    precision: Any, dtype: torch.dtype
) -> None:
    net = Seen(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    gradients: set[torch.dtype] = set()
    Judge.types.clear()
    objective = on_digits(model=lambda trial: net, precision=precision, metric=("accuracy", Judge()), epochs=8)

    def look(optimizer: torch.optim.Optimizer) -> None:
        gradients.update(p.grad.dtype for group in optimizer.param_groups for p in group["params"])

    result = fit(objective, Recorder(), watched(objective, look))
    assert net.types == {(True, dtype), (False, dtype)}
    assert result.weights
    assert {tensor.dtype for tensor in result.weights.values()} == gradients == Judge.types == {torch.float32}
    assert result.value is not None
    assert result.value > 0.6


def test_precisions_give_curves_that_are_near_but_not_the_same() -> None:
    curves = {}
    for precision in ("float32", "bf16", "fp16"):
        recorder = Recorder()
        fit(on_digits(precision=precision), recorder)
        curves[precision] = [epoch.metrics["loss"] for epoch in recorder.results]
    assert curves["float32"] != curves["bf16"] != curves["fp16"] != curves["float32"]
    for precision in ("bf16", "fp16"):
        assert curves[precision] == pytest.approx(curves["float32"], rel=0.05)


def test_a_loss_that_autocast_would_refuse_or_round_is_computed_in_float32() -> None:
    types = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        types.append((outputs.dtype, torch.is_autocast_enabled("cpu")))
        return nn.functional.cross_entropy(outputs, targets)

    fit(on_digits(loss=loss, precision="bf16", epochs=1), Recorder())
    assert set(types) == {(torch.float32, False)}


def overflowing(times: float, **arguments: Any) -> Objective:
    """An objective whose gradients are so many times larger than usual."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return times * nn.functional.cross_entropy(outputs, targets)

    return on_digits(loss=loss, precision="fp16", **arguments)


def test_a_float16_step_with_an_overflow_is_left_out_and_is_no_divergence() -> None:
    objective, recorder = overflowing(3000.0, epochs=2), Recorder(keep=(1, 2))
    weights: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        weights.append(optimizer.param_groups[0]["params"][0].detach().clone())

    result = fit(objective, recorder, watched(objective, look, lr=1e-4))
    assert result.outcome is Outcome.COMPLETE
    first, second = (epoch.metrics["loss"] for epoch in recorder.results)
    assert second < first
    halved = sum(torch.equal(before, after) for before, after in pairwise(weights))  # but for the last step
    assert 1 <= halved < 2 * 8
    assert recorder.states[2]["step"] == len(weights) == 2 * 8  # the schedule went on
    assert recorder.states[2]["options"]["scaler"]["scale"] in (65536.0 / 2**halved, 65536.0 / 2 ** (halved + 1))


def test_a_float16_loss_that_is_no_number_diverges() -> None:
    result = fit(overflowing(math.inf), Recorder())
    assert (result.outcome, result.value) == (Outcome.DIVERGED, None)


def test_a_float16_gradient_is_clipped_at_its_own_size_and_not_at_its_scaled_one() -> None:
    assert max(norms(on_digits(precision="fp16", clip_norm=0.3))) == pytest.approx(0.3, rel=1e-3)
    assert max(norms(on_digits(precision="fp16"))) == pytest.approx(max(norms(on_digits())), rel=0.05)


@pytest.mark.parametrize("model", [network, with_norm])
def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(model: Any) -> None:
    """The average by hand: of the weights after each step, and of running statistics, counters not."""
    nets: list[nn.Module] = []
    after: list[dict[str, Tensor]] = []

    def make(trial: Any) -> nn.Module:
        nets.append(model())
        return nets[0]

    def look(optimizer: torch.optim.Optimizer) -> None:
        after.append({name: tensor.clone() for name, tensor in nets[0].state_dict().items()})

    objective = on_digits(model=make, ema=0.8, value="last")
    recorder = Recorder(keep=(3,))
    result = fit(objective, recorder, watched(objective, look))
    after.append(recorder.states[3]["model"])  # seen before each step, so after the last one here
    expected = {name: tensor.double() for name, tensor in after[0].items()}
    for step, weights in enumerate(after[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        for name, tensor in weights.items():
            if tensor.is_floating_point() and "running" not in name:
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    assert len(after) == 1 + 3 * 8
    assert result.weights
    for name, tensor in result.weights.items():
        if "running" not in name and tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
            assert not torch.equal(tensor, after[-1][name])
    if model is with_norm:
        assert result.weights["1.num_batches_tracked"] == 24
        assert not torch.equal(result.weights["1.running_mean"], after[-1]["1.running_mean"])
    net = model()
    net.load_state_dict(result.weights)
    images, labels = digits()
    outputs = net.eval()(images[230:530])
    loss = nn.functional.cross_entropy(outputs, labels[230:530]).item()
    assert recorder.results[-1].value == result.value == pytest.approx(loss, rel=1e-5)


def test_running_statistics_are_averaged_as_the_weights_are() -> None:
    net = nn.BatchNorm1d(1)
    objective = on_digits(ema=0.5)
    task = Task(net, lambda net, batch: (net(batch).sum(), len(batch)))
    stepper = Stepper(task, torch.optim.SGD(net.parameters(), lr=0.0), objective, torch.device("cpu"))
    stepper.start_epoch()
    expected = None
    for number in range(12):
        stepper.add(*stepper.loss(torch.full((4, 1), float(number))))
        now = float(net.running_mean)  # type: ignore[arg-type]
        stepper.step()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    with stepper.averaged():
        assert float(net.running_mean) == pytest.approx(expected)  # type: ignore[arg-type]
        assert int(net.num_batches_tracked) == 12  # type: ignore[arg-type]
    assert float(net.running_mean) == pytest.approx(now)  # type: ignore[arg-type]


def test_training_goes_on_from_its_own_weights_and_not_from_their_average() -> None:
    plain, averaged = Recorder(), Recorder()
    fit(on_digits(model=with_norm), plain)
    fit(on_digits(model=with_norm, ema=0.9), averaged)
    assert [e.metrics["train_loss"] for e in plain.results] == [e.metrics["train_loss"] for e in averaged.results]
    assert [e.value for e in plain.results] != [e.value for e in averaged.results]


def test_norms_in_frozen_parts_keep_their_statistics() -> None:
    def model(trial: Any) -> nn.Module:
        frozen, free = with_norm(), with_norm()
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)
        return nn.Sequential(frozen, nn.Linear(10, 64), free)

    result = fit(on_digits(model=model), Recorder())
    assert result.weights
    assert int(result.weights["0.1.num_batches_tracked"]) == 0
    assert torch.equal(result.weights["0.1.running_mean"], torch.zeros(24))
    assert int(result.weights["2.1.num_batches_tracked"]) > 0


def test_only_norms_rest_and_only_in_what_is_frozen() -> None:
    net = nn.Sequential(with_norm(), with_norm())
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    net[1][1].bias.requires_grad_(False)  # type: ignore[index]
    task = Task(net, lambda net, batch: (net(batch).sum(), 1))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    Stepper(task, optimizer, on_digits(), torch.device("cpu")).start_epoch()
    resting = [name for name, module in net.named_modules() if not module.training]
    assert resting == ["0.1"]


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16", "clip_norm": 0.5},
        {"precision": "fp16", "accumulate": 3, "ema": 0.9},
        {"ema": 0.9, "value": "last"},
    ],
)
def test_training_with_options_goes_on_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    objective = on_digits(model=with_norm, optimizers=("adam",), epochs=4, **options)
    goes_on_the_same(objective, tmp_path, after=2, recipe=replace(recipe(objective), lr=0.003))


def test_the_scaler_goes_on_from_where_it_stood(tmp_path: Path) -> None:
    objective = overflowing(3000.0, epochs=4)
    goes_on_the_same(objective, tmp_path, after=2, recipe=recipe(objective, lr=1e-4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_on_a_gpu_all_options_together_train_too(precision: Any) -> None:
    weights = torch.ones(10)  # moves to the device with the loss
    options: dict[str, Any] = {"precision": precision, "clip_norm": 1.0, "accumulate": 2, "ema": 0.9, "epochs": 8}
    objective = on_digits(model=with_norm, loss=nn.CrossEntropyLoss(weight=weights), **options)
    result = fit(objective, Recorder(), recipe(objective), device=torch.device("cuda"))
    assert result.outcome is Outcome.COMPLETE
    assert result.value is not None
    assert result.value < 1.5
