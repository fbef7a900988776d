"""Imported once by the process that workers are forked from: imports only, no tensor work, no CUDA call.

A forked child can open a GPU only if its parent never did. `search.fleet` names this module to the fork server.
"""

import torchvision  # noqa: F401 - what most objectives import next
