"""A batch that does not fit into memory goes through the network in parts, whose gradients and sums add up.

Used by `search.steps` to train and by `search.evaluation`; `search.exactness` finds out whether parts come to the same.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

PLAIN = (str, bytes, int, float, bool, type(None))


class WontFit(MemoryError):
    """Memory is wanting, and smaller parts of the batch are no way out; the message says why."""


def count(batch: Any) -> int | None:
    """How many samples a batch holds: the one length that all its tensors have. None: that cannot be told."""
    try:
        lengths = {*_lengths(batch)}
    except TypeError:
        return None
    return lengths.pop() if len(lengths) == 1 else None


def _lengths(batch: Any) -> Iterator[int]:
    """Of every tensor in tuples, lists and dicts. TypeError: there is something else in them."""
    if isinstance(batch, Tensor):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _lengths(value)
    elif isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence):
        for value in batch:
            yield from _lengths(value)
    elif not isinstance(batch, PLAIN):
        raise TypeError


def cut(batch: Any, samples: int) -> list[Any]:
    """The batch in parts as even as can be, none of more than `samples` samples; each is a copy.

    The batch must have a `count`. Copies, since a network that works in place must leave the batch as it is.
    """
    whole = count(batch)
    assert whole is not None, "a batch that cannot be counted cannot be cut"
    pieces = -(-whole // samples)
    ends = [whole * piece // pieces for piece in range(pieces + 1)]
    return [_rows(batch, slice(*between), whole) for between in itertools.pairwise(ends)]


def head(batch: Any, samples: int) -> Any:
    """The first so many samples of a batch that has a `count`; a copy."""
    return _rows(batch, slice(0, samples), count(batch) or 0)


def _rows(batch: Any, rows: slice, whole: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[rows].clone() if batch.ndim else batch
    if isinstance(batch, dict):
        return {key: _rows(value, rows, whole) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_rows(value, rows, whole) for value in batch))
    if isinstance(batch, list | tuple):
        if len(batch) == whole and all(isinstance(value, PLAIN) for value in batch):
            return batch[rows]
        return type(batch)(_rows(value, rows, whole) for value in batch)
    return batch


def versions(batch: Any) -> list[int]:
    """Counts how often each tensor was changed in place, as torch does: others than before, and the batch is spoilt."""
    if isinstance(batch, Tensor):
        return [] if batch.is_inference() else [batch._version]
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return [version for value in values for version in versions(value)]


def same(one: Any, other: Any) -> bool:
    """Whether two batches hold the same tensors."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    pairs = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else ()
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
    return all(same(*pair) for pair in pairs)


def free(device: torch.device) -> None:
    """Give back what the batch that did not fit has left, also in cycles of objects."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def digest(net: nn.Module, batch: Any, *others: object) -> str:
    """Names what the memory for one sample depends on: layers, shapes, precision; not the number of samples."""
    tensors = [(name, tuple(t.shape), str(t.dtype), t.requires_grad) for name, t in net.named_parameters()]
    told = (repr(net), tensors, _sample(batch), *others)
    return hashlib.sha256(repr(told).encode(errors="replace")).hexdigest()


def _sample(batch: Any) -> Any:
    """One sample's shapes and types."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape[1:]), str(batch.dtype)
    if isinstance(batch, dict):
        return {str(key): _sample(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [_sample(value) for value in batch]
    return type(batch).__name__
