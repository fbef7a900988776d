"""The one place where a batch becomes an optimizer step, with every training option of an objective.

Used by the trainer:

    stepper.start_epoch()
    for batch in batches:
        total, weight = stepper.take(batch)
        if stepper.full:
            stepper.step(rate)

With no option set this is the plain loop, bit for bit: zero_grad, (total / weight).backward(), step. A batch that does
not fit into memory goes through in parts where that comes to the same. `search.preview` and `search.check` call the two
halves of `take` instead, `loss` and `add`: they tell which of the two fails, and whether a batch fits whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from search.errors import ObjectiveError
from search.exactness import Comparison, compare
from search.failures import line_of, out_of_memory
from search.graphed import Graphs
from search.layout import Layout
from search.micro_batch_size import MicroBatchSize
from search.micro_batches import WontFit, cut, digest, free, versions
from search.objective import Objective, Precision, Task
from search.optimizers import can_be_recorded, set_rate
from search.snapshots import copied

# What autocast computes in; weights, gradients and optimizer state stay float32.
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device, cached: bool = True) -> AbstractContextManager[Any]:
    """torch.autocast as the precision says. Nothing for "float32": a model may have an autocast of its own.

    `cached`: cast a weight once for all its uses, which a CUDA graph cannot (torch's documentation, "CUDA graphs").
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision], cache_enabled=cached)


