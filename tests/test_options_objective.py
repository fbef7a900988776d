"""Options of an objective's loss, rates, rows and value, each on real training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from options_helpers import TRAINED, digits, goes_on_the_same, network, on_digits, recipe
from torch import Tensor, nn
from torch.optim import lr_scheduler
from training_helpers import Recorder, fit

from search import space
from search.errors import ObjectiveError
from search.knobs import floating
from search.objective import Objective, Task, supervised
from search.optimizers import Optimizer
from search.reporting import Verdict
from search.schedules import Schedule
from storage.outcomes import Outcome

IMAGES, LABELS = digits()


def after_one_step(objective: Objective) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Weights before and after one step on the whole training split, and its training loss."""
    begun: list[dict[str, Tensor]] = []
    plain = objective.model

    def model(trial: Any) -> nn.Module | Task:
        made = plain(trial)
        net = made.net if isinstance(made, Task) else made
        begun.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        return made

    # A batch larger than the split is the whole of it.
    whole = replace(objective, model=model, epochs=1, batch_sizes=(4096,))
    recorder = Recorder()
    result = fit(whole, recorder, recipe(whole))
    assert result.weights is not None
    return begun[0], result.weights, recorder.results[0].metrics["train_loss"]


def log_probabilities(net: nn.Module) -> Tensor:
    return net(IMAGES[:TRAINED]).log_softmax(1)


def smoothed(net: nn.Module) -> Tensor:
    """Label smoothing of 0.2 by hand: a fifth of the target is spread over all ten classes."""
    wanted = torch.full((TRAINED, 10), 0.02).scatter_(1, LABELS[:TRAINED, None], 0.82)
    return -(wanted * log_probabilities(net)).sum(1).mean()


CLASS_WEIGHTS = torch.linspace(0.5, 3.0, 10)


def weighted(net: nn.Module) -> Tensor:
    """A mean of losses weighted by the weight of each sample's class."""
    each = CLASS_WEIGHTS[LABELS[:TRAINED]]
    right = log_probabilities(net)[torch.arange(TRAINED), LABELS[:TRAINED]]
    return -(each * right).sum() / each.sum()


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.2), smoothed),
        (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), weighted),
    ],
)
def test_label_smoothing_and_class_weights_train_as_by_hand(loss: nn.Module, by_hand: Any) -> None:
    begun, ended, train_loss = after_one_step(on_digits(loss=loss))
    _, plain, plain_loss = after_one_step(on_digits())
    net = network()
    net.load_state_dict(begun)
    expected = by_hand(net)
    expected.backward()
    assert train_loss == pytest.approx(expected.item(), rel=1e-5)
    assert train_loss != pytest.approx(plain_loss, rel=1e-3)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ended[name], begun[name] - 0.5 * parameter.grad, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(ended[name], plain[name], rtol=1e-4, atol=1e-5)


def test_class_weights_follow_the_batch_to_its_device() -> None:
    """The device "meta", which every machine has, refuses to compute with a tensor of the CPU's."""
    meta = torch.device("meta")
    task = supervised(network().to(meta), nn.CrossEntropyLoss(weight=CLASS_WEIGHTS))
    total, weight = task.step(task.net, (IMAGES[:8].to(meta), LABELS[:8].to(meta)))
    assert (total.device.type, weight) == ("meta", 8)


def groups(net: nn.Module) -> list[dict[str, Any]]:
    first, _, last = net.children()
    return [{"params": first.parameters(), "lr_scale": 0.1}, {"params": last.parameters()}]


def test_groups_of_the_simple_door_have_rates_of_their_own() -> None:
    begun, ended, _ = after_one_step(on_digits(parameters=groups))
    _, plain, _ = after_one_step(on_digits())
    for name, share in {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 1.0, "2.bias": 1.0}.items():
        torch.testing.assert_close(ended[name] - begun[name], share * (plain[name] - begun[name]))


def test_groups_may_freeze_a_part() -> None:
    def head_only(net: nn.Module) -> list[dict[str, Any]]:
        first, _, last = net.children()
        first.requires_grad_(False)
        return [{"params": last.parameters()}]

    begun, ended, _ = after_one_step(on_digits(parameters=head_only))
    assert torch.equal(begun["0.weight"], ended["0.weight"])
    assert not torch.equal(begun["2.weight"], ended["2.weight"])


def test_a_task_of_the_objectives_groups_is_given_them_and_two_of_them_are_refused() -> None:
    plain = on_digits().task(optuna.trial.FixedTrial({}))
    begun, ended, _ = after_one_step(on_digits(model=lambda trial: replace(plain, net=network()), parameters=groups))
    assert (ended["0.weight"] - begun["0.weight"]).abs().max() < (ended["2.weight"] - begun["2.weight"]).abs().max()
    both = on_digits(model=lambda trial: replace(plain, parameters=groups), parameters=groups)
    with pytest.raises(ObjectiveError, match="the Task and the Objective both have parameters"):
        both.task(optuna.trial.FixedTrial({}))


