"""What a person's modules hold, every value with its place: names, and what is inside of those.

`search.packing` uses it twice. Packed data refers to what the modules hold by its place, so that a worker gets
its own module's object and not a copy beside it. And `data()` that leaves something else behind in the modules
than it found (a vocabulary's size that `model` reads) must be called in every worker.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
import sys
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, CellType, FunctionType, MappingProxyType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor

from search.failures import is_theirs
from search.loading import LoadedObjective

# A module that holds more objects than this holds data, and looking at each of them costs seconds.
MOST_OBJECTS = 50_000
# Where the objective itself is; no module has this name.
OBJECTIVE = "the objective"

MAIN = ("__main__", "__mp_main__")

Place = tuple[Any, ...]
"""A module's name, then steps: ("item", key), ("in", name in an object's __dict__) or ("attribute", name)."""

_PLAIN = (str, bytes, int, float, complex, bool, type(None), Enum, range, slice, type(...))
_GENERATORS = (random.Random, numpy.random.Generator, numpy.random.RandomState)


class TooMuch(Exception):
    """The modules hold too many objects to look at."""


class ModuleState:
    """What the modules that are a person's own, and the objective, hold at this moment."""

    def __init__(self, loaded: LoadedObjective) -> None:
        """Look at everything. Raises TooMuch."""
        own = _own_modules(loaded.path)
        self._roots = roots(loaded, own)
        self._marks: dict[Place, Hashable] = {}
        self._places: dict[int, Place] = {}
        self._held: list[Any] = []  # an id means nothing when its object is gone
        waiting: deque[tuple[Place, Any]] = deque(((name,), root) for name, root in self._roots.items())
        while waiting:
            place, value = waiting.popleft()
            self._marks[place] = _mark(value)
            if isinstance(value, _PLAIN) or id(value) in self._places:
                continue
            self._places[id(value)] = place
            self._held.append(value)
            if len(self._marks) > MOST_OBJECTS:
                raise TooMuch(f"{place[0]} holds more than {MOST_OBJECTS:,} objects")
            waiting.extend(((*place, step), inner) for step, inner in _parts(value, own))
        self._process = _process_state()

    def place_of(self, value: Any) -> Place | None:
        """Where a module holds this very object, if one does."""
        return self._places.get(id(value))

    def change_since(self, before: ModuleState) -> str | None:
        """What was changed, for people, or None."""
        if self._process != before._process:
            return "the environment, the working folder or a default of torch's"
        new = self._roots.keys() - before._roots.keys()
        if new:
            return f"what {min(new)} is, which it imports: import it at the top of the module"
        for place in {**before._marks, **self._marks}:
            if self._marks.get(place) != before._marks.get(place):
                return written(place)
        return None


def roots(loaded: LoadedObjective, own: Mapping[str, ModuleType]) -> dict[str, Any]:
    """The namespaces of modules by name, and the objective."""
    return {**{name: vars(module) for name, module in own.items()}, OBJECTIVE: loaded.objective}


def at(place: Place, loaded: LoadedObjective) -> Any:
    """Return what is at a place of this process's modules. Raises what looking there raises, if it is not there."""
    name, *steps = place
    value: Any = loaded.objective if name == OBJECTIVE else vars(sys.modules[name])
    for kind, key in steps:
        inside = vars(value) if kind == "in" else value
        value = getattr(value, key) if kind == "attribute" else inside[key]
    return value


def _own_modules(path: Path) -> dict[str, ModuleType]:
    """The imported modules that are a person's own, by name; what lies in a library's package is the library's."""
    found, folders = {}, dict[str, bool]()
    for name, module in [*sys.modules.items()]:
        top = sys.modules.get(name.partition(".")[0])
        folder, file = os.path.split(getattr(top, "__file__", None) or getattr(module, "__file__", None) or "")
        if folder not in folders:
            folders[folder] = os.path.isabs(folder) and is_theirs(f"{folder}/any.py", path)
        mine = folders[folder] or (file == path.name and is_theirs(f"{folder}/{file}", path))
        if name not in MAIN and (mine or getattr(module, "__file__", None) == str(path)):
            found[name] = module
    return found


def written(place: Place) -> str:
    """A place as a person would write it."""
    name, *steps = place
    text = ""
    for number, (kind, key) in enumerate(steps):
        text += str(key) if number == 0 and kind == "item" else f"[{key!r}]" if kind == "item" else f".{key}"
    file = getattr(sys.modules.get(name), "__file__", None)
    return f"{text} of {os.path.basename(file) if file else name}"


def _mark(value: Any) -> Hashable:
    """Differs where another object has come to a place, or the object has changed and does not show it in parts."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, torch.Generator):  # two pickles of one state differ
        return id(value), value.get_state().numpy().tobytes()
    if isinstance(value, _GENERATORS):
        return id(value), pickle.dumps(value)
    if isinstance(value, set | frozenset):
        return id(value), frozenset(map(id, value))
    if isinstance(value, bytearray):
        return id(value), bytes(value)
    if hasattr(type(value), "cache_info"):  # functools.cache: what it has kept is in no __dict__
        return id(value), value.cache_info().misses
    return (type(value), value) if isinstance(value, _PLAIN) else id(value)


def _parts(value: Any, own: Mapping[str, ModuleType]) -> Iterator[tuple[tuple[str, Any], Any]]:
    """The steps into a value, and where they lead. Libraries' modules, classes and functions are theirs."""
    if isinstance(value, dict):
        yield from ((("item", key), inner) for key, inner in [*value.items()] if not _is_private(key))
    elif isinstance(value, list | tuple | deque):
        yield from ((("item", index), inner) for index, inner in enumerate(value))
    if isinstance(value, ModuleType | BuiltinFunctionType | logging.Logger | Tensor | MappingProxyType):
        return
    if isinstance(value, CellType):
        names = ["cell_contents"] if _filled(value) else []
    elif isinstance(value, FunctionType):
        closure, state = "__closure__", ["__defaults__", "__kwdefaults__", "__globals__"]
        names = [closure, *state] if _is_own(value, own) else []
    else:
        names = []
    yield from ((("attribute", name), getattr(value, name)) for name in names)
    if not isinstance(value, type | FunctionType) or _is_own(value, own):
        inside = getattr(value, "__dict__", {})
        yield from ((("in", key), inner) for key, inner in [*inside.items()] if not _is_private(key))


def _is_private(key: Any) -> bool:
    """Python's own names, which come and go: __builtins__, __warningregistry__, __annotations__."""
    return isinstance(key, str) and key.startswith("__") and key.endswith("__")


def _is_own(value: Any, own: Mapping[str, ModuleType]) -> bool:
    return value.__module__ in own or value.__module__ in MAIN or value.__module__ not in sys.modules


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not Ellipsis
    except ValueError:
        return False


def _process_state() -> tuple[Any, ...]:
    return (
        dict(os.environ),
        os.getcwd(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )
