"""A training step as CUDA graphs: recorded once, then launched as a whole, where eager steps launch kernel by kernel.

Used by `search.steps`, for objectives and optimizers for which `possible` says so. The first full batches go through
eagerly, on a stream of their own as torch asks; the last of them is watched: a step that waits for the device, or whose
Python code changes something, cannot be recorded. Then two graphs are recorded from static buffers, forward and back,
and the optimizer's step, between which the loss can be looked at. What they compute is compared with what an eager
batch does, once at the beginning and now and then after it. Whatever does not fit, from partial batches to a capture
that fails, is trained eagerly, by the same kernels, so that a curve is the same either way.

Not measured on a GPU.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from search import python_state
from search.failures import line_of, out_of_memory
from search.micro_batches import free
from search.objective import Objective
from search.randomness import random_state, restore_random_state

# Full batches that go through eagerly first (torch's documentation, "CUDA graphs": three), the last of them watched.
WARM_UP = 3
# After so many replays the next epoch's first batch is compared again: an eager step in so many costs little.
PROVED_EVERY = 500
# Of losses and gradients, by their size. The kernels are the same; those that add in any order are apart by rounding,
# a number that was frozen by more.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 1e-2

Summed: TypeAlias = tuple[Tensor, Tensor | float]
Shape: TypeAlias = tuple[TreeSpec, tuple[tuple[torch.Size, torch.dtype], ...]]

_log = logging.getLogger(__name__)


class Steps(Protocol):
    """What is recorded, or done eagerly."""

    def whole(self, batch: Any) -> Summed:
        """Gradients of a batch in place of those before it; the sum of its losses, detached, and their weight."""

    def with_care(self, batch: Any) -> Summed:
        """The same, with whatever there is for a batch that does not fit into memory."""

    def can_be_recorded(self) -> bool:
        """Whether `update` asks the device for no number."""

    def update(self) -> None:
        """The optimizer's step with these gradients."""


class Recorder(Protocol):
    """What of CUDA it takes to record."""

    def aside(self) -> AbstractContextManager[None]:
        """Inside, work goes to the stream that is recorded from. Before and after, the streams wait for each other."""

    def unsynchronized(self) -> AbstractContextManager[None]:
        """Inside, whatever waits for the device raises RuntimeError instead."""

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record the work without doing it: what does it, and what the work returned, filled whenever it is done."""

    def mended(self, random: dict[str, Any]) -> None:
        """After a recording that failed; `random`: where the generators stood before it."""


def possible(options: Objective, net: nn.Module, device: torch.device) -> bool:
    """Whether to try: a gradient scaler looks at the gradients, accumulation and sparse gradients change the step."""
    plain = options.precision != "fp16" and options.accumulate == 1
    sparse = any(getattr(module, "sparse", False) is True for module in net.modules())
    return device.type == "cuda" and plain and not sparse


@dataclass
class _Recorded:
    """`gradients`: where each parameter's is written, None for one that has none. `summed` is filled by `back`."""

    shape: Shape
    inputs: list[Tensor]
    back: Callable[[], None]
    update: Callable[[], None]
    summed: Summed
    gradients: list[tuple[Tensor, Tensor | None]]

    def fill(self, batch: Any) -> None:
        for static, given in zip(self.inputs, tree_flatten(batch)[0], strict=True):
            static.copy_(given)

    def claim(self) -> None:
        """Put the gradients in place again, where those of an eager batch are."""
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


