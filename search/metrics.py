"""What a search measures on the validation split: a table of metrics, or any object like torchmetrics'.

An objective names metrics (`metric="accuracy"`, or several, of which the first is searched); the trainer
updates them batch by batch and reads them once an epoch. State is kept as tensors on the device of the
outputs, so `update` never waits for the device, and as sums and counts, so that a partial last batch counts
right.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from search.errors import ObjectiveError
from storage.words import did_you_mean

Direction = Literal["maximize", "minimize"]


class Metric(Protocol):
    """torchmetrics' interface. `update` gets what `Task.predict` returns, one batch at a time."""

    def update(self, outputs: Tensor, targets: Tensor, /) -> None: ...
    def compute(self) -> Tensor | float: ...
    def reset(self) -> None: ...


@dataclass(frozen=True)
class NamedMetric:
    """A metric under the name that reports and the database use; an objective may give one itself."""

    name: str
    direction: Direction
    metric: Metric

    def value(self) -> float:
        """What the metric came to, maybe NaN. ObjectiveError: it computed something that is no number."""
        result: Any = self.metric.compute()
        try:
            return float(result)
        except (TypeError, ValueError, RuntimeError):
            found = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)[:80]
            raise ObjectiveError(f"metric {self.name!r} must compute one number, but got {found}") from None

    def better(self, value: float, than: float) -> bool:
        """Whether `value` improves on `than` in this metric's direction."""
        return value > than if self.direction == "maximize" else value < than


@dataclass(frozen=True)
class MetricRow:
    """One named metric: what it is called, which way is better, how to make one, and its documentation."""

    name: str
    direction: Direction
    factory: Callable[[], Metric]
    text: str


def resolve(metric: str | Metric | NamedMetric, direction: str | None = None, *, searched: bool = True) -> NamedMetric:
    """A fresh metric for one trial, from its name or as a copy of the object given.

    `direction` is the objective's own word. An object without one is asked for torchmetrics'
    `higher_is_better`; one that is only recorded, not searched, may leave it open and is then listed as to
    be maximized.
    ObjectiveError: an unknown name, an object without update, compute and reset, a direction that contradicts, or none.
    """
    if direction not in (None, "maximize", "minimize"):
        raise ObjectiveError(f"direction must be 'maximize' or 'minimize', but got {direction!r}")
    if isinstance(metric, str):
        return _contradicted(_from_table(metric), direction)
    if isinstance(metric, NamedMetric):
        return _contradicted(NamedMetric(metric.name, metric.direction, copy.deepcopy(metric.metric)), direction)
    if isinstance(metric, type) or not all(callable(getattr(metric, m, None)) for m in ("update", "compute", "reset")):
        raise ObjectiveError(
            f"metric must be one of {', '.join(METRICS)}, or an object with update, compute and reset, "
            f"but got {metric!r}"
        )
    name = getattr(metric, "name", None) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()
    higher = getattr(metric, "higher_is_better", None)
    found = direction or ("minimize" if higher is False else "maximize" if higher or not searched else None)
    if found is None:
        raise ObjectiveError(
            f"metric {name!r} does not say which way is better: give the objective direction='maximize' or 'minimize'"
        )
    return NamedMetric(str(name), "maximize" if found == "maximize" else "minimize", copy.deepcopy(metric))


class Reported:
    """Stands for a metric that a person's own loop measures and reports by name."""

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        """Nothing to do."""

    def compute(self) -> float:
        """Nothing is known here."""
        return float("nan")

    def reset(self) -> None:
        """Nothing to forget."""


def reported(metric: Any, direction: Direction | None) -> NamedMetric:
    """The metric that an own loop reports: any name, whose direction is in the table or given.

    ObjectiveError: it is no name, no direction is known, or one contradicts the table's.
    """
    if not isinstance(metric, str) or not metric:
        raise ObjectiveError(f"metric must be the name that run.report is called with, but got {metric!r:.80}")
    if direction not in (None, "maximize", "minimize"):
        raise ObjectiveError(f"direction must be 'maximize' or 'minimize', but got {direction!r}")
    found = direction or (METRICS[metric].direction if metric in METRICS else None)
    if found is None:
        raise ObjectiveError(
            f"metric {metric!r} does not say which way is better: give the objective direction='maximize' or 'minimize'"
        )
    return _contradicted(
        NamedMetric(metric, METRICS[metric].direction if metric in METRICS else found, Reported()), direction
    )


def _from_table(name: str) -> NamedMetric:
    if name not in METRICS:
        said = f"metric must be one of {', '.join(METRICS)}, or an object, but got {name!r}"
        raise ObjectiveError(": ".join(filter(None, (said, did_you_mean(name, [*METRICS], alike=0.5)))))
    row = METRICS[name]
    return NamedMetric(row.name, row.direction, row.factory())


