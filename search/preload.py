"""Imported once by the process that workers are forked from: imports only, no tensor work, no CUDA call.

A forked child can open a GPU only if its parent never did. `search.children` names this module to the fork server, and
after it what the objective will import next.
"""

import contextlib
import importlib
import os

from search.uncompiled import spare_the_compiler

spare_the_compiler()
# Both are set by `search.children` for this process only, not for a person's own.
for _module in os.environ.pop("DIALIN_IMPORTS", "").split():
    with contextlib.suppress(Exception):  # it fails again where it is told: when the objective is loaded
        importlib.import_module(_module)
for _module in ("search.preview", "search.worker", "search.auto"):
    importlib.import_module(_module)
os.environ.pop("PYTHONSAFEPATH", None)
