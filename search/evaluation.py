"""Every metric of an objective over batches of a split. Called by the trainer, a preview and `dialin check`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from search.failures import out_of_memory
from search.metrics import Mean, NamedMetric
from search.micro_batch_size import MicroBatchSize
from search.micro_batches import count, cut, free, head, same
from search.objective import Precision, Task
from search.steps import autocast

# Outputs with targets, and sum of losses with their weight; None where no metric asks for them.
Seen: TypeAlias = tuple[Any, Any]


@torch.inference_mode()
def evaluate(
    task: Task,
    batches: Iterable[Any],
    metrics: Sequence[NamedMetric],
    device: torch.device,
    precision: Precision = "float32",
    micro_batch: MicroBatchSize | None = None,
) -> dict[str, float]:
    """Every metric by name, over all batches. The metrics are reset first; the network is left in eval mode.

    The metric "loss" is fed by the task's own step, the others by its predict, in float32 whatever the
    precision of the network: sums in bfloat16 would have three digits. A batch that does not fit into memory is
    fed in parts: metrics are sums over however many batches; `micro_batch` remembers how much did fit.
    ObjectiveError: a metric computed something that is no number.
    """
    task.net.eval()
    for named in metrics:
        named.metric.reset()
        if callable(move := getattr(named.metric, "to", None)):
            move(device)
    predicted = [named.metric for named in metrics if not isinstance(named.metric, Mean)]
    means = [named.metric for named in metrics if isinstance(named.metric, Mean)]

    def look(batch: Any) -> tuple[Any, Any]:
        pair = _predicted(task, batch, device, precision) if predicted and task.predict is not None else None
        with autocast(precision, device):
            return pair, task.step(task.net, batch) if means else None

    for batch in batches:
        for pair, summed in _looked_at(batch, look, micro_batch or MicroBatchSize(), device):
            for metric in predicted if pair is not None else ():
                metric.update(*pair)
            for mean in means:
                mean.update(*summed)
    return {named.name: named.value() for named in metrics}


def _predicted(task: Task, batch: Any, device: torch.device, precision: Precision) -> tuple[Any, Any]:
    assert task.predict is not None
    with autocast(precision, device):
        outputs, targets = task.predict(task.net, batch)
    if precision != "float32" and isinstance(outputs, Tensor) and outputs.is_floating_point():
        outputs = outputs.float()
    return outputs, targets


def _looked_at(
    batch: Any, look: Callable[[Any], Seen], micro_batch: MicroBatchSize, device: torch.device
) -> Iterator[Seen]:
    """What `look` makes of the batch, or of its parts where it does not fit. Nothing is looked at twice in vain."""
    samples = count(batch)
    todo = [batch] if samples is None or micro_batch.evaluated is None else cut(batch, micro_batch.evaluated)
    while todo:
        part, begins = todo[0], head(todo[0], 1) if samples is not None else None
        try:
            seen = look(part)
        except (MemoryError, RuntimeError) as error:
            # A network that works in place has left nothing to cut.
            if not out_of_memory(error) or (count(part) or 1) == 1 or not same(begins, head(part, 1)):
                raise
            seen = None
        if seen is None:  # only now: the exception held the frames, and they the tensors
            free(device)
            micro_batch.evaluated = -(-(count(part) or 1) // 2)
            todo[:1] = cut(part, micro_batch.evaluated)
            continue
        yield seen
        del todo[0]
