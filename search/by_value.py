"""An Objective that exists only in a person's script or notebook, on its way to the processes that train it.

`search.run(objective)` makes a `ByValue`; multiprocessing carries it to the first check and to the workers, and
`search.loading.resolve` takes it as it takes a reference. It is never written to a database or a file.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from search.failures import first_line, typed_in
from storage.errors import UsageError
from storage.studies import NOTEBOOK

DEFAULT_NAME = "objective"
if TYPE_CHECKING:
    from search.objective import Objective

# The arguments of an Objective that a person writes as functions.
_FUNCTIONS = ("model", "train", "function", "data", "loss")


class Pickled:
    """What arrives in another process as the value itself.

    cloudpickle sends functions and classes of `__main__` whole, and those of modules by name. Pickled once:
    every worker gets the objective as it was when the search began.
    """

    def __init__(self, value: Any) -> None:
        """Raises UsageError: something in it belongs to this process alone."""
        import cloudpickle  # here: what only looks at studies need not load it

        try:
            self._bytes = cloudpickle.dumps(value)
        except Exception as error:  # cloudpickle raises whatever the reduction of a person's object raises
            raise UsageError(
                f"the objective cannot be sent to workers ({first_line(error)}): make in model() or data() what "
                "belongs to one process, such as an open file, a lock or a connection"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._bytes,)


@dataclass(frozen=True)
class ByValue:
    """An objective by value, and what a person calls it.

    Attributes:
        reference: where a person finds it: "/home/me/tune.py:net", a module's name, or "notebook:net".
        name: letters, digits and "_": studies are named after it.
        source_sha256: checksum of the file it is in, or of the source of its functions.
        path: its file, or one that stands for the notebook, as `search.failures` needs it.
        objective: the Objective; a `Pickled` until it has arrived in another process.
        cells: source of the notebook's cells by the file names that tracebacks have for them.
    """

    reference: str
    name: str
    source_sha256: str
    path: Path
    objective: Any
    cells: Mapping[str, str]

    def __str__(self) -> str:
        return self.reference

    def show_cells(self) -> None:
        """Let tracebacks in this process show a notebook's lines."""
        for name, source in self.cells.items():
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)


def by_value(objective: Objective, written: Any = None) -> ByValue:
    """An Objective, ready to be sent; `written`: what a person wrote, if not that. Raises UsageError: it cannot be."""
    module, name = _home(objective, objective if written is None else written)
    pickled, cells = Pickled(objective), dict(_cells())
    own = "" if name == DEFAULT_NAME else f":{name}"
    file = getattr(module, "__file__", None)
    if module.__name__.startswith("objectives."):
        stem = reference = module.__name__.removeprefix("objectives.")
    elif file is None:
        path = Path.cwd() / "notebook"
        return ByValue(f"{NOTEBOOK}{name}", name, _sources_sha256(objective), path, pickled, cells)
    elif module.__package__ and module.__name__ != "__main__":
        reference, stem = module.__name__, module.__name__.rpartition(".")[2]
    else:
        reference, stem = str(Path(file).resolve()), Path(file).stem
    path = Path(file or "").resolve()
    tidy = "".join(letter if letter.isalnum() else "_" for letter in stem).strip("_") or DEFAULT_NAME
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ByValue(f"{reference}{own}", f"{tidy}{own.replace(':', '_')}", sha256, path, pickled, cells)


def _home(objective: Objective, written: Any) -> tuple[ModuleType, str]:
    """The module that holds what was written, and its name there; else the main one, and what is usual."""
    functions = [getattr(objective, name, None) for name in _FUNCTIONS]
    names = dict.fromkeys(getattr(function, "__module__", None) for function in functions)
    main = sys.modules["__main__"]
    modules = [sys.modules[name] for name in names if name in sys.modules]
    for module in (*modules, main):
        for name, value in [*vars(module).items()]:
            if value is written and not name.startswith("_"):  # a notebook has its results as _ and _3 too
                return module, name
    return main, DEFAULT_NAME


def _sources_sha256(objective: Objective) -> str:
    """So that a study tells when a notebook's functions are no longer what it was made with."""
    digest = hashlib.sha256()
    for name in _FUNCTIONS:
        try:
            digest.update(inspect.getsource(getattr(objective, name, None)).encode())  # type: ignore[arg-type]
        except (TypeError, OSError):  # no function, or one typed where no source is kept
            continue
    return digest.hexdigest()


def _cells() -> Iterator[tuple[str, str]]:
    """Source that only this process has: IPython's cells, which ipykernel names as files that are not there."""
    for name, entry in [*linecache.cache.items()]:
        if (
            len(entry) == 4
            and entry[1] is None
            and (typed_in(name) or (name.startswith("/") and not Path(name).exists()))
        ):
            yield name, "".join(entry[2])
