"""Metrics against scikit-learn's, batch by batch with a partial last one, and what a metric object may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from search.errors import ObjectiveError
from search.metrics import AUROC, METRICS, Accuracy, Mean, NamedMetric, resolve

GENERATOR = torch.Generator().manual_seed(0)
CLASSES = torch.randint(7, (101,), generator=GENERATOR)
SCORES = torch.randn(101, 7, generator=GENERATOR) + torch.nn.functional.one_hot(CLASSES, 7)
TRUTH = torch.randint(2, (101,), generator=GENERATOR)
# Rounded, so that scores are tied within and between the classes.
LOGITS = (torch.randn(101, generator=GENERATOR) + TRUTH).mul(2).round()
TARGETS = torch.randn(101, generator=GENERATOR, dtype=torch.float64)
OUTPUTS = TARGETS + torch.randn(101, generator=GENERATOR, dtype=torch.float64)
PREDICTED = SCORES.argmax(1)

Cases = list[tuple[str, Tensor, Tensor, Callable[[], Any]]]
CASES: Cases = [
    ("accuracy", SCORES, CLASSES, lambda: sk.accuracy_score(CLASSES, PREDICTED)),
    ("accuracy", LOGITS, TRUTH, lambda: sk.accuracy_score(TRUTH, LOGITS > 0)),
    ("accuracy", LOGITS[:, None], TRUTH.float(), lambda: sk.accuracy_score(TRUTH, LOGITS > 0)),
    ("error", SCORES, CLASSES, lambda: 1 - sk.accuracy_score(CLASSES, PREDICTED)),
    ("top5_accuracy", SCORES, CLASSES, lambda: sk.top_k_accuracy_score(CLASSES, SCORES, k=5)),
    ("balanced_accuracy", SCORES, CLASSES, lambda: sk.balanced_accuracy_score(CLASSES, PREDICTED)),
    ("f1", SCORES, CLASSES, lambda: sk.f1_score(CLASSES, PREDICTED, average="macro")),
    ("auroc", LOGITS, TRUTH, lambda: sk.roc_auc_score(TRUTH, LOGITS)),
    ("auroc", torch.stack([-LOGITS, LOGITS], 1), TRUTH, lambda: sk.roc_auc_score(TRUTH, LOGITS)),
    ("mae", OUTPUTS, TARGETS, lambda: sk.mean_absolute_error(TARGETS, OUTPUTS)),
    ("mse", OUTPUTS, TARGETS, lambda: sk.mean_squared_error(TARGETS, OUTPUTS)),
    ("rmse", OUTPUTS[:, None], TARGETS, lambda: sk.root_mean_squared_error(TARGETS, OUTPUTS)),
    ("r2", OUTPUTS, TARGETS, lambda: sk.r2_score(TARGETS, OUTPUTS)),
]


def measured(name: str, outputs: Tensor, targets: Tensor, batch: int = 32) -> float:
    named = resolve(name)
    for rows in torch.arange(len(targets)).split(batch):
        named.metric.update(outputs[rows], targets[rows])
    return named.value()


@pytest.mark.parametrize(("name", "outputs", "targets", "expected"), CASES)
def test_a_metric_agrees_with_scikit_learn_over_a_partial_last_batch(
    name: str, outputs: Tensor, targets: Tensor, expected: Callable[[], Any]
) -> None:
    assert measured(name, outputs, targets) == pytest.approx(float(expected()), abs=1e-12)


def test_every_named_metric_is_compared() -> None:
    assert {name for name, *_ in CASES} | {"loss"} == set(METRICS)


@pytest.mark.parametrize(("name", "outputs", "targets"), [case[:3] for case in CASES])
def test_updating_never_waits_for_the_device(name: str, outputs: Tensor, targets: Tensor) -> None:
    metric = resolve(name).metric
    for _ in range(2):  # tensors on "meta" have no values: whatever reads one raises
        metric.update(outputs.to("meta"), targets.to("meta"))


def test_a_reset_metric_forgets() -> None:
    for name, outputs, targets, _ in CASES:
        named = resolve(name)
        named.metric.update(outputs[:50], targets[:50])
        named.metric.reset()
        named.metric.update(outputs[50:], targets[50:])
        assert named.value() == pytest.approx(measured(name, outputs[50:], targets[50:]))


def test_the_mean_loss_weighs_batches_by_their_size() -> None:
    mean = Mean()
    mean.update(torch.tensor(6.0), 3)
    mean.update(torch.tensor(10.0), torch.tensor(1))
    assert mean.compute() == 4.0


def test_targets_below_zero_are_left_out() -> None:
    hidden = CLASSES.clone()
    hidden[::3] = -100
    kept = hidden >= 0
    for name in ("accuracy", "top5_accuracy", "balanced_accuracy", "f1"):
        assert measured(name, SCORES, hidden) == pytest.approx(measured(name, SCORES[kept], CLASSES[kept]))


def test_every_pixel_of_a_segmentation_counts() -> None:
    scores = torch.randn(6, 7, 4, 5, generator=torch.Generator().manual_seed(1))
    classes = torch.randint(7, (6, 4, 5), generator=torch.Generator().manual_seed(2))
    flat = scores.movedim(1, -1).reshape(-1, 7)
    for name in ("accuracy", "top5_accuracy", "f1"):
        expected = measured(name, flat, classes.flatten())
        assert measured(name, scores, classes, batch=4) == pytest.approx(expected)


def test_one_output_a_column_is_not_broadcast_against_its_targets() -> None:
    targets = torch.arange(4.0)
    assert measured("mse", targets[:, None], targets) == 0.0


@pytest.mark.parametrize(
    ("name", "outputs", "targets"),
    [
        ("mse", torch.zeros(4, 2), torch.zeros(4)),
        ("accuracy", torch.zeros(4, 3), torch.zeros(4, 3)),
        ("accuracy", torch.zeros(3, 3), torch.zeros(4)),
        ("auroc", torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_outputs_that_do_not_fit_are_said_with_their_shapes(name: str, outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(ObjectiveError, match=rf"\({len(outputs)}, \d"):
        resolve(name).metric.update(outputs, targets)


def test_r2_keeps_its_digits_far_from_zero() -> None:
    expected = measured("r2", OUTPUTS, TARGETS)
    assert measured("r2", OUTPUTS + 1e6, TARGETS + 1e6) == pytest.approx(expected, abs=1e-6)


def test_auroc_of_one_class_is_an_error_and_of_nan_is_nan() -> None:
    metric = AUROC()
    metric.update(LOGITS, torch.ones_like(TRUTH))
    with pytest.raises(ObjectiveError, match="both classes"):
        metric.compute()
    metric.reset()
    metric.update(torch.full_like(LOGITS, math.nan), TRUTH)
    assert math.isnan(metric.compute())


class Agreement:
    """What a person's own metric looks like."""

    higher_is_better = True

    def __init__(self) -> None:
        self.result: Any = torch.tensor(0.5)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.result = torch.tensor(0.75)

    def compute(self) -> Any:
        return self.result

    def reset(self) -> None:
        self.result = torch.tensor(0.5)


