"""A person's own training loop: `train(run)` is handed a `Run`, which stands for the trial and the world around it.

    def train(run):
        net = nn.Linear(64, 10).to(run.device)
        optimizer = run.recipe.optimizer(net)
        schedule = run.recipe.schedule(optimizer, steps_per_epoch=len(loader))
        run.keep(net=net, optimizer=optimizer, schedule=schedule)
        for epoch in run.epochs:
            ...                              # train one epoch, schedule.step() after each optimizer.step()
            run.report(accuracy=accuracy)

    objective = Objective(train=train, metric="accuracy", epochs=15)

Called by the worker through `play`. Like the training loop it knows no SQL: it is handed a `Reporter`.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

import optuna
import torch
from torch import nn

from search import optimizers
from search.errors import ObjectiveError
from search.failures import line_of, out_of_memory
from search.narrowing import narrowed
from search.objective import Objective
from search.randomness import random_state, restore_random_state
from search.reporting import EpochResult, Interrupted, Paused, Reporter, Result, Verdict
from search.snapshots import copied
from search.space import Recipe
from storage.outcomes import Outcome


class Stateful(Protocol):
    """What a checkpoint can hold: a network, an optimizer, a schedule, a gradient scaler."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Diverged(BaseException):
    """The searched metric is no finite number: the trial ends. Caught by `play`, as Interrupted by the worker."""


class OwnRecipe:
    """The sampled recipe as an own loop uses it; `settings` has all of it as plain values, with torch's names."""

    def __init__(self, recipe: Recipe, epochs: int) -> None:
        self._recipe = recipe
        self._epochs = epochs
        self.settings: Mapping[str, Any] = recipe.as_dict()
        self.batch_size = recipe.batch_size
        self.lr = recipe.lr
        self.momentum = recipe.momentum
        self.betas = recipe.betas
        self.weight_decay = recipe.weight_decay

    def __str__(self) -> str:
        return self._recipe.summary()

    def optimizer(
        self, net: nn.Module, groups: Iterable[Mapping[str, Any]] | None = None, *, lr_scale: float = 1.0
    ) -> torch.optim.Optimizer:
        """The sampled optimizer for `net`, no weight decay on biases and norms; one for each network of several.

        groups: torch parameter groups in place of all of the network's parameters, "lr_scale" in one its rate
        relative to the recipe's. lr_scale: the whole optimizer's. ObjectiveError: nothing can be trained.
        """
        given: Iterable[Mapping[str, Any]] = groups if groups is not None else [{"params": list(net.parameters())}]
        scaled = [{**group, "lr_scale": lr_scale * group.get("lr_scale", 1.0)} for group in given]
        return optimizers.build(self._recipe, net, scaled)

    def schedule(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int = 1) -> torch.optim.lr_scheduler.LambdaLR:
        """The sampled schedule with its warm-up, over all epochs; call its `step()` after each optimizer step.

        steps_per_epoch: how many there are in an epoch. With 1 it is stepped once an epoch.
        """
        if steps_per_epoch < 1:
            raise ObjectiveError(f"steps_per_epoch must be at least 1, but got {steps_per_epoch}")
        table = self._recipe.factors(self._epochs * steps_per_epoch).tolist()
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: table[min(step, len(table) - 1)])


