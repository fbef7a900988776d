"""The trainer: what it computes, when it ends, and that a recipe gives one curve, interrupted or not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import resumable
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from training_helpers import CPU, Recorder, first_recipe, fit

from search import checkpoints
from search.batches import EvaluationBatches
from search.data import Data, Split
from search.errors import ObjectiveError
from search.evaluation import evaluate
from search.metrics import NamedMetric, resolve
from search.objective import Objective, Task
from search.reporting import Interrupted, Verdict
from storage.outcomes import Outcome

POINTS = torch.randn(103, 3, generator=torch.Generator().manual_seed(0))
SIDES = (POINTS.sum(1) > 0).long()
HELD_OUT = (POINTS[:41], SIDES[:41])


def linear(trial: Any) -> nn.Module:
    return nn.Linear(3, 2)


def simple(train: Split = (POINTS, SIDES), valid: Split = HELD_OUT, **arguments: Any) -> Objective:
    """A linear model on few points, at batch size 10: ten whole batches and one of three."""
    shaping = {name: arguments.pop(name) for name in ("scale", "augment") if name in arguments}
    given: dict[str, Any] = {
        "model": linear,
        "data": lambda root: Data(train, valid, **shaping),
        "loss": nn.CrossEntropyLoss(),
        "epochs": 4,
        "batch_sizes": (10,),
        **arguments,
    }
    return Objective(**given)


def standing_still(objective: Objective) -> Any:
    return replace(first_recipe(objective), lr=0.0, weight_decay=0.0)


# What it computes


def test_a_partial_last_batch_counts_right() -> None:
    objective = simple(metric=("loss", "accuracy", "f1"))
    recorder = Recorder()
    result = fit(objective, recorder, standing_still(objective))
    assert result.weights is not None
    net = nn.Linear(3, 2)
    net.load_state_dict(result.weights)
    expected = nn.functional.cross_entropy(net(POINTS), SIDES).item()
    held_out = nn.functional.cross_entropy(net(POINTS[:41]), SIDES[:41]).item()
    accuracy = (net(POINTS[:41]).argmax(1) == SIDES[:41]).double().mean().item()
    for epoch in recorder.results:
        assert epoch.metrics["train_loss"] == pytest.approx(expected, rel=1e-6)
        assert epoch.metrics["loss"] == epoch.value == pytest.approx(held_out, rel=1e-6)
        assert epoch.metrics["accuracy"] == pytest.approx(accuracy)
        assert epoch.samples == 103


def test_batch_norm_survives_one_sample_too_many() -> None:
    objective = simple(
        train=(POINTS[:101], SIDES[:101]),
        model=lambda trial: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    )
    assert fit(objective, Recorder()).outcome is Outcome.COMPLETE


def test_a_dataset_and_its_tensors_give_the_same_curve() -> None:
    class Samples(Dataset[Any]):
        def __len__(self) -> int:
            return len(POINTS)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return POINTS[index], SIDES[index]

    curves = []
    for train in ((POINTS, SIDES), TensorDataset(POINTS, SIDES), Samples()):
        recorder = Recorder()
        fit(simple(train=train), recorder)
        curves.append(recorder.curve)
    assert curves[0] == curves[1] == curves[2]


def test_a_model_that_works_in_place_does_not_change_the_data() -> None:
    class InPlace(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.mul_(0.5))

    before = POINTS.clone()
    fit(simple(model=lambda trial: InPlace(3, 2)), Recorder())
    assert torch.equal(before, POINTS)


def test_each_step_has_its_rate_from_the_table() -> None:
    seen: list[tuple[float, ...]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(tuple(group["lr"] for group in self.param_groups))
            return super().step(closure)

    def model(trial: Any) -> Task:
        task = simple().task(trial)
        groups: list[dict[str, Any]] = [
            {"params": [task.net.weight]},
            {"params": [task.net.bias], "lr_scale": 0.1},
        ]
        return replace(task, parameters=lambda net: groups)

    objective = simple(model=model, schedules=("onecycle",))
    plain = first_recipe(objective)
    recipe = replace(plain, optimizer=replace(plain.optimizer, factory=Watched))
    recorder = Recorder()
    fit(objective, recorder, recipe)
    rates = (recipe.lr * recipe.factors(44)).tolist()
    assert seen == [(rate, rate * 0.1) for rate in rates]
    assert [epoch.metrics["lr"] for epoch in recorder.results] == rates[10::11]


class Modes(nn.Linear):
    """Notes for each call: training or evaluating, inference mode or not, how many samples."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.calls: Counter[tuple[bool, bool, int]] = Counter()

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls[self.training, torch.is_inference_mode_enabled(), len(inputs)] += 1
        return super().forward(inputs)


