"""Copies of what trains, that training on does not change: for checkpoints and for the best epoch's weights.

Used by the training loop and by a person's own loop.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor


def copied(value: Any, layout: torch.memory_format = torch.preserve_format) -> Any:
    """A copy on the CPU of a state_dict: tensors in dicts, lists and tuples, and plain values.

    layout: of the copy; an optimizer's state must lie as its weights do.
    """
    if isinstance(value, Tensor):
        dense = value.layout is torch.strided
        return value.detach().to("cpu", copy=True, memory_format=layout if dense else torch.preserve_format)
    if isinstance(value, dict):
        copies: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        copies.update((key, copied(item, layout)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # a module's state_dict has its layers' versions there
            copies._metadata = value._metadata
        return copies
    if isinstance(value, list | tuple):
        return type(value)(copied(item, layout) for item in value)
    return copy.deepcopy(value)
