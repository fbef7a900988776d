"""Does a batch cut in two have the gradient of the whole batch? Not with batch norm in training, for one.

Asked once by `search.steps` before it trains in micro-batches, and by `dialin check`, which prints the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from search.failures import first_line, out_of_memory
from search.micro_batches import count, cut
from search.randomness import random_state, restore_random_state

# Gradients that differ by rounding alone are apart by about 1e-6 of their size in float32; batch norm in training
# makes it a tenth and more.
TOLERANCE = 1e-3

Loss: TypeAlias = Callable[[Any], tuple[Tensor, Tensor | float]]
Call: TypeAlias = tuple[str, list[Tensor], list[Tensor]]  # name, what went in, what came out


@dataclass(frozen=True)
class Comparison:
    """Whether parts come to the same, and what differs, for people. `difference`: of the gradients, by their size."""

    exact: bool
    why: str = ""
    difference: float = 0.0


def compare(net: nn.Module, loss: Loss, batch: Any) -> Comparison:
    """Compare the gradient of a batch with that of its halves, and what the network keeps in its buffers.

    The network must be in the mode that it trains in, and is left as it was, as are the random generators. What
    draws random numbers for each sample (dropout, noise) is held still meanwhile: halves draw others than the whole,
    which are as good.

    Args:
        net: the network; its parameters' `grad` is not touched.
        loss: gives (sum of losses, weight) of a batch, in float32.
        batch: at least two samples.

    Raises:
        MemoryError, RuntimeError: memory is wanting for that, too.
    """
    samples = count(batch)
    if samples is None:
        return Comparison(False, "its batches cannot be cut: their tensors have no first dimension in common")
    if samples < 2:
        return Comparison(False, "a batch of one sample cannot be cut")
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    [whole], halves = cut(batch, samples), cut(batch, -(-samples // 2))
    if any(map(nn.parameter.is_lazy, net.parameters())):
        with torch.no_grad():
            loss(halves[0])  # lazy layers must not draw their weights while the dice are held
    with _left_alone(net, device):
        try:
            one = _Passed.through(net, loss, [whole])
        except Exception as error:
            if out_of_memory(error):
                raise
            return Comparison(False, f"comparing the two raises {type(error).__name__}: {first_line(error):.120}")
        try:
            others = _Passed.through(net, loss, halves)
        except Exception as error:  # whatever a person's code raises at a batch of another size
            if out_of_memory(error):
                raise
            return Comparison(False, f"half a batch raises {type(error).__name__}: {first_line(error):.120}")
        difference, changed = one.gradients_apart(others), one.buffer_apart(others)
        if max(difference, one.sums_apart(others)) <= TOLERANCE and changed is None:
            return Comparison(True, "", difference)
        return Comparison(False, _why(net, loss, whole, halves[0], changed), difference)


@dataclass(frozen=True)
class _Passed:
    """What was left when a batch had gone through: gradients by name, sum and weight, buffers."""

    gradients: dict[str, Tensor]
    total: float
    weight: float
    buffers: dict[str, Tensor]

    @classmethod
    def through(cls, net: nn.Module, loss: Loss, parts: Sequence[Any]) -> _Passed:
        """All parts one after the other, from the same buffers; these are put back."""
        before = _buffers(net)
        gradients: dict[str, Tensor] = {}
        sums, weights = 0.0, 0.0
        for part in parts:
            total, weight = loss(part)
            trained = {name: one for name, one in net.named_parameters() if one.requires_grad}
            found = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
            for name, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    gradients[name] = gradients[name].add_(gradient) if name in gradients else gradient.clone()
            sums, weights = sums + float(total.detach()), weights + float(weight)
        after = _buffers(net)
        _put_back(net, before)
        return cls(gradients, sums, weights, after)

    def gradients_apart(self, other: _Passed) -> float:
        """The largest difference of a parameter's gradient, by its norm or a thousandth of the whole gradient's."""
        if {*self.gradients} != {*other.gradients}:
            return float("inf")
        sizes = {name: float(one.norm()) for name, one in self.gradients.items()}
        least = 1e-3 * sum(size**2 for size in sizes.values()) ** 0.5 or 1.0
        apart = (
            float((one - other.gradients[name]).norm()) / max(sizes[name], least)
            for name, one in self.gradients.items()
        )
        return max(apart, default=float("inf"))

    def sums_apart(self, other: _Passed) -> float:
        """How far the sums of losses and the weights are apart, by their size."""
        pairs = ((self.total, other.total), (self.weight, other.weight))
        return max(abs(one - two) / (max(abs(one), abs(two)) or 1.0) for one, two in pairs)

    def buffer_apart(self, other: _Passed) -> str | None:
        """The first buffer that a batch changes otherwise than its halves do."""
        for name, one in self.buffers.items():
            if name not in other.buffers or _apart(one, other.buffers[name]):
                return name
        return None


def _buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in net.named_buffers() if not nn.parameter.is_lazy(one)}


@torch.no_grad()
def _put_back(net: nn.Module, buffers: dict[str, Tensor]) -> None:
    live = dict(net.named_buffers())
    for name, one in buffers.items():
        live[name].copy_(one)


def _apart(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    if not one.is_floating_point():
        return not torch.equal(one, other)
    largest = float(one.abs().max()) if one.numel() else 0.0
    return not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)


@contextmanager
def _left_alone(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, dice fall alike for every sample and convolutions count in full float32; generators go back after it."""
    before = random_state(device)
    try:
        held: Any = _DiceHeld
        with held(), torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        restore_random_state(before, device)


