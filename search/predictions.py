"""What the best weights of a trial say of the validation split, a batch at a time: for the pictures of a trial.

The worker hands it to its trackers. Nothing is gathered here: outputs for a whole split may not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from search.batches import EvaluationBatches
from search.data import Data, Folds
from search.objective import Precision, Task
from search.steps import autocast


class Cut(Exception):
    """The worker is wanted elsewhere: there will be no more batches."""

    def __str__(self) -> str:
        return "the worker was interrupted"


def predictions(
    task: Task,
    data: Data | Folds,
    batch_size: int,
    *,
    device: torch.device,
    weights: dict[str, Any],
    interrupted: Callable[[], bool],
    precision: Precision = "float32",
) -> Iterator[tuple[Any, Any]]:
    """(outputs, targets) of each batch of the validation split, as the task's `predict` gives them, outputs in float32.

    Args:
        task: as it was trained; its network gets `weights`.
        data: of folds, each one's validation split is asked of that fold's weights.
        weights: a state_dict, or as `search.training` has them of folds: theirs by `fold-1`, `fold-2` and so on.
        batch_size: the recipe's; batches to evaluate are larger.
        interrupted: asked before each batch.

    Raises:
        Cut: it said yes.
    """
    assert task.predict is not None
    net = task.net.to(device)
    for number, part in enumerate(data.folds, start=1):
        net.load_state_dict(weights[f"fold-{number}"] if isinstance(data, Folds) else weights)
        net.eval()
        for batch in EvaluationBatches(part.valid, part, batch_size, device=device):
            if interrupted():
                raise Cut
            with torch.inference_mode(), autocast(precision, device):
                outputs, targets = task.predict(net, batch)
            half = precision != "float32" and isinstance(outputs, Tensor) and outputs.is_floating_point()
            yield (outputs.float() if half else outputs), targets