class Graphs:
    """Of one network and its optimizer, from the first batch on."""

    def __init__(self, net: nn.Module, step: Callable[..., Any], device: torch.device) -> None:
        """`step`: the task's, which is watched beside the network."""
        self._net, self._step, self._device = net, step, device
        self._recorder: Recorder = Cuda(device)
        self._seen: Counter[Shape] = Counter()
        self._recorded: _Recorded | None = None
        self._replays = 0  # since it was proved
        self._to_prove = False
        self._replayed = self._aside = False  # how the last batch was taken
        self._strayed = False  # whether an eager batch was taken since the last replay
        self.given_up = ""

    def start_epoch(self) -> None:
        """Something may have changed since the last one."""
        self._to_prove = self._to_prove or self._replays >= PROVED_EVERY

    def take(self, batch: Any, steps: Steps) -> Summed:
        """Forward and back. What it returns is good until the next batch."""
        self._replayed = self._aside = False
        shape = None if self.given_up else _shape(batch, self._device)
        if self._recorded is not None and shape != self._recorded.shape:
            return self._beside(batch, steps)
        if shape is None:
            return steps.with_care(batch)
        if self._recorded is None:
            self._seen[shape] += 1
            if self._seen[shape] < WARM_UP:
                self._aside = True
                with self._recorder.aside():
                    return steps.with_care(batch)
            if self._seen[shape] == WARM_UP:
                return self._watched(batch, steps)
        if self._recorded is None:
            self._record(batch, shape, steps)
        if self._recorded is not None and self._to_prove:
            self._prove(self._recorded, batch, steps)
        recorded = self._recorded
        if recorded is None:
            return steps.with_care(batch)
        recorded.fill(batch)
        if self._strayed:
            recorded.claim()
            self._strayed = False
        recorded.back()
        self._replayed, self._replays = True, self._replays + 1
        return recorded.summed

    def update(self, steps: Steps) -> None:
        """The optimizer's step after that batch."""
        if self._replayed and self._recorded is not None:
            self._recorded.update()
            return
        with self._recorder.aside() if self._aside else nullcontext():
            steps.update()

    def _beside(self, batch: Any, steps: Steps) -> Summed:
        """An eager batch of another shape, for which memory may be wanting beside that of the recording."""
        before, self._strayed = _Kept.of(self._net, self._device), True
        try:
            return steps.whole(_copied(batch))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        before.put_back()
        self._give_up("memory is wanting")
        return steps.with_care(batch)

    def _watched(self, batch: Any, steps: Steps) -> Summed:
        """One more eager batch, at which it shows whether the step can be recorded."""
        before, kept = _Kept.of(self._net, self._device), self._python_state()
        self._aside = True
        try:
            with self._recorder.aside(), self._recorder.unsynchronized():
                summed = steps.whole(_copied(batch))  # a network may change its batch in place
        except Exception as error:  # whatever a person's code raises: it will raise it again
            said = line_of(error)
        else:
            if (found := python_state.changed(kept, self._python_state())) is not None:
                self._give_up(f"{found} is another after each step")
            return summed
        before.put_back()
        self._give_up(said)
        self._aside = False
        return steps.with_care(batch)

    def _python_state(self) -> dict[str, Any]:
        return python_state.kept(self._device, self._net, self._step)

    def _record(self, batch: Any, shape: Shape, steps: Steps) -> None:
        """Both graphs, or neither. Nothing is done yet, and everything is as before."""
        if not steps.can_be_recorded():
            self._give_up("the optimizer's step waits for the device")
            return
        before = _Kept.of(self._net, self._device)
        self._forget_gradients()
        try:
            inputs, spec = tree_flatten(_copied(batch))
            back, summed = self._recorder.record(lambda: steps.whole(tree_unflatten(inputs, spec)))
            gradients: list[tuple[Tensor, Tensor | None]] = [(one, one.grad) for one in self._net.parameters()]
            update, _ = self._recorder.record(steps.update)
        except Exception as error:  # a capture fails in many ways, and none of them is worth a trial
            said = _first_cause(error)
        else:
            self._recorded = _Recorded(shape, inputs, back, update, summed, gradients)
            self._to_prove = True
            return
        self._recorder.mended(before.random)
        before.put_back()
        self._forget_gradients()
        self._give_up(said)

    def _prove(self, recorded: _Recorded, batch: Any, steps: Steps) -> None:
        """Give up where the graph no longer computes what the network does. Afterwards everything is as before."""
        before, self._strayed = _Kept.of(self._net, self._device), True
        try:
            total, weight = steps.whole(_copied(batch))
            if not bool(total.isfinite()):
                before.put_back()
                return  # a diverged batch proves nothing
            gradients = [parameter.grad for parameter, _ in recorded.gradients]
            before.put_back()
            recorded.fill(batch)
            recorded.back()
            same = _alike((total, weight), gradients, recorded)
        except Exception as error:  # memory for an eager batch beside the graph's may be wanting
            said = line_of(error)
        else:
            said = "" if same else "a replay computes something else than the network does"
        before.put_back()
        if said:
            self._give_up(said)
        self._to_prove, self._replays = False, 0

    def _give_up(self, why: str) -> None:
        """Train eagerly from here on."""
        had, self._recorded = self._recorded is not None, None
        self._replayed, self.given_up = False, why
        if had:
            self._forget_gradients()
            free(self._device)
        _log.warning("steps are not replayed from a CUDA graph: %s", why)

    def _forget_gradients(self) -> None:
        for parameter in self._net.parameters():
            parameter.grad = None