class Signed(torch.optim.Optimizer):
    """Steps of one size, in the direction of a mean gradient: an optimizer of a person's own."""

    def __init__(self, params: Any, lr: float, weight_decay: float, memory: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "memory": memory})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad + group["weight_decay"] * parameter, 1 - group["memory"])
                parameter.sub_(mean.sign(), alpha=group["lr"])


SIGNED = Optimizer(
    "signed", Signed, 0.01, "Steps of one size.", extra=(floating("signed_memory", 0.5, 0.99, 0.9, "of gradients"),)
)


def triangle(optimizer: torch.optim.Optimizer, shape: Any, steps: int) -> lr_scheduler.LRScheduler:
    top = max(1, round(shape["triangle_top"] * steps))
    return lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / top, (steps - step) / (steps - top + 1)))


TRIANGLE = Schedule(
    "triangle", "Up, then down.", triangle, (floating("triangle_top", 0.1, 0.9, 0.5, "where the top is"),)
)


def test_rows_of_ones_own_are_sampled_and_train(tmp_path: Any) -> None:
    objective = on_digits(optimizers=(SIGNED,), schedules=(TRIANGLE,), epochs=6)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"lr_multiple": 1.0, "triangle_top": 0.25, "warmup": 0.0})
    trial = study.ask()
    sampled = space.sample(trial, objective)
    assert {"signed_memory", "triangle_top"} <= set(trial.params)
    assert sampled.extra == {"signed_memory": trial.params["signed_memory"]}
    recorder = goes_on_the_same(objective, tmp_path, after=3, recipe=sampled)
    assert recorder.results[-1].metrics["accuracy"] > 0.6
    rates = [epoch.metrics["lr"] for epoch in recorder.results]
    ends = range(7, 48, 8)  # of eight steps an epoch, twelve to the top
    assert rates == pytest.approx([0.01 * min((step + 1) / 12, (48 - step) / 37) for step in ends])


class Scripted:
    """A metric with the values of a list, one an evaluation."""

    higher_is_better = True
    values: Iterator[float]

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...
    def reset(self) -> None: ...
    def compute(self) -> float:
        return next(self.values)

    def __deepcopy__(self, memo: Any) -> Scripted:
        return self  # one script for the whole trial


def scripted(values: list[float], **arguments: Any) -> Objective:
    return on_digits(metric=Scripted(values), epochs=len(values), **arguments)


def test_the_value_and_the_weights_are_the_last_epochs_where_the_objective_says_so() -> None:
    values = [0.5, 0.9, 0.7, 0.6]
    for value, epoch in (("best", 2), ("last", 4)):
        recorder = Recorder(keep=(2, 4))
        result = fit(scripted(values, value=value), recorder)
        assert (result.value, result.best_epoch) == (values[epoch - 1], epoch)
        assert result.weights is not None
        for kept, state in recorder.states.items():
            assert torch.equal(state["model"]["0.weight"], result.weights["0.weight"]) == (kept == epoch)


def test_patience_counts_from_the_best_epoch_also_when_the_last_one_counts() -> None:
    values = [0.5, 0.9, 0.7, 0.8, 0.6]
    recorder = Recorder(keep=(3,))
    result = fit(scripted(values, value="last", patience=2), recorder)
    assert (result.outcome, result.value, result.best_epoch) == (Outcome.COMPLETE, 0.8, 4)
    assert result.reason == "no better than in epoch 2 for 2 epochs"
    rest = Recorder(restored=recorder.states[3])
    again = fit(scripted([*values[3:], *values[:3]], value="last", patience=2), rest)
    assert [epoch.epoch for epoch in rest.results] == [4]
    assert (again.value, again.reason) == (result.value, result.reason)


def test_a_pruned_trials_value_is_its_last_epochs_too() -> None:
    result = fit(scripted([0.5, 0.9, 0.7, 0.6], value="last"), Recorder(verdicts={3: Verdict.PRUNE}))
    assert (result.outcome, result.value, result.best_epoch) == (Outcome.PRUNED, 0.7, 3)


def test_a_state_from_before_there_were_options_goes_on() -> None:
    recorder = Recorder(keep=(2,))
    result = fit(on_digits(), recorder)
    old = {key: value for key, value in recorder.states[2].items() if key not in ("options", "peak")}
    assert fit(on_digits(), Recorder(restored=old)).value == result.value
