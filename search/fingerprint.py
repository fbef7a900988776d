"""A checksum of an objective's data: does a curve that is trained again see what it saw the first time?

Called by a worker at its start (`search.provenance`), so it is quick and runs no code of a person's: of a large tensor
evenly spaced rows are read, of a Dataset what its instance holds, and no item is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from search.data import Data, Folds

# Of each tensor so many bytes are read at most, 10 ms of one core: labels are read whole, images by every n-th.
MOST_BYTES = 8 * 2**20
# Of a list so many items: of a million paths every hundredth.
MOST_ITEMS = 10_000
# Datasets hold datasets, which hold lists of pairs.
MOST_DEPTH = 6
# Of the hexadecimal digits.
DIGITS = 16


class _Digest(Protocol):
    def update(self, content: Any, /) -> None: ...


def fingerprint(data: Data | Folds) -> str:
    """Sixteen hexadecimal digits: the same for the same splits, on any machine and from any folder.

    What differs in rows of a large tensor that are not read, or only in what code makes of it (augmentation, files
    that items are read from), has the same.
    """
    digest = hashlib.sha256()
    first, *others = data.folds
    for part in (first.train, first.valid, first.test, first.weights):
        _add(digest, part, 0)
    for fold in others:  # the rest of each is what the first one has
        _add(digest, fold.valid, 0)
    return digest.hexdigest()[:DIGITS]


def _add(digest: _Digest, value: Any, depth: int) -> None:
    """One value, and what it holds."""
    if isinstance(value, Tensor):
        _add_tensor(digest, value)
    elif isinstance(value, numpy.ndarray):
        _add_array(digest, value)
    elif isinstance(value, numpy.generic):  # its text is another in each NumPy
        digest.update(f"{value.item()!r};".encode())
    elif value is None or isinstance(value, bool | int | float | complex | bytes):
        digest.update(f"{value!r};".encode())
    elif isinstance(value, str | PurePath):
        digest.update(f"{_portable(value)};".encode(errors="replace"))
    else:
        digest.update(f"{type(value).__qualname__}:".encode())
        for one in _held(value) if depth < MOST_DEPTH else ():
            _add(digest, one, depth + 1)
        digest.update(b";")


def _held(value: Any) -> Iterable[Any]:
    """What a container or a Dataset has in it, as far as that can be told without its code."""
    if isinstance(value, Mapping):
        return [one for pair in _some([*value.items()]) for one in pair]
    if isinstance(value, list | tuple | range):
        return [len(value), *_some(value)]
    if isinstance(value, set | frozenset):
        return [len(value)]  # in any order
    if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_numpy"):
        return [tuple(value.shape), value[:: max(1, -(-len(value) // MOST_ITEMS))].to_numpy()]
    if isinstance(value, Dataset):
        return [one for pair in sorted(getattr(value, "__dict__", {}).items()) for one in pair]
    return [tuple(shape)] if isinstance(shape := getattr(value, "shape", None), tuple | list) else []


def _some(values: Sequence[Any]) -> Sequence[Any]:
    """At most MOST_ITEMS of them, evenly spaced."""
    return values[:: max(1, -(-len(values) // MOST_ITEMS))]


def _portable(text: str | PurePath) -> str:
    """Of a path a file's name: the same files lie in other folders on other machines."""
    said = str(text)
    if not said.startswith("/"):
        return said
    path = PurePath(said)
    return path.name if path.suffix else ""


def _add_tensor(digest: _Digest, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return
    step = max(1, -(-tensor.numel() * tensor.element_size() // MOST_BYTES))
    rows = tensor.detach()[::step] if tensor.ndim else tensor.detach()
    content = rows.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    digest.update(content.view(torch.uint8).numpy().data)


def _add_array(digest: _Digest, array: numpy.ndarray[Any, Any]) -> None:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    if array.dtype.hasobject:
        _add(digest, array.ravel().tolist(), 1)
        return
    step = max(1, -(-array.nbytes // MOST_BYTES))
    rows = array[::step] if array.ndim else array
    digest.update(numpy.ascontiguousarray(rows).tobytes())
