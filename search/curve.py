"""One recipe on one training and validation split, epoch by epoch: the loop, and the state it goes on from.

Made by `search.training` for each trial, and for each fold of one; nothing here knows who is reported to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from search.batches import EvaluationBatches, TrainingBatches
from search.data import Data
from search.evaluation import evaluate
from search.graphed import possible
from search.metrics import Mean
from search.micro_batch_size import MicroBatchSize
from search.objective import Objective, Task
from search.optimizers import build_for, load_state
from search.randomness import random_state, restore_random_state
from search.reporting import EpochResult, Interrupted, Result
from search.snapshots import copied
from search.space import Recipe
from search.steps import Stepper
from storage.outcomes import Outcome
from storage.words import counted

# On an accelerator each look at the loss waits for the device, so there it is looked at no more often than that.
# Nothing is missed: what is looked at is the sum, in which NaN and infinity stay.
LOOK_SECONDS = 1.0


# Called with the batches so far of an epoch and what makes the state after them.
BetweenBatches = Callable[[int, Callable[[], dict[str, Any]]], None]


@dataclass
class _Begun:
    """An epoch in flight: its batches so far, their losses, where drawing them stands, seconds of owners before."""

    batches: int = 0
    losses: Mean = field(default_factory=Mean)
    drawn: dict[str, Any] | None = None
    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """How long it has been trained."""
        return self.before + time.perf_counter() - self.started


@dataclass
class _Best:
    value: float
    epoch: int
    weights: dict[str, Any]


class Curve:
    """`epochs()` trains and yields each epoch; between two of them `state()` is all that a restart needs.

    epoch: the last one trained, 0 before the first. best: the epoch whose value and weights count, which is the
    last one if the objective says value="last"; with an average of the weights, the weights are the average.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        recipe: Recipe,
        objective: Objective,
        device: torch.device,
        seed: int,
        micro_batch: MicroBatchSize,
    ) -> None:
        """`micro_batch`: how much of a batch fits into memory at a time, of all folds of a trial."""
        self._task, self._objective, self._device, self._micro_batch = task, objective, device, micro_batch
        task.net.to(device)
        optimizer = build_for(task, recipe, recorded=possible(objective, task.net, device))
        self._stepper = Stepper(task, optimizer, objective, device, micro_batch)
        self._batches = TrainingBatches(
            data, task.augment, recipe.batch_size, seed=seed, device=device, epoch_batches=objective.epoch_batches
        )
        # The same for all recipes of a study: a loss that compares the samples of a batch depends on how many they are.
        fits = max(recipe.batch_size, *objective.batch_sizes)
        self._held_out = EvaluationBatches(data.valid, data, fits, device=device)
        steps = -(-len(self._batches) // objective.accumulate)
        self._rates: list[float] = (recipe.lr * recipe.factors(objective.epochs * steps)).tolist()
        self._metrics = objective.metrics
        self._searched = self._metrics[0]
        self.epoch = self._step = 0
        self._looked = time.monotonic()
        self.best: _Best | None = None
        self._begun: _Begun | None = None  # the epoch after that one, where a checkpoint was taken within it
        self._peak: tuple[float, int] | None = None  # the best value so far and its epoch, which patience counts from

    def epochs(self, interrupted: Callable[[], bool], between: BetweenBatches) -> Iterator[EpochResult]:
        """Train on, epoch by epoch, until the curve is over. A value of NaN says that the epoch diverged.

        `between` is called between two batches, and before the evaluation, wherever training could go on from.

        Raises:
            Interrupted: `interrupted`, asked before each batch, said so.
        """
        while not self.over:
            self.epoch += 1
            begun, self._begun = self._begun or _Begun(), None
            self._train_epoch(begun, interrupted, between)
            losses = begun.losses
            values = {
                self._searched.name: math.nan,
                "train_loss": losses.compute(),
                "lr": self._rates[max(0, self._step - 1)],
            }
            with self._stepper.averaged():
                if losses.finite():
                    values |= self._evaluate(interrupted)
                value = self._judge(values)
            yield EpochResult(self.epoch, value, values, begun.seconds, self._batches.samples(self.epoch))

    def _train_epoch(self, begun: _Begun, interrupted: Callable[[], bool], between: BetweenBatches) -> None:
        """One epoch from where it was left, or as much of it as has a finite loss."""
        losses, stepper = begun.losses, self._stepper
        stepper.start_epoch()
        batches = self._batches.epoch(self.epoch, begun.batches, begun.drawn)
        for batch in _asking(interrupted, batches, len(self._batches) - begun.batches):
            total, weight = stepper.take(batch)
            losses.update(total, weight)
            if self._time_to_look() and not losses.finite():
                return
            begun.batches += 1
            if stepper.full or begun.batches == len(self._batches):
                self._take_step()
                between(begun.batches, lambda: self._state_within(begun))

    def _take_step(self) -> None:
        self._stepper.step(self._rates[self._step])
        self._step += 1

    def _evaluate(self, interrupted: Callable[[], bool]) -> dict[str, float]:
        """Every metric by name; with the weights laid as usual where the network cannot work with another layout."""

        def values() -> dict[str, float]:
            held_out = _asking(interrupted, iter(self._held_out), len(self._held_out))
            precision = self._objective.precision
            return evaluate(self._task, held_out, self._metrics, self._device, precision, self._micro_batch)

        try:
            return values()
        except RuntimeError as error:
            if not self._stepper.layout.refused(error):
                raise
        self._stepper.layout.undo()
        return values()

    def _judge(self, values: dict[str, float]) -> float:
        """The epoch's value, NaN if it is not finite. The weights are copied when the epoch is the one that counts."""
        value = values[self._searched.name]
        if not math.isfinite(value):
            return math.nan
        if self._peak is None or self._searched.better(value, than=self._peak[0]):
            self._peak = (value, self.epoch)
        if self._objective.value == "last" or self._peak[1] == self.epoch:
            self.best = _Best(value, self.epoch, self._weights())
        return value

    def _weights(self) -> dict[str, Any]:
        return copied(self._task.net.state_dict(), torch.contiguous_format)  # whatever layout trains fastest

    def _time_to_look(self) -> bool:
        if self._device.type == "cpu":
            return True
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        return True

    @property
    def over(self) -> bool:
        """Whether no epoch is left, or the objective's patience is at an end."""
        patience, peak = self._objective.patience, self._peak
        impatient = patience is not None and peak is not None and self.epoch - peak[1] >= patience
        return impatient or self.epoch >= self._objective.epochs

    def state(self) -> dict[str, Any]:
        """Everything training goes on from: CPU copies that later training does not change; see `restore`."""
        best = self.best
        # With an average the best weights are its, not those that go on training.
        current = best is not None and best.epoch == self.epoch and self._objective.ema is None
        return {
            "epoch": self.epoch,
            "step": self._step,
            "model": best.weights if best and current else self._weights(),
            "optimizer": copied(self._stepper.optimizer.state_dict()),
            "options": self._stepper.state(),
            "best": best and {"value": best.value, "epoch": best.epoch, "weights": best.weights},
            "peak": self._peak and list(self._peak),
            "random": random_state(self._device),
        }

    def _state_within(self, begun: _Begun) -> dict[str, Any]:
        """The same, of an epoch in flight."""
        within = {
            "batches": begun.batches,
            "losses": begun.losses.state(),
            "drawn": self._batches.state(),
            "seconds": begun.seconds,
        }
        return {**self.state(), "epoch": self.epoch - 1, "within": within}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a `state`; None: from the start."""
        if state is None:
            return
        self.epoch, self._step = state["epoch"], state["step"]
        self._task.net.load_state_dict(state["model"])
        # torch takes an optimizer's tensors as they are and would then train in the caller's state.
        load_state(self._stepper.optimizer, copied(state["optimizer"]))
        self._stepper.restore(state.get("options", {}))  # a checkpoint from before there were options has none
        self.best = _Best(**state["best"]) if state["best"] else None
        value, epoch = state.get("peak") or ((self.best.value, self.best.epoch) if self.best else (math.nan, 0))
        self._peak = (value, epoch) if self.best else None
        if within := state.get("within"):
            self._begun = _Begun(within["batches"], drawn=within["drawn"], before=within["seconds"])
            self._begun.losses.restore(within["losses"], self._device)
        restore_random_state(state["random"], self._device)

    def result(self, outcome: Outcome, reason: str = "") -> Result:
        """How it ended, with the value and the weights of the epoch that counts."""
        if self.best is None:
            return Result(outcome, reason=reason)
        return Result(outcome, self.best.value, self.best.epoch, reason, self.best.weights)

    def why_over(self) -> str:
        """What to say of a complete curve: nothing, or that patience ended it."""
        patience = self._objective.patience
        if self.epoch >= self._objective.epochs or self._peak is None or patience is None:
            return ""
        return f"no better than in epoch {self._peak[1]} for {counted(patience, 'epoch')}"

    def why_diverged(self, values: dict[str, float]) -> str:
        """What was no number in the last epoch."""
        lost = self._searched.name if math.isfinite(values["train_loss"]) else "train_loss"
        return f"{lost} is {values[lost]} in epoch {self.epoch}"


def _asking(interrupted: Callable[[], bool], batches: Iterator[Any], count: int) -> Iterator[Any]:
    """So many batches, with Interrupted raised before one is drawn that is not wanted any more.

    Not after it is drawn: training would end there with batches behind it that no checkpoint has, since the reporter
    was asked between two batches, before the time was up.
    """
    for _ in range(count):
        if interrupted():
            raise Interrupted
        yield next(batches)
