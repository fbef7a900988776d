"""The data of an objective: tensors or torch Datasets in up to three splits.

An objective's `data(root)` returns a `Data`; `split` cuts tensors into one. The test split is never seen by a
search. Where a dataset's files lie is `search/datasets.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from search.arguments import NamedArguments
from search.errors import ObjectiveError

Split = tuple[Tensor, ...] | Dataset[Any]
"""Tensors of one length, the last of them the targets; or a map-style Dataset with items of any structure.

A training split may be an IterableDataset where the Objective says how many batches an epoch is."""

DEFAULT_VALID = 0.1


@dataclass(frozen=True)
class Data(NamedArguments):
    """Training, validation and test split. ObjectiveError: one is empty, ragged, or of another kind.

    Tensors are moved to the device once and shuffled there; a Dataset is read by a DataLoader with the
    sampled batch size, `loader_workers` processes and `collate` (default: torch's). `scale` and `augment`
    work on the first tensor of a batch, on the device: `scale(inputs)` on every batch (default: uint8
    becomes float32 from 0 to 1, anything else stays), then `augment(inputs, generator)` on training batches
    only. Write `augment` as batched tensor code and draw from its generator, which lives on the device of
    the inputs: torch.rand(len(inputs), device=inputs.device, generator=generator).

    `weights`, one for each training sample, shape (N,): samples are drawn with replacement, in proportion to
    them. `balanced(labels)` makes them so that all classes are drawn equally often.
    """

    train: Split
    valid: Split
    test: Split | None = None
    scale: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    loader_workers: int = 0
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.train, IterableDataset):
            _checked("train", self.train)
        _checked("valid", self.valid)
        if self.test is not None:
            _checked("test", self.test)
        if self.loader_workers < 0:
            raise ObjectiveError(f"loader_workers must be at least 0, but got {self.loader_workers}")
        if self.collate is not None and all(isinstance(part, tuple) for part in (self.train, self.valid)):
            raise ObjectiveError("collate is for the items of a Dataset, but both splits are tensors: leave it out")
        if self.weights is not None:
            _check_weights(self.weights, self.train)

    @property
    def folds(self) -> tuple[Data, ...]:
        """Itself alone: what has no folds is one."""
        return (self,)


@dataclass(frozen=True)
class Folds:
    """Data for cross-validation, as `split(..., folds=5)` makes it: a trial trains on each of its `folds` in turn.

    The trial's value is the mean over the folds. ObjectiveError: fewer than two, or something else than Data.
    """

    folds: tuple[Data, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.folds, tuple) or not all(isinstance(fold, Data) for fold in self.folds):
            raise ObjectiveError(f"folds must be a tuple of Data, but got {self.folds!r:.80}")
        if len(self.folds) < 2:
            raise ObjectiveError(f"folds must be at least 2, but got {len(self.folds)}")


def size(part: Split) -> int:
    """How many samples a split has."""
    return len(part[0]) if isinstance(part, tuple) else len(part)  # type: ignore[arg-type]


def balanced(labels: Tensor) -> Tensor:
    """Weights for `Data` by which every class is drawn equally often: one over the number of its samples.

    labels: class numbers, integers of shape (N,). Returns float64 of shape (N,). ObjectiveError: no such labels.
    """
    _check_labels("balanced", labels)
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    return (1 / counts.double())[classes]


def _check_labels(what: str, labels: Any) -> None:
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        is_tensor = isinstance(labels, Tensor)
        found = f"{labels.dtype} of shape {tuple(labels.shape)}" if is_tensor else type(labels).__name__
        raise ObjectiveError(f"{what} needs class labels, integers of shape (N,), as the last tensor, but got {found}")


# torch.multinomial draws from no more.
MOST_WEIGHTED = 2**24


def _check_weights(weights: Any, train: Any) -> None:
    if isinstance(train, IterableDataset):
        raise ObjectiveError("weights are for samples that can be drawn, but the train split is an IterableDataset")
    wanted = f"weights must be a tensor of shape ({size(train)},), a weight for each training sample"
    if not isinstance(weights, Tensor) or weights.shape != (size(train),):
        found = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ObjectiveError(f"{wanted}, but got {found}")
    if len(weights) > MOST_WEIGHTED:
        raise ObjectiveError(f"weights are for at most {MOST_WEIGHTED:,} samples, but there are {len(weights):,}")
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ObjectiveError("weights must be finite, none below 0 and not all 0")


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


@overload
def split(
    *tensors: Tensor,
    valid: float | int | None = None,
    test: float | int | Split = 0.0,
    stratify: bool = False,
    seed: int = 0,
    scale: Callable[[Tensor], Tensor] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    balance: bool = False,
    folds: None = None,
) -> Data: ...
@overload
def split(
    *tensors: Tensor,
    valid: None = None,
    test: float | int | Split = 0.0,
    stratify: bool = False,
    seed: int = 0,
    scale: Callable[[Tensor], Tensor] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    balance: bool = False,
    folds: int,
) -> Folds: ...
def split(
    *tensors: Tensor,
    valid: float | int | None = None,
    test: float | int | Split = 0.0,
    stratify: bool = False,
    seed: int = 0,
    scale: Callable[[Tensor], Tensor] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    balance: bool = False,
    folds: int | None = None,
) -> Data | Folds:
    """Cut tensors of one length into a `Data`, always the same way for the same seed.

    `valid` (default: 0.1) and `test` are a share (float below 1) or a number of samples (int); `test` may also
    be an official test split as it is. With `folds=k` each of k parts, equal to within one sample, is in turn
    the validation split of what is no test split, and the rest trains. With `stratify` each part has the
    classes of the last tensor (integer labels) in equal shares, to within one; with `balance` training draws
    them equally often, by `balanced`.
    """
    _checked("whole", tensors)
    count = len(tensors[0])
    held_out = test if isinstance(test, int | float) else 0
    share = valid if valid is not None else DEFAULT_VALID
    valid_size, test_size = _part("valid", share, count), _part("test", held_out, count)
    if folds is None and (valid_size < 1 or valid_size + test_size >= count):
        raise ObjectiveError(f"split leaves nothing: {count} samples, valid={share}, test={held_out}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if stratify:
        order = _spread_classes(tensors[-1], order)

    def cut(rows: Tensor) -> tuple[Tensor, ...]:
        """Sorted, so that a part lies in memory as the whole did."""
        return tuple(tensor[rows.sort().values] for tensor in tensors)

    def made(train: tuple[Tensor, ...], part: Split, test: Split | None) -> Data:
        return Data(train, part, test, scale, augment, weights=balanced(train[-1]) if balance else None)

    official: Split | None = test if not isinstance(test, int | float) else None
    if folds is not None:
        if valid is not None:
            raise ObjectiveError(f"each of the folds is a validation split: leave valid={valid} out")
        test_rows, rest = order.split([test_size, count - test_size])
        parts = _cut_folds(tensors, rest, folds)
        own_test = official if official is not None else cut(test_rows) if test_size else None
        return Folds(tuple(made(train, part, own_test) for train, part in parts))
    valid_part, test_part, train_part = map(cut, order.split([valid_size, test_size, count - valid_size - test_size]))
    own_test = test_part if test_size else None
    return made(train_part, valid_part, official if official is not None else own_test)


def _cut_folds(
    tensors: tuple[Tensor, ...], order: Tensor, folds: int
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """(train, valid) of each fold, all of them views of one copy: what is not in a fold is whatever follows it.

    Nearly twice the data in memory, for any number of folds: the samples once, and all again but the last fold.
    """
    count = len(order)
    if not isinstance(folds, int) or isinstance(folds, bool) or not 2 <= folds <= count:
        raise ObjectiveError(f"folds must be from 2 to the {count} samples there are, but got {folds!r}")
    parts = order.tensor_split(folds)
    rows = torch.cat([order, *parts[:-1]])
    copies = [tensor[rows] for tensor in tensors]
    start = 0
    for part in parts:
        end = start + len(part)
        after = end + count - len(part)
        yield tuple(copy[end:after] for copy in copies), tuple(copy[start:end] for copy in copies)
        start = end


def _part(name: str, share: float | int, count: int) -> int:
    if share < 0 or (isinstance(share, float) and share >= 1):
        raise ObjectiveError(f"{name} must be a share below 1.0 or a number of samples, but got {share!r}")
    return share if isinstance(share, int) else round(share * count)


def _spread_classes(labels: Tensor, order: Tensor) -> Tensor:
    """`order` rearranged so that any stretch of it has the classes in their shares: sample r of n at r/n."""
    _check_labels("stratify", labels)
    shuffled = labels[order]
    place = torch.empty(len(order), dtype=torch.float64)
    for label in shuffled.unique():
        rows = (shuffled == label).nonzero().flatten()
        place[rows] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    return order[place.argsort(stable=True)]
