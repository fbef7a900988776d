"""Two curves of one trial side by side, epoch by epoch, as the second one is trained: `search.replay` has it made.

A `search.reporting.Reporter` that writes nothing: it knows what is on record of the trial, and lets training end where
the trial did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

from search.metrics import NamedMetric
from search.printing import number
from search.reporting import EpochResult, Verdict
from storage.outcomes import Outcome
from storage.queries import EpochLine, TrialDetail

Say = Callable[[str], None]
# How numbers that differ are told apart: as few digits as show it. A float64 has seventeen.
DIGITS = (9, 17)


class Likeness(StrEnum):
    """How alike two curves are: bit for bit, near enough, or not."""

    SAME = "same"
    NEAR = "near"
    DIFFERENT = "different"


@dataclass(frozen=True)
class Pair:
    """An epoch as it was recorded and as it came again. `same`: each number that is compared, bit for bit."""

    epoch: int
    recorded: Mapping[str, float]
    replayed: Mapping[str, float]
    same: bool


class Comparing:
    """Says a line an epoch. Of a person's own loop only the searched metric is compared: it may report times, too."""

    def __init__(self, trial: TrialDetail, metric: NamedMetric, *, own_code: bool, length: int, say: Say) -> None:
        """`length`: epochs of a full trial; 0 where nobody knows."""
        self._trial, self._metric, self._own_code, self._say = trial, metric.name, own_code, say
        self._lines = {line.epoch: line for line in trial.epochs}
        self._last = max(self._lines, default=0)
        self._length = length
        self.pairs: list[Pair] = []

    def restore(self) -> None:
        """There is nothing to go on from."""

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        """Nothing is kept."""

    def interrupted(self) -> bool:
        """Ctrl-C raises by itself."""
        return False

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        """Compare it with what is on record; where the trial ended, this ends too."""
        line = self._lines.get(result.epoch)
        failed = self._trial.outcome not in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, None)
        if line is None:
            self._say(f"{self._named(result.epoch)}  not on record")
            return Verdict.GO_ON if failed else Verdict.HAND_BACK
        pair = self._pair(line, result)
        self.pairs.append(pair)
        self._say(f"{self._named(result.epoch)}  {_in_words(pair)}")
        if result.epoch < self._last or failed or self._trial.outcome is Outcome.COMPLETE:
            return Verdict.GO_ON
        return Verdict.HAND_BACK if result.value is None else Verdict.PRUNE

    @property
    def missing(self) -> int:
        """Epochs on record that have not come again."""
        return len(self._lines) - len(self.pairs)

    @property
    def scale(self) -> float:
        """The largest value of the searched metric on record, whatever its sign."""
        values = [abs(self._recorded(line).get(self._metric, math.nan)) for line in self._trial.epochs]
        return max((value for value in values if math.isfinite(value)), default=0.0)

    @property
    def apart(self) -> float | None:
        """The mean distance of the searched metric; infinite where one of two is no finite number, None without any."""
        both = [
            (pair.recorded[self._metric], pair.replayed.get(self._metric, math.nan))
            for pair in self.pairs
            if self._metric in pair.recorded
        ]
        return fmean(distance(recorded, replayed) for recorded, replayed in both) if both else None

    def _pair(self, line: EpochLine, result: EpochResult) -> Pair:
        recorded = self._recorded(line)
        replayed = dict(result.metrics)
        names = [self._metric] if self._own_code and self._metric in recorded else [*recorded]
        same = all(distance(recorded[name], replayed.get(name, math.nan)) == 0 for name in names)
        return Pair(line.epoch, {name: recorded[name] for name in names}, replayed, same)

    def _recorded(self, line: EpochLine) -> dict[str, float]:
        """A step that was reported through plain Optuna has its value alone."""
        return dict(line.metrics) or ({} if line.value is None else {self._metric: line.value})

    def _named(self, epoch: int) -> str:
        width, of = len(str(max(self._length, self._last))), f"/{self._length}" if self._length else ""
        return f"epoch {epoch:>{width}}{of}"


def distance(one: float, other: float) -> float:
    """How far apart; 0 for two that are NaN, and for two infinities of one sign."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    apart = abs(one - other)
    return math.inf if math.isnan(apart) else apart


def _in_words(pair: Pair) -> str:
    """`accuracy 0.9721  loss 0.0834  same`, or what it was of each number that differs."""
    shown = [name for name in pair.recorded if name != "lr"] or [*pair.recorded]
    said = [_both(name, pair.recorded[name], pair.replayed.get(name)) for name in shown]
    return "  ".join([*said, "same"] if pair.same else said)


def _both(name: str, recorded: float, replayed: float | None) -> str:
    if replayed is None:
        return f"{name} is not reported (was {number(recorded)})"
    if distance(recorded, replayed) == 0:
        return f"{name} {number(replayed)}"
    forms = [(number(recorded), number(replayed))]
    forms += [(f"{recorded:.{digits}g}", f"{replayed:.{digits}g}") for digits in DIGITS]
    was, now = next((form for form in forms if form[0] != form[1]), forms[-1])
    return f"{name} {now} (was {was})"