def test_an_object_brings_its_direction_and_a_name_from_its_class() -> None:
    named = resolve(Agreement())
    assert (named.name, named.direction, named.value()) == ("agreement", "maximize", 0.5)


def test_an_object_is_copied_so_that_trials_share_no_state() -> None:
    mine = Agreement()
    resolve(mine).metric.update(SCORES, CLASSES)
    assert mine.compute() == 0.5


def test_the_objectives_direction_stands_in_for_an_objects() -> None:
    silent = Agreement()
    silent.higher_is_better = None  # type: ignore[assignment]
    assert resolve(silent, "minimize").direction == "minimize"
    assert resolve(silent, searched=False).name == "agreement"
    with pytest.raises(ObjectiveError, match="which way is better"):
        resolve(silent)


def test_a_metric_may_be_given_under_a_name_of_ones_own() -> None:
    named = resolve(NamedMetric("likeness", "maximize", Agreement()))
    assert (named.name, named.value()) == ("likeness", 0.5)


@pytest.mark.parametrize("result", [torch.zeros(3), "high", None, np.zeros(2)])
def test_a_metric_that_is_no_number_is_named(result: Any) -> None:
    mine = Agreement()
    mine.result = result
    with pytest.raises(ObjectiveError, match="'agreement' must compute one number, but got"):
        resolve(mine).value()


@pytest.mark.parametrize(
    ("metric", "direction", "message"),
    [
        ("acuracy", None, "but got 'acuracy'"),
        (Accuracy, None, "an object with update, compute and reset, but got <class"),
        (3, None, "but got 3"),
        ("accuracy", "minimize", "'accuracy' is to maximize, but the objective says 'minimize'"),
        ("accuracy", "up", "direction must be 'maximize' or 'minimize', but got 'up'"),
    ],
)
def test_what_is_no_metric_is_said(metric: Any, direction: str | None, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        resolve(metric, direction)


def test_better_goes_with_the_direction() -> None:
    assert resolve("accuracy").better(0.9, than=0.8)
    assert resolve("loss").better(0.8, than=0.9)
    assert not resolve("loss").better(0.9, than=0.9)
