"""Pictures of the best trials: the learning curve, and a confusion matrix or the residuals of its best weights.

They are hung on the trial as Optuna artifacts, so that `dialin dashboard` shows them on the trial's page. Only trials
whose weights are kept get any (`storage.retention`). `search.trackers.figures` draws.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from search.errors import ObjectiveError
from search.metrics import Confusion, classes_of
from search.trackers import figures
from search.trackers.tracker import Ending, Point, TrialInfo

# A matrix of more classes shows nothing on a screen, and its cells are counted on the training device.
MOST_CLASSES = 1000
# So many pairs of a regression are kept, spread evenly over the split.
MOST_PAIRS = 50_000


class Plots:
    """Gathers the curve, and draws when a trial is complete. Needs no folder of its own."""

    def __init__(self, _folder: Path) -> None:
        self._info: TrialInfo | None = None
        self._points: list[Point] = []

    def start(self, info: TrialInfo) -> None:
        self._info, self._points = info, list(info.history)

    def epoch(self, point: Point) -> None:
        self._points.append(point)

    def end(self, ending: Ending) -> None:
        info, self._info = self._info, None
        if info is None or info.attach is None or not ending.kept:
            return
        with tempfile.TemporaryDirectory() as folder:
            # One after the other: the curve is there even if a person's predict raises.
            for name, draw in self._drawn(info, ending):
                figures.save(draw, path := Path(folder, name))
                info.attach(path)

    def _drawn(self, info: TrialInfo, ending: Ending) -> Iterator[tuple[str, Figure]]:
        if self._points:
            yield "learning-curve.png", figures.learning_curve(info, self._points, ending)
        seen = Seen()
        if ending.predict is None or not seen.look(ending.predict()):
            return
        if (counts := seen.counts) is not None:
            yield "confusion-matrix.png", figures.confusion_matrix(info, counts, ending)
        else:
            yield "residuals.png", figures.residuals(info, *seen.pairs, ending)


class Seen:
    """What outputs and targets come to, batch by batch: counts of classes, or pairs of numbers.

    Integer targets are classes, and so are floating ones if all are 0 or 1, with one logit for each.
    """

    def __init__(self) -> None:
        self._confusion: Confusion | None = Confusion(lambda counts: counts.sum())
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._every = 1

    def look(self, batches: Iterable[tuple[Any, Any]]) -> bool:
        """Take them all in. False: there is nothing to draw, as what they are is for the objective alone to know."""
        seen = False
        for outputs, targets in batches:
            if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
                return False
            if not (self._numbers if targets.is_floating_point() else self._classes)(outputs, targets):
                return False
            seen = True
        return seen

    @property
    def counts(self) -> Tensor | None:
        """(C, C) int64 on the CPU, true classes by predicted ones; None for a regression."""
        return self._confusion.counts if self._confusion is not None else None

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Predicted and true values, (N,) float32 on the CPU, about MOST_PAIRS at most."""
        return torch.cat(self._outputs), torch.cat(self._targets)

    def _classes(self, outputs: Tensor, targets: Tensor) -> bool:
        try:
            few = classes_of(outputs, targets) <= MOST_CLASSES
        except ObjectiveError:  # a metric of one's own may take what has another shape
            return False
        if few and self._confusion is not None:
            self._confusion.update(outputs, targets)
        return few and self._confusion is not None

    def _numbers(self, outputs: Tensor, targets: Tensor) -> bool:
        if outputs.numel() != targets.numel() or len(outputs) != len(targets):
            return False
        predicted, true = outputs.flatten().float(), targets.flatten().float()
        if self._confusion is not None:
            if bool(((true == 0) | (true == 1)).all()):
                self._confusion.update(predicted, true)
            else:
                self._confusion = None
        self._outputs.append(predicted[:: self._every].cpu())
        self._targets.append(true[:: self._every].cpu())
        if sum(map(len, self._outputs)) > MOST_PAIRS:
            self._every *= 2
            self._outputs, self._targets = [torch.cat(self._outputs)[::2]], [torch.cat(self._targets)[::2]]
        return True
