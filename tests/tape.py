"""A stand-in for CUDA graphs on the CPU: a tape of torch's operations, with the tensors that they were given.

Like a graph it is recorded without being done, plays the same operations on the same memory whatever Python has become
since, draws new random numbers from wherever the generator stands, and cannot wait for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero}
# Writes its running statistics, which its schema does not tell.
UNTOLD = {torch.ops.aten.native_batch_norm}


class Refusing(TorchDispatchMode):
    """Raises where a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in WAITING:
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


class Recording(Refusing):
    """Keeps every operation, and what tensors were before it wrote to them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.written: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.written += [(tensor, tensor.clone()) for tensor in written(func, args, kwargs or {})]
        made = super().__torch_dispatch__(func, types, args, kwargs)
        self.operations.append((func, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, before in reversed(self.written):
            tensor.copy_(before)
        self.written.clear()

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, made in self.operations:
            again = func(*args, **kwargs)
            for one, other in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(one, Tensor) and one.data_ptr() != other.data_ptr():
                    one.copy_(other)


def written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    arguments = func._schema.arguments
    given = {one.name: value for one, value in zip(arguments, args, strict=False)} | dict(kwargs)
    for one in arguments:
        if func.overloadpacket in UNTOLD or (one.alias_info is not None and one.alias_info.is_write):
            yield from (leaf for leaf in tree_leaves(given.get(one.name)) if isinstance(leaf, Tensor))


class Tape:
    """A `search.graphed.Recorder`. `plays`: how often each recording was played. `fails`: the number of one."""

    def __init__(self, fails: int | None = None) -> None:
        self.plays: list[int] = []
        self.fails, self.beside, self.mends = fails, 0, 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.beside += 1
        yield

    @contextmanager
    def unsynchronized(self) -> Iterator[None]:
        with Refusing():
            yield

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        recording, random = Recording(), torch.get_rng_state()
        number = len(self.plays)
        self.plays.append(0)
        try:
            with recording:
                made = work()
        finally:
            recording.undo()
            torch.set_rng_state(random)
        if number == self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")

        def play() -> None:
            self.plays[number] += 1
            recording.play()

        return play, made

    def mended(self, random: dict[str, Any]) -> None:
        self.mends += 1