def _contradicted(named: NamedMetric, direction: str | None) -> NamedMetric:
    if direction not in (None, named.direction):
        raise ObjectiveError(f"metric {named.name!r} is to {named.direction}, but the objective says {direction!r}")
    return named


def _sums_dtype(device: torch.device) -> torch.dtype:
    """Sums are kept in float64, where the device has it (Apple's MPS has none)."""
    return torch.float32 if device.type == "mps" else torch.float64


class Mean:
    """The mean of a loss: the trainer updates it with what `Task.step` returns."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._total: Tensor | None = None
        self._weight: Tensor | float = 0.0

    def update(self, total: Tensor, weight: Tensor | float, /) -> None:
        """total: shape (), the sum of losses; weight: how many they were."""
        # A copy: the next batch may be written where this one's losses are.
        total = total.detach().to(_sums_dtype(total.device), copy=True)
        self._total = total if self._total is None else self._total + total
        self._weight = self._weight + (weight.detach() if isinstance(weight, Tensor) else float(weight))

    def finite(self) -> bool:
        """Whether no loss so far was NaN or infinite. Waits for the device."""
        return self._total is None or math.isfinite(self._total.item())

    def compute(self) -> float:
        if self._total is None:
            return float("nan")
        return float(self._total) / float(self._weight)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: copies."""
        return {"total": _on(_CPU, self._total), "weight": _on(_CPU, self._weight)}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a `state`, on that device."""
        self._total, self._weight = _on(device, state["total"]), _on(device, state["weight"])


_CPU = torch.device("cpu")


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
    """Predicted and true classes, flat, and how many classes there are.

    outputs (N, C, ...) are scores of C classes against indices (N, ...); outputs (N,) or (N, 1) are one
    logit against 0 or 1.
    """
    scored = outputs.ndim == targets.ndim + 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    if scored and outputs.shape[1] > 1:
        return outputs.argmax(1).flatten(), targets.flatten().long(), outputs.shape[1]
    if outputs.numel() == targets.numel() and outputs.numel() == len(outputs):
        return (outputs.flatten() > 0).long(), targets.flatten().long(), 2
    raise ObjectiveError(
        f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}: "
        "class scores (N, C, ...) need class indices (N, ...), one logit (N,) needs 0 or 1 (N,)"
    )


def classes_of(outputs: Tensor, targets: Tensor) -> int:
    """How many classes there are. ObjectiveError: the shapes do not fit each other."""
    return _classes(outputs, targets)[2]


class Accuracy:
    """Share of right classes. Targets below 0 are left out, as in CrossEntropyLoss (ignore_index)."""

    def __init__(self, top: int = 1, error: bool = False) -> None:
        self._top, self._error = top, error
        self.reset()

    def reset(self) -> None:
        self._right: Tensor | int = 0
        self._seen: Tensor | int = 0

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        predicted, true, classes = _classes(outputs, targets)
        if self._top == 1 or classes <= 2:
            right = predicted == true
        else:
            best = outputs.movedim(1, -1).flatten(0, -2).topk(min(self._top, classes), dim=1).indices
            right = (best == true[:, None]).any(1)
        counted = true >= 0
        self._right = self._right + (right & counted).sum()
        self._seen = self._seen + counted.sum()

    def compute(self) -> float:
        seen = int(self._seen)
        share = int(self._right) / seen if seen else float("nan")
        return 1 - share if self._error else share


class Confusion:
    """Counts of (true, predicted) pairs, (C, C), and a summary of them. Targets below 0 are left out."""

    def __init__(self, summary: Callable[[Tensor], Tensor]) -> None:
        self._summary = summary
        self.reset()

    def reset(self) -> None:
        self._counts: Tensor | None = None

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        predicted, true, classes = _classes(outputs, targets)
        if self._counts is None:
            self._counts = torch.zeros(classes * classes, dtype=torch.int64, device=outputs.device)
        # Not torch.bincount, which waits for the device to learn the largest value.
        cells = true.clamp(min=0) * classes + predicted
        self._counts = self._counts.scatter_add(0, cells, (true >= 0).long())

    @property
    def counts(self) -> Tensor | None:
        """The counts so far, (C, C) int64 on the CPU, true classes by predicted ones; None before the first."""
        if self._counts is None:
            return None
        side = round(self._counts.numel() ** 0.5)
        return self._counts.view(side, side).cpu()

    def compute(self) -> float:
        counts = self.counts
        return float("nan") if counts is None else float(self._summary(counts.double()))


def _balanced_accuracy(counts: Tensor) -> Tensor:
    """Mean recall of the classes that occur among the targets, as scikit-learn's balanced_accuracy_score."""
    true = counts.sum(1)
    return (counts.diagonal() / true)[true > 0].mean()