class Run:
    """One trial of an own loop.

    trial: suggests the loop's own knobs. device, seed: where to train and what everything is seeded with already.
    data: the folder that --data names. length: the epochs of a full trial.
    """

    def __init__(
        self,
        trial: optuna.trial.BaseTrial,
        objective: Objective,
        *,
        device: torch.device,
        seed: int,
        data: Path,
        folder: Callable[[], Path],
        reporter: Reporter,
        sample: Callable[[], Recipe],
        recorded: Callable[[], Mapping[int, float]] = dict,
    ) -> None:
        """`folder()` makes `dir`, and `sample()` the recipe when the loop asks for one.

        `recorded()` gives the values on record by epoch, also those of owners before.
        """
        self.trial: Any = narrowed(trial, objective.knobs)
        self.device, self.seed, self.data = device, seed, data
        self.length = objective.epochs
        self._objective, self._metric = objective, objective.searched
        self._folder, self._reporter = folder, reporter
        self._sample, self._recorded = sample, recorded
        self._recipe: OwnRecipe | None = None
        self._dir: Path | None = None
        self._kept: dict[str, Stateful] = {}
        self._loaded: dict[str, Any] | None = None
        self._asked = False
        self._best: dict[str, Any] | None = None
        self._peak: tuple[float, int] | None = None  # the best value so far and its epoch, which patience counts from
        self._last = 0
        self._since = time.perf_counter()

    @property
    def recipe(self) -> OwnRecipe:
        """Optimizer, rate, momentum, L2, batch size and schedule, sampled when it is first asked for."""
        if self._recipe is None:
            self._recipe = OwnRecipe(self._sample(), self.length)
        return self._recipe

    @property
    def dir(self) -> Path:
        """A folder of this trial's own. Whoever goes on with the trial finds in it what its owner before left."""
        if self._dir is None:
            self._dir = self._folder()
        return self._dir

    @property
    def epoch(self) -> int:
        """The last epoch that was reported, 0 before the first; of a trial that goes on, its checkpoint's."""
        if self._last == 0 and (state := self._checkpoint()) is not None:
            return int(state["epoch"])
        return self._last

    @property
    def over(self) -> bool:
        """Whether nothing is left to train: all epochs are reported, or it is out of patience."""
        return self._last >= self.length or self._out_of_patience()

    def keep(self, **parts: Stateful) -> None:
        """Name what a checkpoint holds. In a trial that goes on, each is put back to where the checkpoint was.

        The weights of the networks among them are those of the best epoch in the end. ObjectiveError: one has no
        state_dict, or a state that cannot be read back safely.
        """
        for name, part in parts.items():
            if not callable(getattr(part, "state_dict", None)) or not callable(getattr(part, "load_state_dict", None)):
                raise ObjectiveError(
                    f"run.keep({name}=...) needs state_dict and load_state_dict, as {part!r:.60} has not"
                )
            _check_readable(name, part)
        self._kept |= parts
        state = self._checkpoint()
        if state is None:
            return
        for name, part in parts.items():
            if name not in state["kept"]:
                raise ObjectiveError(f"the checkpoint of this trial holds {', '.join(state['kept'])}, but no {name!r}")
            # torch takes an optimizer's tensors as they are and would then train in the checkpoint's.
            part.load_state_dict(copied(state["kept"][name]))

    @property
    def epochs(self) -> Iterator[int]:
        """The epochs still to train, from 1 or after the checkpoint of what is kept. Each must be reported."""
        state = self._checkpoint() if self._kept else None
        if state is not None:
            self.go_on_after(state["epoch"])
            restore_random_state(state["random"], self.device)
        self._since = time.perf_counter()
        for epoch in range(self._last + 1, self.length + 1):
            if self._out_of_patience():
                return
            yield epoch
            if self._last != epoch:
                raise ObjectiveError(f"epoch {epoch} ended without run.report({self._metric.name}=...)")

    def report(self, *, epoch: int | None = None, **metrics: SupportsFloat) -> None:
        """Record an epoch: its metrics, a checkpoint where one is due; the lease is renewed.

        epoch: its number from 1, for a framework that counts itself; by default the next. The searched metric
        must be among `metrics`, which become floats. Raises optuna.TrialPruned when others do better, and what
        ends the loop when the trial was handed back, is paused or has diverged: let them pass.
        ObjectiveError: the searched metric is missing, or one is no number.
        """
        number = epoch if epoch is not None else self._last + 1
        if epoch is not None and self._last == 0 and epoch > 1:
            self.go_on_after(epoch - 1)
        values = {name: _as_float(name, value) for name, value in metrics.items()}
        if self._metric.name not in values:
            raise ObjectiveError(f"run.report got {', '.join(values) or 'nothing'}, but no {self._metric.name!r}")
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        self._last = number
        value = self._judge(values[self._metric.name])
        own_files = epoch is not None or self._dir is not None  # in which it may go on after any epoch it has reported
        result = EpochResult(number, value, values, seconds, 0, resumable=bool(self._kept), at_once=own_files)
        verdict = self._reporter.report(result, self._state)
        if math.isnan(value):
            raise Diverged
        if verdict is Verdict.PAUSE and not self.over:
            raise Paused
        if verdict is Verdict.HAND_BACK:
            raise Interrupted
        if verdict is Verdict.PRUNE and number < self.length:
            raise optuna.TrialPruned(f"pruned after epoch {number} of {self.length}")

    def result(self, outcome: Outcome, reason: str = "") -> Result:
        """How it ended, with the best epoch's value and weights, or the last one's where the objective says so."""
        best = self._best
        if best is None:
            return Result(outcome, reason=reason)
        return Result(outcome, best["value"], best["epoch"], reason, best["weights"])

    def _checkpoint(self) -> dict[str, Any] | None:
        if not self._asked:
            self._asked, self._loaded = True, self._reporter.restore()
        return self._loaded

    def go_on_after(self, epoch: int) -> None:
        """A framework has loaded its own checkpoint of this epoch. Later ones are trained again.

        What is on record of the epochs up to this one counts for the trial's value.
        """
        state = self._checkpoint()
        self._last = epoch
        if state is not None and state["best"] is not None and state["best"]["epoch"] <= epoch:
            self._best, self._peak = state["best"], state.get("peak")
        for number, value in sorted(self._recorded().items()):
            if number <= epoch and math.isfinite(value):
                self._note(number, value, lambda: None)  # the weights died with who had them

    def _judge(self, value: float) -> float:
        """The value, NaN if it is not finite. The weights are copied when it is the best so far, or always the last."""
        if not math.isfinite(value):
            return math.nan
        self._note(self._last, value, self._weights)
        return value

    def _note(self, epoch: int, value: float, weights: Callable[[], dict[str, Any] | None]) -> None:
        if self._peak is None or self._metric.better(value, than=self._peak[0]):
            self._peak = value, epoch
        if self._is_to_be_told(epoch, value):
            self._best = {"value": value, "epoch": epoch, "weights": weights()}

    def _is_to_be_told(self, epoch: int, value: float) -> bool:
        """Whether the trial's value is this epoch's: better than what there is, or later where the last one counts."""
        best = self._best
        if best is None or self._objective.value == "last":
            return best is None or epoch > best["epoch"]
        return self._metric.better(value, than=best["value"])

    def _weights(self) -> dict[str, Any] | None:
        """The state_dict of the one network that is kept; of several, theirs by name."""
        found = {name: copied(part.state_dict()) for name, part in self._kept.items() if isinstance(part, nn.Module)}
        return next(iter(found.values())) if len(found) == 1 else found or None

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self._last,
            "kept": {name: copied(part.state_dict()) for name, part in self._kept.items()},
            "best": self._best,
            "peak": self._peak,
            "random": random_state(self.device),
        }

    def _out_of_patience(self) -> bool:
        patience = self._objective.patience
        return patience is not None and self._peak is not None and self._last - self._peak[1] >= patience


