"""Every metric of an objective over batches of a split. Called by the trainer, a preview and `dialin check`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from search.metrics import Mean, NamedMetric
from search.objective import Precision, Task
from search.steps import autocast


@torch.inference_mode()
def evaluate(
    task: Task,
    batches: Iterable[Any],
    metrics: Sequence[NamedMetric],
    device: torch.device,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Every metric by name, over all batches. The metrics are reset first; the network is left in eval mode.

    The metric "loss" is fed by the task's own step, the others by its predict, in float32 whatever the
    precision of the network: sums in bfloat16 would have three digits.
    ObjectiveError: a metric computed something that is no number.
    """
    task.net.eval()
    for named in metrics:
        named.metric.reset()
        if callable(move := getattr(named.metric, "to", None)):
            move(device)
    predicted = [named.metric for named in metrics if not isinstance(named.metric, Mean)]
    means = [named.metric for named in metrics if isinstance(named.metric, Mean)]
    for batch in batches:
        if predicted and task.predict is not None:
            with autocast(precision, device):
                outputs, targets = task.predict(task.net, batch)
            if precision != "float32" and isinstance(outputs, Tensor) and outputs.is_floating_point():
                outputs = outputs.float()
            for metric in predicted:
                metric.update(outputs, targets)
        for mean in means:
            with autocast(precision, device):
                total, weight = task.step(task.net, batch)
            mean.update(total, weight)
    return {named.name: named.value() for named in metrics}
