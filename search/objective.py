"""What a person writes: one `Objective` in one module, from a model, its data, a loss and a metric.

    objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), metric="accuracy", epochs=15)

Read by everything that trains, checks or describes an objective. Nothing here touches a file, a database or
a device.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from search import narrowing, optimizers, schedules
from search.arguments import NamedArguments, at_least_one, choices, one_of, positive
from search.data import Data, Folds
from search.errors import ObjectiveError
from search.metrics import Direction, Metric, NamedMetric, reported, resolve
from search.optimizers import OPTIMIZERS, Optimizer
from search.schedules import SCHEDULES, Schedule

if TYPE_CHECKING:
    import optuna

    from search.loop import Run

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Measured: TypeAlias = str | Metric | NamedMetric
Groups: TypeAlias = Callable[[nn.Module], list[dict[str, Any]]]
Precision = Literal["float32", "bf16", "fp16"]
Value = Literal["best", "last"]
# Options that a training loop of a person's own sees to itself.
OF_DIALINS_LOOP = ("precision", "clip_norm", "accumulate", "ema", "epoch_batches", "parameters", "at_most")
# What Dialin measures of a trial, for a constraint: numbers that the network learns, the mean time of an epoch, and
# bytes of a GPU's memory.
MEASURED = ("parameters", "epoch_seconds", "memory")


@dataclass(frozen=True)
class Task(NamedArguments):
    """A network that knows how to train on a batch of its own data, of any structure: tuples, dicts, nested.

    step(net, batch) -> (sum of the losses in the batch, how many they are): the trainer goes down on their
        quotient, and a training loss is the quotient of their sums, so a partial batch counts right. For
        the metric "loss" it is also called on validation batches, with net.eval() and without gradients.
    predict(net, batch) -> (outputs, targets), for every metric but "loss"; leave it out when "loss" is the
    only one.
    augment(batch, generator) -> batch, on training batches only; the generator lives on the device of the
    batch.
    parameters(net) -> torch parameter groups, for frozen parts and rates of their own: "lr_scale" in a
        group is its rate relative to the recipe's. Without it all parameters that require a gradient are
        one group.
    """

    net: nn.Module
    step: Callable[[nn.Module, Any], tuple[Tensor, Tensor | float]]
    predict: Callable[[nn.Module, Any], tuple[Tensor, Tensor]] | None = None
    augment: Callable[[Any, torch.Generator], Any] | None = None
    parameters: Groups | None = None


def supervised(net: nn.Module, loss: Loss) -> Task:
    """A network and a loss that is a mean. The last tensor of a batch is its targets, the rest go in."""
    criterion = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
    has_state = isinstance(criterion, nn.Module) and bool([*criterion.parameters(), *criterion.buffers()])

    def predict(net: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        *inputs, targets = batch
        return net(*inputs), targets

    def step(net: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, float]:
        outputs, targets = predict(net, batch)
        if has_state and isinstance(criterion, nn.Module):  # class weights follow the network to its device
            criterion.to(targets.device)
        mean = _in_full_precision(criterion, outputs, targets)
        if mean.ndim > 0 and mean.numel() > 1:
            raise ObjectiveError(f"loss must be one number, the mean over the batch, but has shape {tuple(mean.shape)}")
        return (mean.squeeze() if mean.ndim else mean) * len(targets), len(targets)

    return Task(net, step, predict)


def _in_full_precision(criterion: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss in float32 where the network computes under autocast, which refuses some losses altogether."""
    kind = targets.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return criterion(outputs, targets)
    with torch.autocast(kind, enabled=False):
        floating = isinstance(outputs, Tensor) and outputs.is_floating_point()
        return criterion(outputs.float() if floating else outputs, targets)


