"""Imported once by the process that workers are forked from: imports only, no tensor work, no CUDA call.

A forked child can open a GPU only if its parent never did. `search.fleet` names this module to the fork server.
"""

import importlib
import os

for _module in (
    "search.worker",
    # What most objectives import next.
    "sklearn.datasets",
    "torchvision",
    # What torch imports with a process's first optimizer: 1.7 s.
    "torch._dynamo",
):
    importlib.import_module(_module)

os.environ.pop("PYTHONSAFEPATH", None)  # set by `search.fleet` for this process only, not for a person's own
