"""The data of an objective: tensors or torch Datasets in up to three splits, and where their files lie.

An objective's `data(root)` returns a `Data`. `split` cuts tensors into one; `find_dataset` finds a public
dataset's files below `root`, or in the cache, where it unpacks them once for all processes. The test split
is never seen by a search.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from search.errors import ObjectiveError
from storage.errors import UsageError

Split = tuple[Tensor, ...] | Dataset[Any]
"""Tensors of one length, the last of them the targets; or a map-style Dataset with items of any structure."""


@dataclass(frozen=True)
class Data:
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


class DataMissing(UsageError):
    """A dataset is in none of the places looked at: the message says what, where, and how to get it."""


class DataCorrupt(UsageError):
    """A dataset's file is there but is not what was published: the message names it."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where dialin unpacks what it finds packed: $XDG_CACHE_HOME/dialin, by default ~/.cache/dialin."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dialin"


def data_root(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder `Objective.data` is called with: the explicit one, else $DIALIN_DATA, else the cache."""
    if explicit is not None:
        return explicit.expanduser()
    return Path(environ["DIALIN_DATA"]).expanduser() if environ.get("DIALIN_DATA") else cache_folder(environ)


def find_dataset(
    name: str,
    files: Iterable[tuple[str, str | None]],
    root: Path,
    *,
    get: str,
    cache: Path | None = None,
) -> Path:
    """The folder below which `name` holds every file of the dataset unpacked: torchvision's root.

    name: the folder of the files, as "FashionMNIST/raw"; files: (file name, md5) pairs, torchvision's
    `resources`; a name that ends in .gz is wanted unpacked, and its md5 (None: unknown) is the packed
    file's. get: the command that gets the data, for the error; "{cache}" in it stands for the cache. Looked
    at are `root`, then the cache. Where only the packed files are (`root` may be read-only), they are
    unpacked into the cache: once, with any number of processes at once, and again after a crash.
    DataMissing, DataCorrupt: one line.
    """
    wanted = dict(files)
    cache = cache_folder() if cache is None else cache
    places = list(dict.fromkeys([root, cache]))
    for place in places:
        if all((place / name / file.removesuffix(".gz")).is_file() for file in wanted):
            return place
    for packed in (folder for place in places for folder in (place / name, place)):
        if all((packed / file).is_file() for file in wanted):
            with _locked(cache, name):
                _unpack(packed, cache / name, wanted)
            return cache
    where = " and ".join(str(place / name) for place in places)
    command = get.format(cache=cache)
    raise DataMissing(f"no {name}: looked for {', '.join(wanted)} (packed or not) in {where}; get it with: {command}")


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when the process ends, however it ends."""
    lock = cache / name / ".unpacking"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UsageError(
            f"cannot write to the cache {cache} ({error.strerror}): set XDG_CACHE_HOME to a writable folder"
        ) from error
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _unpack(packed: Path, folder: Path, wanted: Mapping[str, str | None]) -> None:
    """Each file appears in `folder` whole or not at all: checked, written beside its place, and renamed."""
    for file, md5 in wanted.items():
        target = folder / file.removesuffix(".gz")
        if target.is_file():  # another process was first, or a run before a crash got this far
            continue
        try:
            _check(packed / file, md5)
            partial = target.with_name(target.name + ".partial")
            unpack = gzip.open if file.endswith(".gz") else open
            with unpack(packed / file, "rb") as source, open(partial, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(target)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataCorrupt(f"corrupt file {packed / file}: {error}; get it again") from error
        except OSError as error:
            raise UsageError(f"cannot unpack {packed / file} into {folder}: {error.strerror}") from error


def _check(path: Path, md5: str | None) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if md5 not in (None, found):
        raise DataCorrupt(f"corrupt file {path}: its md5 is {found}, not {md5}; get it again")
