"""What a step's Python code keeps outside of tensors: a CUDA graph would freeze it as it was when it was recorded.

Used by `search.graphed`, which records only steps that leave all of it as it was.
"""

from __future__ import annotations

import functools
import logging
import random
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.Size, torch.dtype, torch.device)
CONTAINERS = (list, tuple, set, frozenset, deque)
# Deep enough for what a model has at hand, and an end where its objects lead to all of a program's.
DEEPEST = 6
MOST = 20_000
MOST_ITEMS = 1_000


def kept(device: torch.device, *roots: Any) -> dict[str, Any]:
    """Everything by the path that leads to it from modules, functions and objects, and where random numbers stand.

    A tensor on the device counts by where it lies: what is written into it is in the graph, another one in its place
    is not.
    """
    found: dict[str, Any] = {
        "Python's random": hash(random.getstate()),
        "NumPy's random": repr(_numpy_state()),
    }
    if device.type != "cpu":
        found["torch's random of the CPU"] = torch.get_rng_state().numpy().tobytes()
    seen: set[int] = set()
    for root in roots:
        for path, value in _walk(root, getattr(root, "__name__", type(root).__name__), 0, seen):
            found[path] = _place(value, device) if isinstance(value, Tensor) else value
            if len(found) >= MOST:
                return found
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The path of something that is not what it was."""
    return next((path for path in [*after, *before] if before.get(path, kept) != after.get(path, kept)), None)


def _numpy_state() -> Any:
    _name, keys, *rest = np.random.get_state(legacy=True)
    return hash(keys.tobytes()), rest  # type: ignore[union-attr]  # an array, in the legacy form


def _walk(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, PLAIN):
        yield path, repr(value) if isinstance(value, float) else value  # as NaN is not NaN
        return
    if isinstance(value, Tensor):
        yield path, value
        return
    try:
        state = _own_state(value)
        stops = id(value) in seen or depth >= DEEPEST or isinstance(value, ModuleType | type | logging.Logger)
        inside = [] if stops or state is not None else [*_inside(value)]
    except Exception:  # a person's object may refuse to be looked at
        return
    yield path, id(value) if state is None else state
    seen.add(id(value))
    for name, inner in inside:
        yield from _walk(inner, f"{path}{name}", depth + (not isinstance(value, nn.Module)), seen)


def _place(tensor: Tensor, device: torch.device) -> tuple[int, int]:
    """Where it lies; of one that is not on the device, which no graph writes to, also how often it was written to."""
    if nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided:
        return id(tensor), 0
    there = tensor.device.type == device.type or tensor.is_inference()
    return tensor.data_ptr(), 0 if there else tensor._version


def _own_state(value: Any) -> Any:
    """Of generators of random numbers and small arrays; None of anything else."""
    if isinstance(value, np.random.Generator | np.random.RandomState):
        return repr(value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state())
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.ndarray) and value.size <= MOST_ITEMS:
        return value.tobytes()
    return None


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, FunctionType):
        yield from _of_function(value)
    elif getattr(value, "__self__", None) is not None:  # a method, of whatever language
        yield ".__self__", value.__self__
        yield ".__func__", getattr(value, "__func__", None)
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif isinstance(value, Mapping):
        for key in [*value][:MOST_ITEMS]:
            yield f"[{key!r:.40}]", value[key]
    elif isinstance(value, CONTAINERS):
        yield ".length", len(value)
        for number, item in enumerate([*value][:MOST_ITEMS]):
            yield f"[{number}]", item
    elif isinstance(value, nn.Module):
        yield from _of_module(value)
    elif hasattr(value, "__dict__"):
        yield from ((f".{name}", inner) for name, inner in [*vars(value).items()])


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables of functions around it, and those of its module that its code names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f": {name}", cell.cell_contents
        except ValueError:  # not set yet
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f": {name}", function.__globals__[name]


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, inner in [*vars(module).items()]:
        if name not in ("_parameters", "_buffers", "_modules"):
            yield f".{name}", inner
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        yield f".{name}", tensor
    for name, child in module._modules.items():
        yield f".{name}", child
    if not type(module).__module__.startswith("torch."):
        yield ".forward", type(module).forward
