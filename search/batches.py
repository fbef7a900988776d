"""Batches of a split, on the device: shuffled by (seed, epoch) and augmented to train, in order to evaluate.

Used by the trainer. Tensors lie on the device for the whole trial and are gathered there by index; any
other Dataset goes through a DataLoader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from search.data import Data, Split, size
from search.errors import ObjectiveError
from search.randomness import seed_of
from search.streams import Stream

# Large batches to evaluate on: at most so many samples, and no more of them than make so many bytes of
# float32 inputs, so that a network for large images, trained at a small batch, does not run out of memory.
# Never less than the training batch.
LARGE = 1024
LARGE_BYTES = 16 * 2**20
# Without tensors to measure: evaluating keeps no activations, so four training batches fit where one can be
# trained.
LARGE_MULTIPLE = 4
# On a CPU what a layer makes of a batch should stay in its caches: 128 images of 28x28 took a small convolutional
# network 92 us each, 1,024 took it 335 us each (one thread of a 2024 server CPU); a dense one lost a tenth.
CPU_LARGE = 128
CPU_LARGE_BYTES = 2**19


class _Source(Protocol):
    @property
    def order_device(self) -> torch.device: ...
    def gather(self, order: Sequence[Tensor], seed: int, after: int = 0) -> Iterator[Any]: ...


class TrainingBatches:
    """One split in shuffled batches. Its length is the batches of an epoch.

    An epoch is a pass over the split, or `epoch_batches` of an endless stream of passes, so that epoch 3 of four
    batches begins with the stream's ninth. With weights a pass is as many samples, drawn with replacement. The
    order within a pass is a function of (seed, pass). A last batch of a single sample is left out when there are
    others: BatchNorm cannot train on it. (Other samples are left out in other passes.)

    ObjectiveError: an IterableDataset without `epoch_batches`.
    """

    def __init__(
        self,
        data: Data,
        augment: Callable[[Any, torch.Generator], Any] | None,
        batch_size: int,
        *,
        seed: int,
        device: torch.device,
        epoch_batches: int | None = None,
    ) -> None:
        self._data, self._augment, self._batch_size = data, augment, batch_size
        self._seed, self._device, self._epoch_batches = seed, device, epoch_batches
        self._augmenting = torch.Generator(device)
        if isinstance(data.train, IterableDataset):
            if epoch_batches is None:
                raise ObjectiveError(
                    f"the train split {type(data.train).__name__} is an IterableDataset, which has no epochs of its "
                    "own: give the Objective epoch_batches, the batches of one"
                )
            self._stream = Stream(data.train, data, batch_size, seed)
            self._sizes = [batch_size]
            return
        self._source = _source(data.train, data, device)
        self._sizes = [len(rows) for rows in self._cut(torch.arange(size(data.train)))]

    def __len__(self) -> int:
        return self._epoch_batches or len(self._sizes)

    def samples(self, epoch: int) -> int:
        """How many samples an epoch holds; of an IterableDataset as many as full batches would."""
        first = (epoch - 1) * len(self)
        return sum(self._sizes[number % len(self._sizes)] for number in range(first, first + len(self)))

    def epoch(self, epoch: int, after: int = 0, state: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """The batches of an epoch: order, augmentation and DataLoader seed are functions of (seed, epoch).

        after: without so many at its beginning. state: where augmentation stood after them (see `state`).
        """
        self._augmenting = generator = self._generator("augment", epoch, self._device)
        if state is not None and state["device"] == self._device.type:
            generator.set_state(state["augment"])
        for batch in self._batches(epoch, after):
            scaled = _scaled(batch, self._data)
            if self._data.augment is not None:
                scaled = _with_inputs(scaled, _inputs(scaled, "augment"), self._data.augment, generator)
            yield scaled if self._augment is None else self._augment(scaled, generator)

    def state(self) -> dict[str, Any]:
        """Where augmentation stands in the epoch that is being drawn. Another kind of device begins it again."""
        return {"device": self._device.type, "augment": self._augmenting.get_state()}

    def _batches(self, epoch: int, after: int) -> Iterator[Any]:
        first = (epoch - 1) * len(self)
        if isinstance(self._data.train, IterableDataset):
            drawn = self._stream.take(first + after, len(self) - after)
            return (moved(batch, self._device) for batch in drawn)
        order: list[Tensor] = []
        while len(order) < len(self):
            passes, done = divmod(first + len(order), len(self._sizes))
            order += self._pass(passes + 1)[done : done + len(self) - len(order)]
        return self._source.gather(order, seed_of("loader", self._seed, epoch), after)

    def _pass(self, number: int) -> Sequence[Tensor]:
        """The rows of each batch of one pass over the split."""
        # Shuffled on the CPU: a GPU's generator would give another order.
        generator, count = self._generator("order", number, torch.device("cpu")), size(self._data.train)
        if self._data.weights is None:
            return self._cut(torch.randperm(count, generator=generator))
        weights = self._data.weights.to("cpu", torch.float64)
        return self._cut(torch.multinomial(weights, count, replacement=True, generator=generator))

    def _cut(self, order: Tensor) -> Sequence[Tensor]:
        pieces = order.split(self._batch_size)
        return pieces[:-1] if len(pieces) > 1 and len(pieces[-1]) == 1 < self._batch_size else pieces

    def _generator(self, purpose: str, epoch: int, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(seed_of(purpose, self._seed, epoch))


class EvaluationBatches:
    """One split in order, in large batches: every sample once."""

    def __init__(self, part: Split, data: Data, batch_size: int, *, device: torch.device) -> None:
        self._data, self._source = data, _source(part, data, device)
        order = torch.arange(size(part), device=self._source.order_device)  # once, and not once an epoch
        self._order = order.split(max(batch_size, _large(part, batch_size, device)))

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._source.gather(self._order, seed=0):
            yield _scaled(batch, self._data)


def _large(part: Split, batch_size: int, device: torch.device) -> int:
    most, most_bytes = (CPU_LARGE, CPU_LARGE_BYTES) if device.type == "cpu" else (LARGE, LARGE_BYTES)
    if not isinstance(part, tuple):
        return min(most, LARGE_MULTIPLE * batch_size)
    return min(most, most_bytes // max(1, 4 * part[0][0].numel()))


def _source(part: Split, data: Data, device: torch.device) -> _Source:
    if type(part) is TensorDataset and data.collate is None:
        part = part.tensors
    if isinstance(part, tuple):
        return _Tensors(part, device)
    return _Loader(part, data, device)


class _Tensors:
    def __init__(self, tensors: tuple[Tensor, ...], device: torch.device) -> None:
        self._tensors, self._device = tuple(tensor.to(device) for tensor in tensors), device

    @property
    def order_device(self) -> torch.device:
        """Where an order is best."""
        return self._device

    def gather(self, order: Sequence[Tensor], seed: int, after: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Copies, also in order: a model that works in place on its input must not change the data."""
        lengths = [len(rows) for rows in order]
        whole = torch.cat(list(order))
        if self._device.type == "cuda" and not whole.is_cuda:
            whole = whole.pin_memory()  # from other memory an upload would wait for the device
        for rows in whole.to(self._device, non_blocking=True).split(lengths)[after:]:
            # Indexing copies value by value: ten times as long for images of bytes.
            yield tuple(tensor.index_select(0, rows) for tensor in self._tensors)


