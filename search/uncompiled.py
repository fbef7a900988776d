"""Training without torch's compiler being imported for it, until somebody compiles.

Optimizers ask two things of `torch._dynamo`, which come to nothing where nothing is compiled: a process's first
optimizer has four of its methods `disable`d, and each step calls `graph_break`. torchvision takes a function of
`torch._dynamo.utils`, for boxes that somebody may train with. For that torch imports the whole compiler, sympy with it:
1.6 s of CPU in each `dialin run` (torch 2.15, two cores; torch itself takes 1.8 s).

`spare_the_compiler` puts a stand-in in its place that answers just these, and is replaced by the real module as soon as
anything else is asked of it, or that function is called: `torch.compile`, `import torch._dynamo.config`. A torch that
asks for other things pays as before. Processes of ours call it: `search.preload` and the commands that train.
"""

from __future__ import annotations

import importlib
import sys
from abc import abstractmethod
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"
# Where torch's wrapper of a function keeps what `disable` made of it, see torch/_compile.py.
_KEPT = "__dynamo_disable"


def spare_the_compiler() -> None:
    """Let optimizers of this process do without torch's compiler, unless it is imported already. Imports torch."""
    import torch

    if COMPILER in sys.modules:
        return
    spec = find_spec(COMPILER)
    if spec is None:
        return
    stand_in = _StandIn(spec)
    sys.modules[COMPILER] = torch._dynamo = stand_in
    sys.modules[UTILS] = _Utils(stand_in)
    sys.meta_path.insert(0, _PartsOfIt(stand_in))


class _Asleep(ModuleType):
    """A module that is woken by whatever is asked of it, but for what the import system asks."""

    @abstractmethod
    def wake(self) -> ModuleType:
        """The real one, in this one's place."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        return getattr(self.wake(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self.wake(), name, value)


class _StandIn(_Asleep):
    """What is found as `torch._dynamo` until it is needed."""

    _plain: list[Any]

    def __init__(self, spec: ModuleSpec) -> None:
        """Whoever looks through all modules for their files finds its file, and does not wake it."""
        super().__init__(spec.name, "Stands in for the real one: see search/uncompiled.py.")
        self.__spec__, self.__file__ = spec, spec.origin
        self.__path__ = spec.submodule_search_locations or []
        vars(self)["_plain"] = []

    def graph_break(self, msg: str = "") -> None:
        """Does nothing outside of a compiled function, in torch as well."""

    def disable(self, *args: Any, **kwargs: Any) -> Any:
        """torch asks its wrappers' question so; anybody else's is for the real one."""
        if kwargs != {"wrapping": False}:
            return self.wake().disable(*args, **kwargs)
        self._plain.append(args[0])
        return args[0]

    def wake(self) -> ModuleType:
        if sys.modules.get(COMPILER) is self:
            for name in (COMPILER, UTILS):
                sys.modules.pop(name, None)
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _PartsOfIt)]
            for function in self._plain:
                getattr(function, "__dict__", {}).pop(_KEPT, None)
        return importlib.import_module(COMPILER)


class _Utils(_Asleep):
    """What is found as `torch._dynamo.utils` until more of it is needed than that torchvision has its function."""

    _whole: _StandIn

    def __init__(self, whole: _StandIn) -> None:
        super().__init__(UTILS, whole.__doc__)
        spec = PathFinder.find_spec(UTILS, whole.__path__)
        self.__spec__, self.__file__ = spec, spec.origin if spec else None
        vars(self)["_whole"] = whole

    def is_compile_supported(self, device_type: str) -> bool:
        """What the real one says."""
        return bool(self.wake().is_compile_supported(device_type))

    def wake(self) -> ModuleType:
        self._whole.wake()
        return importlib.import_module(UTILS)


class _PartsOfIt(MetaPathFinder, Loader):
    """Wakes the real module when a part of it is imported, before anything else was asked of it."""

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in = stand_in
        self._parts: dict[str, tuple[ModuleType, ModuleSpec | None]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of a part that came with the whole, the way to that one: Python would load it a second time."""
        if not fullname.startswith(f"{COMPILER}."):
            return None
        self._stand_in.wake()
        part = sys.modules.pop(fullname, None)
        if part is None:
            return None
        self._parts[fullname] = part, part.__spec__
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The part that is there."""
        return self._parts[spec.name][0]

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed; it gets back where it came from."""
        module.__spec__ = self._parts[module.__name__][1]