def test_evaluation_is_in_inference_mode_with_large_batches_and_training_is_not() -> None:
    net = Modes()
    fit(simple(model=lambda trial: net), Recorder())
    assert net.calls == {(True, False, 10): 40, (True, False, 3): 4, (False, True, 41): 4}


def test_evaluate_measures_any_split_with_fresh_metrics() -> None:
    objective = simple()
    task = objective.task(None)  # type: ignore[arg-type]
    metrics = (resolve("accuracy"), resolve("loss"))
    [data] = objective.data(Path()).folds
    found = [evaluate(task, EvaluationBatches(data.valid, data, 10, device=CPU), metrics, CPU) for _ in range(2)]
    assert found[0] == found[1]
    assert set(found[0]) == {"accuracy", "loss"}


# How it ends


class Scripted:
    """A metric with the values of a list, one an evaluation."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...
    def reset(self) -> None: ...
    def compute(self) -> float:
        return next(self.values)

    def __deepcopy__(self, memo: Any) -> Scripted:
        return self  # one script for the whole trial


def scripted(values: list[float], direction: Any = "maximize", **arguments: Any) -> Objective:
    """An objective whose searched metric has the given values."""
    metric = NamedMetric("scripted", direction, Scripted(values))
    return simple(metric=metric, epochs=len(values), **arguments)


@pytest.mark.parametrize(("direction", "epoch", "value"), [("maximize", 2, 0.7), ("minimize", 4, 0.2)])
def test_the_value_and_the_weights_are_the_best_epochs(direction: str, epoch: int, value: float) -> None:
    recorder = Recorder(keep=(1, 2, 3, 4))
    result = fit(scripted([0.5, 0.7, 0.7, 0.2], direction), recorder)
    assert (result.outcome, result.value, result.best_epoch, result.reason) == ("complete", value, epoch, "")
    assert result.weights is not None
    for kept, state in recorder.states.items():
        assert torch.equal(state["model"]["weight"], result.weights["weight"]) == (kept == epoch)


def test_patience_ends_a_trial_without_improvement() -> None:
    recorder = Recorder()
    result = fit(scripted([0.1, 0.5, 0.5, 0.4, 0.9], patience=2), recorder)
    assert [epoch.value for epoch in recorder.results] == [0.1, 0.5, 0.5, 0.4]
    assert (result.outcome, result.value, result.best_epoch) == (Outcome.COMPLETE, 0.5, 2)
    assert result.reason == "no better than in epoch 2 for 2 epochs"


def test_patience_is_remembered_across_an_interruption() -> None:
    values = [0.1, 0.5, 0.5, 0.4, 0.9]
    recorder = Recorder(keep=(3, 4))
    fit(scripted(values, patience=3), recorder)
    rest = Recorder(restored=recorder.states[3])
    fit(scripted([*values[3:], *values[:3]], patience=3), rest)
    assert [epoch.epoch for epoch in rest.results] == [4, 5]
    over = Recorder(restored=recorder.states[4])
    result = fit(scripted(values, patience=2), over)
    assert (over.results, result.value, result.outcome) == ([], 0.5, Outcome.COMPLETE)


def test_a_trial_that_had_only_to_be_settled_trains_no_more() -> None:
    recorder = Recorder(keep=(4,))
    first = fit(simple(), recorder)
    over = Recorder(restored=recorder.states[4])
    result = fit(simple(), over)
    assert (over.results, result.value, result.best_epoch) == ([], first.value, first.best_epoch)


def test_a_verdict_prunes_but_not_after_the_last_epoch() -> None:
    recorder = Recorder(verdicts={2: Verdict.PRUNE})
    result = fit(scripted([0.5, 0.4, 0.9]), recorder)
    assert (result.outcome, result.value, len(recorder.results)) == (Outcome.PRUNED, 0.5, 2)
    assert result.reason == "pruned after epoch 2 of 3"
    assert fit(scripted([0.5]), Recorder(verdicts={1: Verdict.PRUNE})).outcome is Outcome.COMPLETE


def test_a_verdict_hands_the_trial_back() -> None:
    recorder = Recorder(verdicts={2: Verdict.HAND_BACK})
    with pytest.raises(Interrupted):
        fit(simple(), recorder)
    assert len(recorder.results) == 2


@pytest.mark.parametrize(("stop_after", "reported"), [(0, 0), (15, 1), (23, 1)])
def test_an_interruption_is_heeded_between_batches_and_records_nothing(stop_after: int, reported: int) -> None:
    recorder = Recorder(stop_after=stop_after)  # an epoch is 11 batches to train and 1 to evaluate
    with pytest.raises(Interrupted):
        fit(simple(), recorder)
    assert (len(recorder.results), recorder.batches) == (reported, stop_after + 1)


def failing_at(step_number: int, failure: Callable[[Tensor], Tensor]) -> Objective:
    """An objective whose loss goes through `failure` from one step on."""
    steps = iter(range(1, 1000))

    def model(trial: Any) -> Task:
        task = simple().task(trial)

        def step(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
            total, weight = task.step(net, batch)
            return (failure(total) if next(steps) >= step_number else total), weight

        return replace(task, step=step)

    return simple(model=model)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial_at_once_with_its_nan_on_record(value: float) -> None:
    recorder = Recorder(verdicts={2: Verdict.HAND_BACK}, keep=(1, 2))
    result = fit(failing_at(14, lambda total: total * value), recorder)
    assert (result.outcome, result.best_epoch) == (Outcome.DIVERGED, 1)
    assert result.value == recorder.results[0].value
    assert [epoch.epoch for epoch in recorder.results] == [1, 2]
    assert math.isnan(recorder.values[1])
    assert math.isnan(recorder.results[1].metrics["accuracy"])
    assert not math.isfinite(recorder.results[1].metrics["train_loss"])
    assert recorder.batches == 12 + 3
    assert "train_loss is" in result.reason
    assert "epoch 2" in result.reason
    weights = recorder.states[2]["model"]["weight"]
    assert weights.isfinite().all()  # the step itself was not taken


def test_a_divergence_that_no_look_met_is_seen_at_the_end_of_the_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("search.curve.Curve._time_to_look", lambda curve: False)  # as between looks on a GPU
    recorder = Recorder()
    result = fit(failing_at(14, lambda total: total * math.nan), recorder)
    assert (result.outcome, len(recorder.results), recorder.batches) == (Outcome.DIVERGED, 2, 12 + 11)
    assert math.isnan(recorder.values[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_divergence_ends_the_trial_too() -> None:
    recorder = Recorder()
    result = fit(failing_at(14, lambda total: total * math.nan), recorder, device=torch.device("cuda"))
    assert (result.outcome, len(recorder.results)) == (Outcome.DIVERGED, 2)


def test_a_searched_metric_that_is_not_finite_diverges() -> None:
    recorder = Recorder()
    result = fit(scripted([0.5, math.inf, 0.9]), recorder)
    assert (result.outcome, result.value, len(recorder.results)) == (Outcome.DIVERGED, 0.5, 2)
    assert math.isnan(recorder.values[1])
    assert result.reason == "scripted is inf in epoch 2"


def test_a_metric_that_is_only_recorded_may_be_nan() -> None:
    also = NamedMetric("scripted", "maximize", Scripted([math.nan] * 4))
    recorder = Recorder()
    assert fit(simple(metric=("accuracy", also)), recorder).outcome is Outcome.COMPLETE
    assert all(math.isnan(epoch.metrics["scripted"]) for epoch in recorder.results)


def test_a_divergence_in_the_first_epoch_has_no_value() -> None:
    result = fit(failing_at(1, lambda total: total * math.nan), Recorder())
    assert (result.outcome, result.value, result.best_epoch, result.weights) == ("diverged", None, None, None)


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def failure(total: Tensor) -> Tensor:
        raise error

    return failure


@pytest.mark.parametrize(
    "failure",
    [
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore than there is")),
        raising(MemoryError()),
        lambda total: torch.empty(2**60),
    ],
)
def test_want_of_memory_is_an_outcome_with_one_line(failure: Callable[[Tensor], Tensor]) -> None:
    result = fit(failing_at(14, failure), Recorder())
    assert result.outcome is Outcome.OUT_OF_MEMORY
    assert result.reason.startswith("out of memory at batch size 10: ")
    assert "\n" not in result.reason


def test_what_the_objective_raises_passes_through() -> None:
    with pytest.raises(RuntimeError, match="mine"):
        fit(failing_at(14, raising(RuntimeError("mine"))), Recorder())
    with pytest.raises(ObjectiveError, match="'scripted' must compute one number"):
        fit(scripted([torch.zeros(2)]), Recorder())  # type: ignore[list-item]


# The same curve again


def test_the_same_recipe_and_seed_give_the_same_curve_bit_for_bit() -> None:
    curves = []
    for seed in (7, 7, 8):
        recorder = Recorder()
        fit(resumable.objective, recorder, seed=seed)
        curves.append(recorder.curve)
    assert curves[0] == curves[1] != curves[2]


def test_a_trial_goes_on_bit_for_bit_in_another_process(tmp_path: Path) -> None:
    optimizer = "adam"  # which has the most to go on with
    whole, begun = Recorder(), Recorder(verdicts={3: Verdict.HAND_BACK}, keep=(3,))
    result = resumable.trained(optimizer, whole)
    with pytest.raises(Interrupted):
        resumable.trained(optimizer, begun)
    checksum = checkpoints.save(tmp_path / "3.pt", begun.states[3])
    arguments = [str(tmp_path / "3.pt"), checksum, optimizer, str(torch.get_num_threads())]
    rest = subprocess.run([sys.executable, resumable.__file__, *arguments], capture_output=True, text=True, check=True)
    expected = [whole.curve[3:], result.best_epoch, resumable.checksum(result.weights)]
    assert json.loads(rest.stdout) == json.loads(json.dumps(expected))


def test_a_state_is_not_changed_by_later_training() -> None:
    recorder = Recorder(keep=(1, 4))
    fit(resumable.objective, recorder)
    rest = [Recorder(restored=recorder.states[1]), Recorder(restored=recorder.states[1])]
    for again in rest:
        fit(resumable.objective, again)
    assert rest[0].curve == rest[1].curve
    first, last = (recorder.states[epoch]["optimizer"]["state"] for epoch in (1, 4))
    assert not torch.equal(first[0]["momentum_buffer"], last[0]["momentum_buffer"])


def test_the_weights_of_an_epoch_that_is_the_best_are_copied_once() -> None:
    recorder = Recorder(keep=(1, 2))
    fit(scripted([0.5, 0.4]), recorder)
    best, later = recorder.states[1], recorder.states[2]
    assert best["model"] is best["best"]["weights"] is later["best"]["weights"]
    assert not torch.equal(later["model"]["weight"], best["model"]["weight"])