class _Loader:
    def __init__(self, dataset: Dataset[Any], data: Data, device: torch.device) -> None:
        self._dataset, self._data, self._device = dataset, data, device

    @property
    def order_device(self) -> torch.device:
        return torch.device("cpu")

    def gather(self, order: Sequence[Tensor], seed: int, after: int = 0) -> Iterator[Any]:
        """Worker processes draw what is left out as well: what a dataset draws there depends on all before."""
        unread = 0 if self._data.loader_workers else after
        loader = DataLoader(
            self._dataset,
            batch_sampler=[rows.tolist() for rows in order[unread:]],
            num_workers=self._data.loader_workers,
            collate_fn=self._data.collate,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )
        for batch in islice(loader, after - unread, None):
            yield moved(batch, self._device)


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in its dicts, lists and (named) tuples on the device; all else stays."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def _inputs(batch: Any, wanted_by: str = "") -> Tensor | None:
    """The tensor that scale and augment work on: the batch itself or its first item; None if that is none.

    ObjectiveError: there is none, but `wanted_by` (an argument of Data) needs it.
    """
    first = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if isinstance(first, Tensor):
        return first
    if wanted_by:
        raise ObjectiveError(
            f"Data's {wanted_by} needs batches whose first item is a tensor, but got {type(first).__name__}: "
            "use the Task's augment, or scale in its step"
        )
    return None


def _scaled(batch: Any, data: Data) -> Any:
    if data.scale is not None:
        return _with_inputs(batch, _inputs(batch, "scale"), data.scale)
    inputs = _inputs(batch)
    return batch if inputs is None or inputs.dtype != torch.uint8 else _with_inputs(batch, inputs, _from_bytes)


def _from_bytes(inputs: Tensor) -> Tensor:
    return inputs.to(torch.float32).div_(255)


def _with_inputs(batch: Any, inputs: Tensor | None, change: Callable[..., Tensor], *more: Any) -> Any:
    changed = change(inputs, *more)
    if isinstance(batch, Tensor):
        return changed
    if hasattr(batch, "_fields"):
        return type(batch)(changed, *batch[1:])
    return type(batch)([changed, *batch[1:]])
