"""Copies of what trains, that training on does not change: for checkpoints and for the best epoch's weights.

Used by the training loop and by a person's own loop.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor


def copied(value: Any) -> Any:
    """A copy on the CPU of a state_dict: tensors in dicts, lists and tuples, and plain values."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copies: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        copies.update((key, copied(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # a module's state_dict has its layers' versions there
            copies._metadata = value._metadata
        return copies
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return copy.deepcopy(value)
