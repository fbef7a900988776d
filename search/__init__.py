"""Where an objective's author imports from: `from search import Data, Objective, split`; and `search.run(objective)`.

Lazily, so that a command that needs no torch imports none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import Search, load, run
    from search.data import Data, Folds, balanced, split
    from search.datasets import DataCorrupt, DataMissing, data_root, find_dataset
    from search.errors import ObjectiveError
    from search.loop import Run
    from search.metrics import Metric, NamedMetric
    from search.objective import Objective, Task, supervised
    from search.optimizers import Optimizer
    from search.schedules import Schedule
    from search.wishes import around

__all__ = [
    "Data",
    "DataCorrupt",
    "DataMissing",
    "Folds",
    "Metric",
    "NamedMetric",
    "Objective",
    "ObjectiveError",
    "Optimizer",
    "Run",
    "Schedule",
    "Search",
    "Task",
    "around",
    "balanced",
    "data_root",
    "find_dataset",
    "load",
    "run",
    "split",
    "supervised",
]

_MODULES = {
    "search.api": ("Search", "load", "run"),
    "search.data": ("Data", "Folds", "balanced", "split"),
    "search.datasets": ("DataCorrupt", "DataMissing", "data_root", "find_dataset"),
    "search.errors": ("ObjectiveError",),
    "search.loop": ("Run",),
    "search.metrics": ("Metric", "NamedMetric"),
    "search.objective": ("Objective", "Task", "supervised"),
    "search.optimizers": ("Optimizer",),
    "search.schedules": ("Schedule",),
    "search.wishes": ("around",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
