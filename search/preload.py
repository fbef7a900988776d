"""Imported once by the process that workers are forked from: imports only, no tensor work, no CUDA call.

A forked child can open a GPU only if its parent never did. `search.fleet` names this module to the fork server.
"""

import search.preview
import search.worker
import sklearn.datasets  # what bundled data comes from
import torch._dynamo  # what torch's first optimizer imports by itself: 1.7 s
import torchvision  # noqa: F401 - what most objectives import next
