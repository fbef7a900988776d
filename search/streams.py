"""Training batches of an IterableDataset: an endless stream of passes over it, from any place on.

Used by `search.batches`, which cuts the stream into epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from search.data import Data
from search.errors import ObjectiveError
from search.randomness import OwnRandomness, seed_of


class Stream:
    """Batches of a dataset that is begun again whenever it ends.

    What the dataset draws from the global generators is a function of (seed, pass), in this process and in a
    DataLoader's. The place in the stream is not kept in a checkpoint: a stream is read again from its beginning
    to wherever batches are wanted from, which costs the time of reading them.
    """

    def __init__(self, dataset: IterableDataset[Any], data: Data, batch_size: int, seed: int) -> None:
        self._passes = _Passes(dataset, data, batch_size, seed)
        self._batches: Iterator[Any] | None = None
        self._at = 0

    def take(self, first: int, batches: int) -> Iterator[Any]:
        """So many batches, from number `first` on, counted from 0 since the beginning of the first pass."""
        if self._batches is None or self._at != first:
            self._batches, self._at = self._passes.endless(), first
            next(islice(self._batches, first, first), None)
        for _ in range(batches):
            self._at += 1
            yield next(self._batches)


@dataclass(frozen=True)
class _Passes:
    """What a stream is of. Its generators hold this and not the stream, which so needs no garbage collector to end.

    Left to that, a DataLoader's processes would hold up whatever runs then, for five seconds each.
    """

    dataset: IterableDataset[Any]
    data: Data
    batch_size: int
    seed: int

    def endless(self) -> Iterator[Any]:
        for number in count(1):
            some = False
            for batch in self._one(number):
                # BatchNorm cannot train on a single sample, such as the last ones of a pass may be.
                if some and self.batch_size > 1 and _length(batch) == 1:
                    continue
                some = True
                yield batch
            if not some:
                raise ObjectiveError(f"the train split {type(self.dataset).__name__} gave nothing in pass {number}")

    def _one(self, number: int) -> Iterator[Any]:
        randomness = OwnRandomness(seed_of("stream", self.seed, number))
        with randomness:
            batches = iter(
                DataLoader(
                    self.dataset,
                    batch_size=self.batch_size,
                    num_workers=self.data.loader_workers,
                    collate_fn=self.data.collate,
                    generator=torch.Generator().manual_seed(seed_of("loader", self.seed, number)),
                )
            )
        while True:
            with randomness:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _length(batch: Any) -> int | None:
    """How many samples the first tensor in a batch holds."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((length for value in values if (length := _length(value)) is not None), None)