class Stepper:
    """A network, its optimizer, and what a checkpoint must hold between two steps: scaler and average."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        options: Objective,
        device: torch.device,
        micro_batch: MicroBatchSize | None = None,
    ) -> None:
        """`micro_batch`: what is known of the samples that fit at a time."""
        self.optimizer = optimizer
        self._micro_batch, self._begun = micro_batch or MicroBatchSize(), False
        self._task, self._options, self._device = task, options, device
        self._graphs = Graphs(task.net, task.step, device) if can_be_recorded(optimizer) else None
        # Without a scaler small gradients are zero in float16 (Micikevicius et al. 2018).
        self._scaler = torch.amp.GradScaler(device.type) if options.precision == "fp16" else None
        self._average = Average(task.net, options.ema) if options.ema is not None else None
        self._pending = self._parts = 0
        self._weight: Tensor | float = 0.0
        self._unit: Tensor | float = 1.0
        self._taken: list[tuple[Any, list[int]]] = []
        self.layout = Layout(task.net, device, optimizer)
        self._random: dict[str, Tensor] = {}

    def start_epoch(self) -> None:
        """Training mode, but for norm layers in frozen parts."""
        self._task.net.train()
        rest_frozen_norms(self._task.net)
        if self._graphs is not None:
            self._graphs.start_epoch()

    def loss(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        """What the task's step returns, computed in the precision asked for.

        Raises:
            ObjectiveError: it returns something else than a sum of losses and their weight.
        """
        with autocast(self._options.precision, self._device, cached=self._graphs is None):
            returned: Any = self._task.step(self._task.net, batch)
        if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], Tensor):
            found = "nothing (None)" if returned is None else f"a {type(returned).__name__}"
            raise ObjectiveError(f"step must return (sum of losses, weight), but returned {found}")
        total, weight = returned
        return (total if self._options.precision == "float32" else total.float()), weight

    def take(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        """Forward and back through one batch; its sum of losses and weight, for the record, until the next one.

        Raises:
            WontFit: it does not fit, and parts are no way out. ObjectiveError: as `loss`.
        """
        if not self._begun:
            self._begun = True
            self._micro_batch.begin(self._digest(batch), batch, self._compared)
            self.layout.begin()
        if self._graphs is None or self._micro_batch.size is not None:
            summed = self.with_care(batch)
        else:
            summed = self._graphs.take(batch, self)
        self._pending += 1
        return summed

    def whole(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        """Forward and back through the batch of a step that has no other. Raises whatever comes."""
        self._parts = 0
        total, weight = self.loss(batch)
        self._go_back(total, weight)
        return total.detach(), weight

    def with_care(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        """Forward and back through one batch, in one piece or in parts.

        Where memory is wanting the batches of this step go through again in smaller parts, and where the network
        cannot work with the layout of its weights with the usual one, with the random numbers that they began with:
        gradients that broke off half way are dropped.
        """
        if not self._pending:
            self._parts = 0  # whatever was tried before
        if not self._taken:
            self._random = _generators(self._device)
        self._taken.append((batch, versions(batch)))
        todo = [batch]
        while True:
            try:
                for one in todo:
                    summed = self._go_through(one)
                self._micro_batch.fitted()
                self.layout.fits()
                return summed
            except (MemoryError, RuntimeError) as error:
                refused = self.layout.refused(error)
                if not refused and (isinstance(error, WontFit) or not out_of_memory(error)):
                    raise
                said = line_of(error)
            # Only now: the exception held the frames, and they the tensors.
            self._begin_again(said, batch, refused)
            todo = [one for one, _ in self._taken]

    def _go_through(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        parts = [batch] if self._micro_batch.size is None else cut(batch, self._micro_batch.size)
        total, weight = self.loss(parts[0])
        self._go_back(total, weight)
        summed, total = total.detach(), total.detach()
        for part in parts[1:]:
            total, more = self.loss(part)
            self._go_back(total, more)
            summed, weight = summed + total.detach(), weight + more
        return summed, weight

    def _begin_again(self, said: str, batch: Any, refused: bool) -> None:
        """Forget this step's gradients, and agree on a smaller size or the usual layout. Raises WontFit."""
        self._forget_gradients()
        free(self._device)
        spoilt = any(versions(one) != before for one, before in self._taken)
        if refused:
            if spoilt:
                raise ObjectiveError(
                    f"{said} The network has changed its batch in place, so that it cannot be repeated"
                )
            self.layout.undo()
        elif spoilt:
            raise WontFit(f"{said}; the network has changed its batch in place, which is not there to be cut")
        else:
            self._micro_batch.smaller(said, batch)
        self._parts = 0
        _set_generators(self._random, self._device)

    def _digest(self, batch: Any) -> str:
        options = (self._options.precision, self._options.ema is not None)
        return digest(self._task.net, batch, type(self.optimizer).__name__, *options)

    def _compared(self, batch: Any) -> Comparison:
        return compare(self._task.net, lambda part: self._task.step(self._task.net, part), batch)

    def add(self, total: Tensor, weight: Tensor | float) -> None:
        """Go back through one batch. The gradients of the batches of a step add up."""
        self._go_back(total, weight)
        self._pending += 1

    def _go_back(self, total: Tensor, weight: Tensor | float) -> None:
        if self._parts == 0:
            self._forget_gradients()
            # The weight of all batches is not known yet: the first one's stands in for it until the step,
            # which keeps the gradients as large as a mean's. float16 would overflow on a sum's.
            self._unit, self._weight = _one_for_zero(weight), 0.0
        if self._scaler is None:
            # Not total.backward(1 / unit), which is 2 us faster: torch imports sympy for a gradient that it is given.
            (total / self._unit).backward()
        else:
            self._scaler.scale(total / self._unit).backward()
        self._weight = self._weight + weight
        self._parts += 1

    @property
    def full(self) -> bool:
        """Whether a step's batches are together."""
        return self._pending == self._options.accumulate

    def step(self, rate: float | None = None) -> None:
        """One optimizer step with the gradient of (sum of totals) / (sum of weights), clipped if so asked.

        A float16 step with an overflow in its gradients is left out, and the scaler takes a smaller scale.
        """
        if rate is not None:
            set_rate(self.optimizer, rate)
        if self._average is not None:
            self._average.begin()
        if self._graphs is None:
            self.update()
        else:
            self._graphs.update(self)
        if self._average is not None:
            self._average.update()
        self._pending = self._parts = 0
        self._taken.clear()

    def can_be_recorded(self) -> bool:
        """Whether the optimizer still is as it was built to be."""
        return can_be_recorded(self.optimizer)

    def update(self) -> None:
        """The step itself, with the gradients that are there."""
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        if self._parts > 1:
            for parameter in self._parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self._unit / self._weight)
        if self._options.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self._parameters()), self._options.clip_norm)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()

    def _forget_gradients(self) -> None:
        """What zero_grad does, which looks for profilers and hooks first; a person's own optimizer may do more."""
        if type(self.optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
            self.optimizer.zero_grad()
        for parameter in self._parameters():
            parameter.grad = None

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the network has the averaged weights, where an average is kept."""
        return nullcontext() if self._average is None else self._average.in_place()

    def state(self) -> dict[str, Any]:
        """CPU copies of what the options keep between two steps, and the size of micro-batches; empty without any."""
        kept: dict[str, Any] = {}
        if self._scaler is not None:
            kept["scaler"] = self._scaler.state_dict()
        if self._average is not None:
            kept["average"] = self._average.state()
        if self._micro_batch.size is not None:
            kept["micro_batch"] = self._micro_batch.size
        if self.layout.refused_once:
            kept["plain_layout"] = True
        return kept

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from a `state`. What it lacks, because an option is new, starts afresh."""
        if self._scaler is not None and kept.get("scaler"):
            self._scaler.load_state_dict(kept["scaler"])
        if self._average is not None and "average" in kept:
            self._average.restore(kept["average"])
        self._micro_batch.go_on(kept.get("micro_batch"))
        if kept.get("plain_layout"):
            self.layout.undo()


def _one_for_zero(weight: Tensor | float) -> Tensor | float:
    """A weight to divide by: a part whose samples all weigh nothing has a sum of nothing."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.ones_like(weight), weight)
    return weight or 1.0


def _generators(device: torch.device) -> dict[str, Tensor]:
    """Where torch's generators stand that a network draws from: little to copy, before each step."""
    state = {"cpu": torch.get_rng_state()}
    return state if device.type != "cuda" else state | {"cuda": torch.cuda.get_rng_state(device)}


def _set_generators(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class Average:
    """An exponential moving average of a network's weights and buffers (Polyak & Juditsky 1992).

    What is floating is averaged, buffers as well (as timm's ModelEma does); counters are copied. At the step
    after `t` others the decay is min(decay, (1 + t) / (10 + t)), so that the first, untrained weights are
    soon forgotten (TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._net, self._decay, self._steps = net, decay, 0
        self._tensors: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Start from the weights as they are; to be called before the first step, when lazy layers have theirs."""
        if not self._tensors:
            self._tensors = {name: tensor.clone() for name, tensor in self._live().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        for name, tensor in self._live().items():
            if tensor.is_floating_point() or tensor.is_complex():
                self._tensors[name].lerp_(tensor, 1 - decay)
            else:
                self._tensors[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swapped in, and out again, rather than kept in a second network: a task may hold on to its own."""
        before = {name: tensor.clone() for name, tensor in self._live().items()}
        self._write(self._tensors)
        try:
            yield
        finally:
            self._write(before)

    @torch.no_grad()
    def _write(self, tensors: dict[str, Tensor]) -> None:
        live = self._live()
        for name, tensor in tensors.items():
            live[name].copy_(tensor)

    def _live(self) -> dict[str, Tensor]:
        state = self._net.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "tensors": copied(self._tensors)}

    def restore(self, kept: dict[str, Any]) -> None:
        live = self._live()
        self._steps = kept["steps"]
        self._tensors = {name: tensor.to(live[name].device, copy=True) for name, tensor in kept["tensors"].items()}


def rest_frozen_norms(net: nn.Module) -> None:
    """Puts into eval mode every norm layer with running statistics in a part of `net` that is wholly frozen.

    A part is frozen when it has parameters and none of them requires a gradient: its statistics belong to its
    weights, and batches of other data would take them away.
    """
    for part in _frozen_parts(net):
        for module in part.modules():
            if "running_mean" in dict(module.named_buffers(recurse=False)):
                module.eval()


def _frozen_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest frozen modules in `module`, itself perhaps."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
    elif parameters:
        for child in module.children():
            yield from _frozen_parts(child)