@dataclass(frozen=True)
class Objective(NamedArguments):
    """What is searched: a model and its data, what counts as good, and how long one trial trains.

    model(trial) -> a network (then `loss` is needed) or a Task; `trial.suggest_*` in it adds the model's
    own knobs.
    data(root) -> Data or Folds; root is the folder given with --data, else $DIALIN_DATA, else ~/.cache/dialin.
    train(run): a training loop of one's own in place of model, data and loss; see search/loop.py. `metric` is
    then any name that it reports, with `direction` where the name is not one of search/metrics.py.
    function(trial) -> float: a bare Optuna objective in place of all of them; `dialin run old.py:objective`
    makes it. How long it trains is its own affair: `epochs` is 0.
    loss(outputs, targets) -> the mean over the batch, as torch.nn's losses are.
    metric: a name (see search/metrics.py), an object as torchmetrics has them, or several: the first is
    searched.
    direction: only for a metric object that does not say `higher_is_better`.
    epochs: the length of one full trial, and of its learning-rate schedule. trials: a study's default budget.
    patience: end a trial after so many epochs without improvement (default: never).
    batch_sizes, optimizers, schedules: what is searched; names from the tables or rows of one's own.
    value: a trial's value, and the weights that are kept, are those of its "best" epoch or of its "last".
    precision: "bf16" or "fp16" compute under torch.autocast, fp16 with a gradient scaler; weights stay float32.
    clip_norm: the largest norm that the gradient of all parameters together may have (clip_grad_norm_).
    accumulate: so many batches make one optimizer step, down on the mean over all of their samples.
    ema: decay of a moving average of the weights, which is evaluated and kept in their place; it starts as
    min(ema, (1 + t) / (10 + t)) at step t, as TensorFlow's ExponentialMovingAverage with num_updates.
    epoch_batches: an epoch is so many batches of an endless stream of shuffled passes over the data.
    parameters(net) -> torch parameter groups with "lr_scale" for relative rates, as Task has them.
    knobs: narrows or fixes what is searched, by name: a value fixes, (low, high) is a range, a list chooses among,
    `around(1e-3, factor=10)` searches most near a value.
    Names: optimizer, lr and weight_decay in torch's units, momentum, beta1, beta2, l2, batch_size, schedule, warmup,
    those of `dialin objectives NAME`, and the model's own.
    at_most: constraints by name, "parameters", "epoch_seconds" and "memory" (bytes of a GPU): Dialin measures them and
    sets `trial.set_constraint(name, measured / limit - 1)`.
    step_timeout: seconds without a finished batch after which a worker hangs and is ended (default: 600). With
    `train` or `function` seconds without a report (default: never). math.inf: never.
    description: one line for listings (default: the first line of the module's docstring).
    ObjectiveError, with the value echoed, when something does not fit.
    """

    # None only where `train` or `function` stands in their place, which __post_init__ sees to.
    model: Callable[[optuna.trial.Trial], nn.Module | Task] = None  # type: ignore[assignment]  # see above
    data: Callable[[Path], Data | Folds] = None  # type: ignore[assignment]  # see above
    loss: Loss | None = None
    metric: Measured | Sequence[Measured] = "accuracy"
    direction: Direction | None = None
    epochs: int = 20
    trials: int = 40
    patience: int | None = None
    batch_sizes: tuple[int, ...] = (16, 32, 64, 128)
    optimizers: tuple[str | Optimizer, ...] = tuple(OPTIMIZERS)
    schedules: tuple[str | Schedule, ...] = tuple(SCHEDULES)
    description: str = ""
    value: Value = "best"
    precision: Precision = "float32"
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    epoch_batches: int | None = None
    parameters: Groups | None = None
    train: Callable[[Run], object] | None = None
    function: Callable[[optuna.trial.Trial], float] | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    step_timeout: float | None = None
    at_most: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in self._doors():
            if not callable(getattr(self, name)):
                raise ObjectiveError(f"{name} must be a function, but got {getattr(self, name)!r:.80}")
        if self.function is not None:
            object.__setattr__(self, "epochs", 0)
        if isinstance(self.loss, type):
            raise ObjectiveError(f"loss must be an object, but got the class: write loss=nn.{self.loss.__name__}()")
        if self.loss is not None and not callable(self.loss):
            raise ObjectiveError(f"loss must be a function of (outputs, targets), but got {self.loss!r:.80}")
        if (reduction := getattr(self.loss, "reduction", "mean")) != "mean":
            raise ObjectiveError(f"loss must be a mean over the batch, but its reduction is {reduction!r}")
        for name in ("epochs", "trials", "patience", "accumulate", "epoch_batches"):
            if name == "epochs" and self.function is not None:
                continue
            at_least_one(name, getattr(self, name), optional=name in ("patience", "epoch_batches"))
        for name in ("batch_sizes", "optimizers", "schedules"):
            choices(name, getattr(self, name))
        for name, value in narrowing.applied(self).items():
            object.__setattr__(self, name, value)
        for size in self.batch_sizes:
            at_least_one("each of batch_sizes", size)
        self._check_options()
        self._refuse_unused()
        optimizers.resolve_all(self.optimizers)
        schedules.resolve_all(self.schedules)
        names = [named.name for named in self.metrics]
        if len(set(names)) < len(names):
            raise ObjectiveError(
                f"two metrics have one name in {names}: give one as NamedMetric(name, direction, metric)"
            )
        if not self.description:
            object.__setattr__(self, "description", _first_line(getattr(self, self._doors()[0])))

    def _doors(self) -> tuple[str, ...]:
        """The fields by which one comes in: a model and its data, a loop of one's own, or a bare function."""
        given = [name for name in ("train", "function") if getattr(self, name) is not None]
        if not given:
            return ("model", "data")
        others = [name for name in ("model", "data", "loss", "function") if getattr(self, name) is not None]
        if others and others != given:
            raise ObjectiveError(f"{given[0]} stands for model, data and loss: leave {others[0]} out")
        return (given[0],)

    @property
    def trains_itself(self) -> bool:
        """Whether a person's own loop trains it (`train` or `function`), and not Dialin's."""
        return self.train is not None or self.function is not None

    def _check_options(self) -> None:
        one_of("value", self.value, get_args(Value))
        one_of("precision", self.precision, get_args(Precision))
        positive("clip_norm", self.clip_norm)
        if self.step_timeout != math.inf:
            positive("step_timeout", self.step_timeout)
        positive("ema", self.ema, below=1)
        for name, limit in self.at_most.items():
            one_of("each name of at_most", name, MEASURED)
            positive(f"at_most[{name!r}]", limit)
        if self.parameters is not None and not callable(self.parameters):
            raise ObjectiveError(f"parameters must be a function of the network, but got {self.parameters!r:.80}")

    def _refuse_unused(self) -> None:
        """What only Dialin's own loop does is not left undone silently where a person's stands in its place."""
        if not self.trains_itself:
            return
        unused = OF_DIALINS_LOOP if self.train is not None else (*OF_DIALINS_LOOP, "patience", "value")
        defaults = {one.name: one.default for one in fields(self)}
        for name in unused:
            default = defaults[name] if name != "at_most" else {}
            if getattr(self, name) != default:
                own = self._doors()[0]
                raise ObjectiveError(f"{name} is for Dialin's training loop: leave it out, {own} does that itself")

    @property
    def metrics(self) -> tuple[NamedMetric, ...]:
        """Every metric, the searched one first: fresh objects for one trial at each call."""
        several = self.metric if isinstance(self.metric, list | tuple) else (self.metric,)
        if not several:
            raise ObjectiveError("metric must name at least one metric, but got none")
        first, *rest = several
        if self.trains_itself:
            return (reported(first, self.direction),)
        return (resolve(first, self.direction), *(resolve(metric, searched=False) for metric in rest))

    @property
    def searched(self) -> NamedMetric:
        """The metric that is searched, with its direction."""
        return self.metrics[0]

    def task(self, trial: optuna.trial.BaseTrial) -> Task:
        """The model of one trial as a task, on the CPU. ObjectiveError: neither network nor Task, no loss."""
        narrowed = narrowing.narrowed(trial, narrowing.model_wishes(self))
        model: Any = self.model(cast("optuna.trial.Trial", narrowed))  # a FixedTrial suggests as one does
        if isinstance(model, nn.Module):
            if self.loss is None:
                raise ObjectiveError(
                    "model returned a network, so the objective needs a loss, as loss=nn.CrossEntropyLoss()"
                )
            model = supervised(model, self.loss)
        if not isinstance(model, Task):
            raise ObjectiveError(f"model must return a torch.nn.Module or a Task, but returned {type(model).__name__}")
        if model.predict is None and any(named.name != "loss" for named in self.metrics):
            raise ObjectiveError(f"the Task has no predict, which the metric {self.searched.name!r} needs")
        if self.parameters is not None and model.parameters is not None:
            raise ObjectiveError("the Task and the Objective both have parameters: leave one of them out")
        return model if self.parameters is None else replace(model, parameters=self.parameters)


def _first_line(model: Callable[..., Any]) -> str:
    """The first line of the docstring of the module that the model is written in, or else of the model."""
    module = getattr(model, "__globals__", {}).get("__doc__")
    return next((line.strip() for line in (module or model.__doc__ or "").splitlines() if line.strip()), "")