def play(run: Run, objective: Objective) -> Result:
    """Call the objective's own loop; how it ended. What it raises passes, but for pruning, divergence and memory.

    ObjectiveError: it came to an end without a report.
    """
    assert objective.train is not None
    try:
        objective.train(run)
    except optuna.TrialPruned as pruned:
        return run.result(Outcome.PRUNED, str(pruned) or "pruned by the objective")
    except Diverged:
        return run.result(Outcome.DIVERGED, f"{objective.searched.name} is not finite in epoch {run.epoch}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return Result(Outcome.OUT_OF_MEMORY, reason=f"out of memory: {line_of(error)}")
    result = run.result(Outcome.COMPLETE)
    if result.value is None:
        raise ObjectiveError(f"train(run) ended without run.report({objective.searched.name}=...)")
    return result


def _as_float(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ObjectiveError(f"run.report({name}=...) must be one number, but got {value!r:.60}") from None


def _check_readable(name: str, part: Stateful) -> None:
    """A checkpoint is read back with `weights_only`: what that refuses is said now, not after a crash."""
    file = io.BytesIO()
    try:
        torch.save(part.state_dict(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise ObjectiveError(
            f"run.keep({name}=...): its state_dict cannot be kept, only tensors and plain values can: "
            f"{str(error).splitlines()[0]:.120}"
        ) from None