@dataclass(frozen=True)
class _Kept:
    """What a forward pass changes: buffers, and where random numbers stand."""

    buffers: list[tuple[Tensor, Tensor]]
    random: dict[str, Any]
    device: torch.device

    @classmethod
    def of(cls, net: nn.Module, device: torch.device) -> _Kept:
        live = [buffer for buffer in net.buffers() if not nn.parameter.is_lazy(buffer)]
        return cls([(buffer, buffer.clone()) for buffer in live], random_state(device), device)

    @torch.no_grad()
    def put_back(self) -> None:
        for live, before in self.buffers:
            live.copy_(before)
        restore_random_state(self.random, self.device)


def _copied(batch: Any) -> Any:
    leaves, spec = tree_flatten(batch)
    return tree_unflatten([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


def _first_cause(error: BaseException) -> str:
    """The end of a capture that was broken off raises as well, and tells less."""
    while error.__context__ is not None:
        error = error.__context__
    return line_of(error)


def _shape(batch: Any, device: torch.device) -> Shape | None:
    """Of tensors in whatever structure, all of them on the device. None: there is something else in it."""
    leaves, spec = tree_flatten(batch)
    if not leaves or not all(type(leaf) is Tensor and leaf.device.type == device.type for leaf in leaves):
        return None
    if any(leaf.requires_grad or leaf.layout is not torch.strided for leaf in leaves):
        return None
    return spec, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _alike(eager: Summed, gradients: list[Tensor | None], recorded: _Recorded) -> bool:
    """Whether loss, weight and gradients of an eager batch are those of the replay. Waits for the device."""
    (total, weight), (replayed, other) = eager, recorded.summed
    pairs_of_sums = (float(replayed), float(total)), (float(other), float(weight))
    if not all(math.isclose(*pair, rel_tol=LOSS_TOLERANCE) for pair in pairs_of_sums):
        return False
    pairs = [(one, two) for one, (_, two) in zip(gradients, recorded.gradients, strict=True)]
    if any((one is None) != (two is None) for one, two in pairs):
        return False
    both = [(one, two) for one, two in pairs if one is not None and two is not None]
    apart = nn.utils.get_total_norm([one - two for one, two in both])
    size = nn.utils.get_total_norm([one for one, _ in both])
    return float(apart) <= GRADIENT_TOLERANCE * float(size)


class Cuda:
    """Records on a stream of its own, into memory of its own."""

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            here.wait_stream(self._stream)

    @contextmanager
    def unsynchronized(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        # thread_local: what another thread does, such as a DataLoader's that pins memory, breaks no capture.
        how: dict[str, Any] = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, **how):
                made = work()
        except BaseException:
            with suppress(Exception):
                graph.reset()
            with torch.cuda.device(self._device):
                torch.cuda.set_stream(here)  # older torch leaves the other one in its place
            raise
        return graph.replay, made

    def mended(self, random: dict[str, Any]) -> None:
        """A capture that broke off can leave the device's generator waiting for its end: it gets a state of its own.

        What draws random numbers would raise "Offset increment outside graph capture" for ever after.
        """
        fresh = torch.Generator(self._device)
        fresh.set_state(random["cuda"])
        torch.cuda.default_generators[self._device.index].graphsafe_set_state(fresh)