def _macro_f1(counts: Tensor) -> Tensor:
    """Mean F1 of the classes among targets or predictions, as scikit-learn's f1_score(average="macro")."""
    both = counts.sum(0) + counts.sum(1)
    return (2 * counts.diagonal() / both)[both > 0].mean()


class AUROC:
    """Area under the ROC curve, two classes, ties counted half: the Mann-Whitney statistic over n1 * n0."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        _, true, classes = _classes(outputs, targets)
        if classes != 2:
            raise ObjectiveError(f"auroc is for two classes, but the outputs have shape {tuple(outputs.shape)}")
        logits = (
            outputs[:, 1] - outputs[:, 0] if outputs.ndim == targets.ndim + 1 and outputs.shape[1] == 2 else outputs
        )
        self._scores.append(logits.flatten())
        self._targets.append(true)

    def compute(self) -> float:
        scores, true = torch.cat(self._scores).cpu().double(), torch.cat(self._targets).cpu()
        if scores.isnan().any():
            return float("nan")
        positives = int((true == 1).sum())
        negatives = len(true) - positives
        if not positives or not negatives:
            raise ObjectiveError("auroc needs both classes among the validation targets, but found only one")
        _, group, counts = scores.unique(return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0) - (counts - 1) / 2)[group]
        above = ranks[true == 1].sum() - positives * (positives + 1) / 2
        return float(above) / (positives * negatives)


def _same_shape(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, K): a silent (N, 1) - (N,) would broadcast to (N, N)."""
    if outputs.numel() != targets.numel() or len(outputs) != len(targets):
        shapes = f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
        raise ObjectiveError(f"{shapes}: a regression metric needs one output for each target")
    dtype = _sums_dtype(outputs.device)
    return outputs.reshape(len(outputs), -1).to(dtype), targets.reshape(len(targets), -1).to(dtype)


class MeanDistance:
    """Mean of |error| ** power over all targets, and its root when asked: mae, mse, rmse."""

    def __init__(self, power: int, root: bool = False) -> None:
        self._power, self._root = power, root
        self.reset()

    def reset(self) -> None:
        self._total: Tensor | float = 0.0
        self._seen = 0

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        outputs, targets = _same_shape(outputs, targets)
        self._total = self._total + (outputs - targets).abs().pow(self._power).sum()
        self._seen += outputs.numel()

    def compute(self) -> float:
        mean = float(self._total) / self._seen if self._seen else float("nan")
        return mean**0.5 if self._root else mean


class R2:
    """Coefficient of determination, the mean over target columns, as scikit-learn's r2_score.

    The targets' spread is merged batch by batch (Chan, Golub, LeVeque 1983), so that a large offset does
    not cancel it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seen = 0
        self._mean: Tensor | float = 0.0
        self._spread: Tensor | float = 0.0
        self._residual: Tensor | float = 0.0

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        outputs, targets = _same_shape(outputs, targets)
        count, mean = len(targets), targets.mean(0)
        apart, seen = mean - self._mean, self._seen + count
        spread = (targets - mean).square().sum(0)
        self._spread = self._spread + spread + apart.square() * (self._seen * count / seen)
        self._mean = self._mean + apart * (count / seen)
        self._residual = self._residual + (outputs - targets).square().sum(0)
        self._seen = seen

    def compute(self) -> float:
        if not isinstance(self._residual, Tensor) or not isinstance(self._spread, Tensor):
            return float("nan")
        constant = (self._residual == 0).to(self._residual.dtype)  # a constant target: 1 if it is met exactly, else 0
        return float(torch.where(self._spread > 0, 1 - self._residual / self._spread, constant).mean())


_ROWS = (
    MetricRow("accuracy", "maximize", Accuracy, "share of right classes"),
    MetricRow("error", "minimize", lambda: Accuracy(error=True), "share of wrong classes"),
    MetricRow(
        "top5_accuracy",
        "maximize",
        lambda: Accuracy(top=5),
        "share whose class is among the five highest scores",
    ),
    MetricRow("balanced_accuracy", "maximize", lambda: Confusion(_balanced_accuracy), "mean recall over the classes"),
    MetricRow("f1", "maximize", lambda: Confusion(_macro_f1), "mean F1 over the classes (macro)"),
    MetricRow("auroc", "maximize", AUROC, "area under the ROC curve, two classes"),
    MetricRow("mae", "minimize", lambda: MeanDistance(1), "mean absolute error"),
    MetricRow("mse", "minimize", lambda: MeanDistance(2), "mean squared error"),
    MetricRow("rmse", "minimize", lambda: MeanDistance(2, root=True), "root of the mean squared error"),
    MetricRow("r2", "maximize", R2, "coefficient of determination"),
    MetricRow("loss", "minimize", Mean, "validation mean of the objective's own loss"),
)
METRICS: Mapping[str, MetricRow] = MappingProxyType({row.name: row for row in _ROWS})
