"""Imported once by the process that workers are forked from: imports, what is read once, no tensor, no CUDA call.

A forked child can open a GPU only if its parent never did. `search.children` names this module to the fork server, and
after it what the objective will import next.
"""

import atexit
import contextlib
import gc
import importlib
import os

from search.uncompiled import spare_the_compiler
from storage.uncollected import uncollected

WITHOUT_TORCH = ("pandas", "scipy", "sklearn")


def _import(modules: list[str]) -> None:
    for module in modules:
        with contextlib.suppress(Exception):  # it fails again where it is told: when the objective is loaded
            importlib.import_module(module)


# Both are set by `search.children` for this process only, not for a person's own.
_likely = os.environ.pop("DIALIN_IMPORTS", "").split()
_early = [module for module in _likely if module.partition(".")[0] in WITHOUT_TORCH]
with uncollected(for_good=True):
    # What needs no torch comes first: a search's own part of a start is what comes after torch.
    _import(_early)
    importlib.import_module("search.auto")
    spare_the_compiler()
    _import(_likely)
    for _module in ("search.preview", "search.worker"):
        importlib.import_module(_module)
    importlib.import_module("storage.optuna_internals").read_once()
# At its end this process frees what it has: torchvision complains of what nobody did.
atexit.register(gc.unfreeze)
os.environ.pop("PYTHONSAFEPATH", None)
