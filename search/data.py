"""The data of an objective: tensors or torch Datasets in up to three splits.

An objective's `data(root)` returns a `Data`; `split` cuts tensors into one. The test split is never seen by a
search. Where a dataset's files lie is `search/datasets.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from search.arguments import NamedArguments
from search.errors import ObjectiveError

Split = tuple[Tensor, ...] | Dataset[Any]
"""Tensors of one length, the last of them the targets; or a map-style Dataset with items of any structure."""


@dataclass(frozen=True)
class Data(NamedArguments):
    """Training, validation and test split. ObjectiveError: one is empty, ragged, or of another kind.

    Tensors are moved to the device once and shuffled there; a Dataset is read by a DataLoader with the
    sampled batch size, `loader_workers` processes and `collate` (default: torch's). `scale` and `augment`
    work on the first tensor of a batch, on the device: `scale(inputs)` on every batch (default: uint8
    becomes float32 from 0 to 1, anything else stays), then `augment(inputs, generator)` on training batches
    only. Write `augment` as batched tensor code and draw from its generator, which lives on the device of
    the inputs: torch.rand(len(inputs), device=inputs.device, generator=generator).
    """

    train: Split
    valid: Split
    test: Split | None = None
    scale: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    loader_workers: int = 0

    def __post_init__(self) -> None:
        _checked("train", self.train)
        _checked("valid", self.valid)
        if self.test is not None:
            _checked("test", self.test)
        if self.loader_workers < 0:
            raise ObjectiveError(f"loader_workers must be at least 0, but got {self.loader_workers}")


def size(part: Split) -> int:
    """How many samples a split has."""
    return len(part[0]) if isinstance(part, tuple) else len(part)  # type: ignore[arg-type]


def _checked(name: str, part: Any) -> None:
    if isinstance(part, IterableDataset) or (isinstance(part, Dataset) and not hasattr(part, "__len__")):
        raise ObjectiveError(
            f"the {name} split must be a map-style Dataset, with __getitem__ and __len__, "
            f"but {type(part).__name__} is not"
        )
    if isinstance(part, tuple) and part:
        for tensor in part:
            if not isinstance(tensor, Tensor) or tensor.ndim == 0:
                found = "a tensor without dimensions" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ObjectiveError(
                    f"the {name} split must hold tensors (torch.as_tensor makes them), but got {found}"
                )
        lengths = [len(tensor) for tensor in part]
        if len(set(lengths)) > 1:
            raise ObjectiveError(f"the tensors of the {name} split must be of one length, but got {lengths}")
    elif not isinstance(part, Dataset):
        found = "an empty tuple" if isinstance(part, tuple) else type(part).__name__
        raise ObjectiveError(f"the {name} split must be a tuple of tensors or a torch Dataset, but got {found}")
    if size(part) == 0:
        raise ObjectiveError(f"the {name} split is empty")


def split(
    *tensors: Tensor,
    valid: float | int = 0.1,
    test: float | int | Split = 0.0,
    stratify: bool = False,
    seed: int = 0,
    scale: Callable[[Tensor], Tensor] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Data:
    """Cut tensors of one length into a `Data`, always the same way for the same seed.

    `valid` and `test` are a share (float below 1) or a number of samples (int); `test` may also be an
    official test split as it is. With `stratify` each part has the classes of the last tensor (integer
    labels) in equal shares, to within one.
    """
    _checked("whole", tensors)
    count = len(tensors[0])
    held_out = test if isinstance(test, int | float) else 0
    valid_size, test_size = _part("valid", valid, count), _part("test", held_out, count)
    if valid_size < 1 or valid_size + test_size >= count:
        raise ObjectiveError(f"split leaves nothing: {count} samples, valid={valid}, test={held_out}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if stratify:
        order = _spread_classes(tensors[-1], order)
    sizes = [valid_size, test_size, count - valid_size - test_size]
    # Sorted, so that each part lies in memory as the whole did.
    valid_part, test_part, train_part = (
        tuple(tensor[rows.sort().values] for tensor in tensors) for rows in order.split(sizes)
    )
    official: Split | None = test if not isinstance(test, int | float) else None
    own_test = test_part if test_size else None
    return Data(train_part, valid_part, official if official is not None else own_test, scale, augment)


def _part(name: str, share: float | int, count: int) -> int:
    if share < 0 or (isinstance(share, float) and share >= 1):
        raise ObjectiveError(f"{name} must be a share below 1.0 or a number of samples, but got {share!r}")
    return share if isinstance(share, int) else round(share * count)


def _spread_classes(labels: Tensor, order: Tensor) -> Tensor:
    """`order` rearranged so that any stretch of it has the classes in their shares: sample r of n at r/n."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise ObjectiveError(
            "stratify needs class labels, integers of shape (N,), as the last tensor, "
            f"but got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    shuffled = labels[order]
    place = torch.empty(len(order), dtype=torch.float64)
    for label in shuffled.unique():
        rows = (shuffled == label).nonzero().flatten()
        place[rows] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    return order[place.argsort(stable=True)]
