"""Modules and data of the last few studies, for a worker of the queue that comes back to one of them.

Both are kept together: `data()` may set something in its module that `model` reads, and a module that is run anew would
lack it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search import loading
from search.allowed import source_sha256
from search.by_value import ByValue
from search.loading import LoadedObjective
from search.packing import shared_or_loaded


@dataclass
class _Module:
    loaded: LoadedObjective
    data: dict[Path, Any] = field(default_factory=dict)


class Kept:
    """What `search.worker` asks for an objective and its data, where the source is as it was."""

    def __init__(
        self,
        most: int,
        resolve: Callable[[str | ByValue], LoadedObjective] = loading.resolve,
        load: Callable[..., Any] = shared_or_loaded,
    ) -> None:
        """`most` modules, with their data."""
        self._most, self._resolve, self._load = most, resolve, load
        self._kept: OrderedDict[tuple[str, str], _Module] = OrderedDict()

    def resolve(self, given: str | ByValue) -> LoadedObjective:
        """As `loading.resolve`. Raises what that does."""
        assert isinstance(given, str), "an objective by value belongs to the study of one command"
        key = given, source_sha256(given) or ""
        if key not in self._kept:
            self._kept[key] = _Module(self._resolve(given))
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key].loaded

    def forget_last(self) -> None:
        """What was resolved last is not what it was taken for."""
        self._kept.popitem()

    def load(self, shared: Any, loaded: LoadedObjective, root: Path, say: Callable[[str], None]) -> Any:
        """As `shared_or_loaded`, for the module that was resolved last. Raises what that does."""
        data = next(reversed(self._kept.values())).data
        if root not in data:
            data[root] = self._load(shared, loaded, root, say)
        return data[root]