class _DiceHeld(TorchDispatchMode):
    """Whatever torch draws at random is one half, true or zero instead; a shuffled order is the order turned round.

    So a network that mixes samples in a random order still mixes them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs, dropped = _without_dropout(func, list(args), dict(kwargs or {}))
        drawn = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in func.tags or dropped:
            return drawn
        if func.overloadpacket is torch.ops.aten.native_dropout:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        shuffled = func.overloadpacket is torch.ops.aten.randperm
        tree_map_only(Tensor, _turned if shuffled else _held, drawn)
        return drawn


def _without_dropout(func: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any], bool]:
    """Arguments with the chance of a dropout, which attention and recurrent layers have inside, set to zero."""
    names = [argument.name for argument in func._schema.arguments]
    found = next((name for name in ("dropout_p", "dropout") if name in names), None)
    if found is None:
        return args, kwargs, False
    if found in kwargs:
        kwargs[found] = 0.0
    elif names.index(found) < len(args):
        args[names.index(found)] = 0.0
    return args, kwargs, True


def _turned(drawn: Tensor) -> Tensor:
    return drawn.copy_(torch.arange(len(drawn)).flip(0))


def _held(drawn: Tensor) -> Tensor:
    if drawn.is_floating_point() or drawn.is_complex():
        return drawn.fill_(0.5)
    return drawn.fill_(drawn.dtype is torch.bool)


def _why(net: nn.Module, loss: Loss, whole: Any, half: Any, buffer: str | None) -> str:
    """Where the half goes another way than as a part of the whole; the loss, when every layer treats it alike."""
    calls, fewer = _calls(net, loss, whole), _calls(net, loss, half)
    same = _Alike(count(whole) or 0, count(half) or 0)
    for (name, given, returned), (_, others, results) in zip(calls, fewer, strict=False):
        if same(given, others) and not same(returned, results):
            return _named(net, name)
    if buffer is not None:
        return f"its buffer {buffer} changes with every batch"
    if all(same(one[1], other[1]) for one, other in zip(calls, fewer, strict=False)):
        return "the loss of a batch is not the sum of its samples' losses"
    return "its step mixes the samples of a batch"


def _named(net: nn.Module, culprit: str) -> str:
    kind = type(net.get_submodule(culprit))
    alike = sum(type(module) is kind and module.training for module in net.modules()) - 1
    more = f" (and {alike} more)" if alike > 0 else ""
    return f"{kind.__name__}{f' {culprit!r}' if culprit else ''}{more} mixes the samples of a batch"


@torch.no_grad()
def _calls(net: nn.Module, loss: Loss, batch: Any) -> list[Call]:
    """What went into each module and came out, in the order in which they ended."""
    calls: list[Call] = []

    def hook(name: str) -> Callable[..., None]:
        def heard(_module: nn.Module, given: Any, returned: Any) -> None:
            calls.append((name, _tensors(given), _tensors(returned)))

        return heard

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules()]
    before = _buffers(net)
    try:
        loss(batch)
    finally:
        for handle in handles:
            handle.remove()
        _put_back(net, before)
    return calls


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values.clone()]
    several = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    return [tensor for value in several for tensor in _tensors(value)]


@dataclass(frozen=True)
class _Alike:
    """Whether `fewer` samples are what they are among `samples`, of which they are the first."""

    samples: int
    fewer: int

    def __call__(self, whole: Sequence[Tensor], half: Sequence[Tensor]) -> bool:
        pairs = zip(whole, half, strict=False)
        return len(whole) == len(half) and not any(_apart(self._part(one), other) for one, other in pairs)

    def _part(self, one: Tensor) -> Tensor:
        """The half's rows: a layer may have folded samples and time into one dimension."""
        by_sample = one.ndim > 0 and len(one) % self.samples == 0
        return one[: len(one) * self.fewer // self.samples] if by_sample else one
