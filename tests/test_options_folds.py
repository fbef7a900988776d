"""Folds: parts that make up the whole, one training each, the mean searched, decided between folds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from options_helpers import assert_same, digits, goes_on_the_same, on_digits, recipe, with_norm
from torch import Tensor, nn
from training_helpers import Recorder, fit

from search.data import Data, Folds, split
from search.errors import ObjectiveError
from search.metrics import NamedMetric
from search.objective import Objective
from search.reporting import Interrupted, Verdict
from search.training import fold_seed
from storage.outcomes import Outcome

IMAGES, LABELS = (tensor[:203] for tensor in digits())


def rows(part: Any) -> list[int]:
    return [int(value) for value in part[0].flatten()]


NUMBERED = torch.arange(103.0)[:, None]
CLASSES = torch.arange(103) % 10 // 9  # nine of class 0 to one of class 1


@pytest.mark.parametrize("stratify", [False, True])
def test_the_validation_parts_of_the_folds_are_a_partition(stratify: bool) -> None:
    folds = split(NUMBERED, CLASSES, folds=5, stratify=stratify).folds
    assert sorted(row for fold in folds for row in rows(fold.valid)) == list(range(103))
    assert [len(rows(fold.valid)) for fold in folds] == [21, 21, 21, 20, 20]
    for fold in folds:
        assert sorted(rows(fold.train) + rows(fold.valid)) == list(range(103))
        for part in (fold.train, fold.valid):
            assert isinstance(part, tuple)
            assert torch.equal(part[1], CLASSES[rows(part)])
    ones = [int(fold.valid[1].sum()) for fold in folds]
    assert (ones == [2] * 5) == stratify


def test_folds_keep_a_test_split_out_of_all_of_them() -> None:
    folds = split(NUMBERED, folds=4, test=11, scale=torch.neg).folds
    held_out = rows(folds[0].test)
    assert len(held_out) == 11
    for fold in folds:
        assert rows(fold.test) == held_out
        assert sorted(rows(fold.train) + rows(fold.valid) + held_out) == list(range(103))
        assert fold.scale is torch.neg
    official = (NUMBERED[:3],)
    assert all(fold.test is official for fold in split(NUMBERED, folds=4, test=official).folds)


def test_folds_are_a_function_of_the_seed() -> None:
    first, again, other = (split(NUMBERED, folds=3, seed=seed).folds for seed in (0, 0, 1))
    assert rows(first[1].valid) == rows(again[1].valid) != rows(other[1].valid)


def test_folds_are_views_of_one_copy_of_the_data() -> None:
    folds = split(NUMBERED, folds=10).folds
    places = {part[0].untyped_storage().data_ptr() for fold in folds for part in (fold.train, fold.valid)}
    assert len(places) == 1
    assert folds[0].train[0].untyped_storage().nbytes() < 2 * NUMBERED.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folds": 1}, "folds must be from 2 to the 103 samples there are, but got 1"),
        ({"folds": 104}, "folds must be from 2 to the 103 samples there are, but got 104"),
        ({"folds": 2.5}, "but got 2.5"),
        ({"folds": 5, "valid": 0.2}, "each of the folds is a validation split: leave valid=0.2 out"),
    ],
)
def test_folds_that_cannot_be_are_echoed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        split(NUMBERED, **arguments)


@pytest.mark.parametrize(
    ("folds", "message"),
    [((), "folds must be at least 2, but got 0"), ((3,), "a tuple of Data"), ([], "a tuple of Data")],
)
def test_folds_are_at_least_two_data(folds: Any, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        Folds(folds)


def folded(root: Path = Path()) -> Folds:
    return split(IMAGES, LABELS, folds=5, stratify=True)


def objective(**arguments: Any) -> Objective:
    return on_digits(**{"data": folded, "model": with_norm, "metric": ("accuracy", "loss"), "epochs": 2, **arguments})


def test_the_value_is_the_mean_of_a_training_on_each_fold() -> None:
    recorder = Recorder()
    whole = fit(objective(), recorder, seed=7)
    values, curve = [], []
    assert whole.weights is not None
    for fold, data in enumerate(folded().folds, start=1):
        alone = Recorder()
        # `data` is bound now: the function is called in this turn of the loop.
        result = fit(objective(data=lambda root, data=data: data), alone, seed=fold_seed(7, fold))
        assert result.value is not None
        values.append(result.value)
        curve += [epoch.metrics for epoch in alone.results]
        assert_same(replace(whole, weights=whole.weights[f"fold-{fold}"]), replace(whole, weights=result.weights))
    assert len(set(values)) > 1
    assert whole.value == pytest.approx(sum(values) / 5)
    assert (whole.outcome, whole.best_epoch, len(whole.weights)) == (Outcome.COMPLETE, None, 5)
    assert [epoch.metrics for epoch in recorder.results] == curve
    assert [epoch.epoch for epoch in recorder.results] == list(range(1, 11))
    means = [sum(values[:fold]) / fold for fold in range(1, 6)]
    assert [epoch.value for epoch in recorder.results[1::2]] == pytest.approx(means)
    assert [epoch.value for epoch in recorder.results[0::2]] == [None] * 5


@pytest.mark.parametrize("after", [5, 6])
def test_a_trial_goes_on_bit_for_bit_in_the_middle_of_a_fold_and_at_its_end(after: int, tmp_path: Path) -> None:
    goes_on_the_same(objective(optimizers=("momentum",), ema=0.5), tmp_path, after=after)


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


def scripted(values: list[float], **arguments: Any) -> Objective:
    """Two folds whose searched metric has the given values."""
    return objective(
        data=lambda root: split(IMAGES, LABELS, folds=2),
        metric=NamedMetric("scripted", "maximize", Scripted(values)),
        **{"epochs": 3, **arguments},
    )


def test_folds_have_the_best_or_the_last_of_their_epochs() -> None:
    values = [0.1, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert fit(scripted(values), Recorder()).value == pytest.approx((0.5 + 0.3) / 2)
    assert fit(scripted(values, value="last"), Recorder()).value == pytest.approx((0.4 + 0.1) / 2)


def test_patience_is_for_each_fold_and_the_numbers_of_epochs_skip() -> None:
    recorder = Recorder()
    result = fit(scripted([0.5, 0.4, 0.1, 0.2, 0.3], patience=1), recorder)
    assert [(epoch.epoch, epoch.value) for epoch in recorder.results] == [
        (1, None),
        (2, 0.5),
        (4, None),
        (5, None),
        (6, pytest.approx(0.4)),
    ]
    assert result.outcome is Outcome.COMPLETE
    assert result.value == pytest.approx(0.4)


def test_a_verdict_prunes_between_folds_only() -> None:
    values = [0.1, 0.5, 0.4, 0.3, 0.2, 0.1]
    everywhere = dict.fromkeys((1, 2, 3, 4, 5, 6), Verdict.PRUNE)
    recorder = Recorder(verdicts=everywhere)
    result = fit(scripted(values), recorder)
    assert (result.outcome, result.value, len(recorder.results)) == (Outcome.PRUNED, 0.5, 3)
    assert result.reason == "pruned after fold 1 of 2"
    del everywhere[3]
    assert fit(scripted(values), Recorder(verdicts=everywhere)).outcome is Outcome.COMPLETE


def test_a_trial_is_handed_back_after_any_epoch() -> None:
    recorder = Recorder(verdicts={4: Verdict.HAND_BACK})
    with pytest.raises(Interrupted):
        fit(scripted([0.1, 0.5, 0.4, 0.3, 0.2, 0.1]), recorder)
    assert len(recorder.results) == 4


def test_a_fold_that_diverges_ends_the_trial() -> None:
    recorder = Recorder()
    result = fit(scripted([0.1, 0.5, 0.4, 0.3, math.inf, 0.1]), recorder)
    assert (result.outcome, result.value, len(recorder.results)) == (Outcome.DIVERGED, 0.5, 5)
    assert result.reason == "scripted is inf in epoch 2 of fold 2"
    assert math.isnan(recorder.results[-1].value or 0.0)


def test_each_fold_starts_from_a_network_of_its_own() -> None:
    first_weights: list[Tensor] = []

    def model(trial: Any) -> nn.Module:
        net = with_norm()
        first_weights.append(next(net.parameters()).detach().clone())
        return net

    fit(objective(model=model, epochs=1), Recorder())
    assert len(first_weights) == 5
    assert all(not torch.equal(first_weights[0], other) for other in first_weights[1:])


def test_data_alone_is_one_fold() -> None:
    data = split(IMAGES, LABELS)
    assert isinstance(data, Data)
    assert data.folds == (data,)


def test_the_rate_runs_through_its_whole_schedule_in_each_fold() -> None:
    linear = objective(schedules=("linear",))
    recorder, plan = Recorder(), recipe(linear)
    fit(linear, recorder, plan)
    rates = [epoch.metrics["lr"] for epoch in recorder.results]
    assert rates[:2] * 5 == rates
    assert rates[0] > rates[1]
