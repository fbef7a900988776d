"""Packs what `data()` returned, and unpacks it in the workers: `search.shared_data` says where it is meanwhile.

All memory of CPU tensors and numpy arrays, wherever they are in the Data, goes to one file: each byte once,
however many tensors view it. A worker maps the file privately: what is only read is the same physical memory in
all processes of the machine, and a page that a worker writes to becomes its own. Everything else is pickled.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy
import torch

from search import module_state
from search.failures import first_line, line_of
from search.loading import LoadedObjective
from search.module_state import ModuleState, TooMuch
from search.preview import load_data
from search.shared_data import NamelessFile, NotPacked, Packed

# What is no tensor is copied to every worker, through a pipe: beyond this, loading it again is as good.
MOST_PICKLED = 64 * 2**20
# The file may take so much of the free space where it lies; the machine needs the rest.
MOST_OF_DISK = 0.5
# Memory is put at the same offset from a cache line as it had, so that vector code takes the same path.
LINE = 64


class CannotShare(Exception):
    """Why the data stays with the process that loaded it."""


def load_to_share(loaded: LoadedObjective, root: Path, file: NamelessFile) -> tuple[Any, Packed | NotPacked]:
    """Call the objective's `data`, and pack what it returned before anything can change it.

    Raises:
        ObjectiveError: data() fails. What cannot be packed is no error, but a NotPacked.
    """
    before = _state(loaded)
    data = load_data(loaded, root)
    if isinstance(before, NotPacked):
        return data, before
    try:
        after = ModuleState(loaded)
        change = after.change_since(before)
        if change is not None:
            raise CannotShare(f"data() changes {change}")
        return data, replace(pack(data, file, after), file=None)
    except (CannotShare, TooMuch) as error:
        return data, NotPacked(str(error))
    except Exception as error:  # whatever pickling a person's objects raises
        return data, NotPacked(f"{type(error).__name__}: {first_line(error)}")


def shared_or_loaded(
    shared: Packed | NotPacked | None, loaded: LoadedObjective, root: Path, say: Callable[[str], None]
) -> Any:
    """Unpack the data, or call the objective's `data`: `say` is told why. Raises ObjectiveError."""
    if isinstance(shared, Packed):
        try:
            return unpack(shared, loaded)
        except Exception as error:  # a person's classes are made here; data() makes them in another way
            shared = NotPacked(f"{type(error).__name__}: {first_line(error)}")
    if isinstance(shared, NotPacked):
        say(f"this worker loads the data itself: {shared.reason}")
    return load_data(loaded, root)


def pack(data: Any, file: NamelessFile, state: ModuleState | None = None) -> Packed:
    """Write the memory of everything in `data` to the file, and pickle the rest.

    Args:
        data: any object.
        file: an empty file.
        state: what the person's modules hold; of that, only the place is packed.

    Raises:
        CannotShare: there is not room for it, or it is of a kind that must not be copied.
        Exception: whatever pickling raises.
    """
    memory, stream = _Memory(), _Limited()
    _Pickler(stream, memory, state).dump(data)
    regions, size = memory.write(file)
    return Packed(stream.getvalue(), regions, size, file)


def unpack(packed: Packed, loaded: LoadedObjective | None = None) -> Any:
    """Return the data again, on memory that all processes share until they write to it.

    Raises OSError when the file is not what was packed, and whatever unpickling a person's objects raises.
    """
    memory = memoryview(bytearray())
    if packed.size:
        if packed.file is None or os.fstat(packed.file.descriptor).st_size != packed.size:
            raise OSError("the file of the shared data is gone")
        # Nothing is reserved (where Python knows the flag): what is written to is little, if anything.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        memory = memoryview(mmap.mmap(packed.file.descriptor, packed.size, flags=flags, prot=protection))
    return _Unpickler(packed, memory, loaded).load()


def _state(loaded: LoadedObjective) -> ModuleState | NotPacked:
    try:
        return ModuleState(loaded)
    except Exception as error:  # a person's objects may refuse to be looked at
        return NotPacked(line_of(error))


class _Region:
    """A piece of this process's memory, to be found again by its number."""

    def __init__(self, address: int, size: int, owner: Any) -> None:
        self.address, self.size, self.owner = address, size, owner


class _Memory:
    """All regions met. Where they overlap they are of one extent, which is written once."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._numbers: dict[tuple[int, int], int] = {}

    def number(self, region: _Region) -> int:
        key = region.address, region.size
        if key not in self._numbers:
            self._numbers[key] = len(self._regions)
            self._regions.append(region)
        return self._numbers[key]

    def write(self, file: NamelessFile) -> tuple[tuple[tuple[int, int], ...], int]:
        """Return every region's (offset, size), in the order of their numbers, and the bytes in all."""
        offsets, extents, size = {}, [], 0
        end = -1
        for key in sorted(self._numbers):
            address, length = key
            if address >= end:
                size += (address - size) % LINE
                extents.append([address, size, 0])
                end = address
            start, offset, _ = extents[-1]
            offsets[key] = offset + address - start
            end = max(end, address + length)
            extents[-1][2] = end - start
            size = offset + end - start
        if size > MOST_OF_DISK * file.free_bytes:
            raise CannotShare(f"{_megabytes(size)} do not fit on the disk of the temporary folder (TMPDIR)")
        for start, offset, length in extents:
            _write(file.descriptor, memoryview((ctypes.c_char * length).from_address(start)).cast("B"), offset)
        return tuple((offsets[region.address, region.size], region.size) for region in self._regions), size


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


class _Limited(io.BytesIO):
    def write(self, content: Any, /) -> int:
        if self.tell() + len(content) > MOST_PICKLED:
            raise CannotShare(f"more than {_megabytes(MOST_PICKLED)} of the data are in no tensor")
        return super().write(content)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """By value, as cloudpickle does; but memory and what a module holds are left out and referred to."""

    def __init__(self, stream: io.BytesIO, memory: _Memory, state: ModuleState | None) -> None:
        super().__init__(stream, protocol=5)
        self._memory, self._state = memory, state

    def persistent_id(self, value: Any) -> Any:
        place = self._state.place_of(value) if self._state is not None else None
        if place is not None:
            return "place", place
        if isinstance(value, _Region):
            return "memory", self._memory.number(value)
        if isinstance(value, torch.storage.TypedStorage):  # what torch pickles a tensor as, in torch.save too
            return "storage", self._storage(value._untyped_storage), value.dtype
        if isinstance(value, torch.UntypedStorage):
            return "storage", self._storage(value), None
        return None

    def _storage(self, storage: torch.UntypedStorage) -> int | None:
        """Return a storage's number; None for an empty one, which has no memory."""
        if storage.device.type != "cpu":
            raise CannotShare(f"there is a tensor on {storage.device} in it")
        if storage.is_shared():
            raise CannotShare("there is a tensor in it that is in shared memory, or memory-mapped")
        return self._memory.number(_Region(storage.data_ptr(), storage.nbytes(), storage)) if storage.nbytes() else None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, numpy.memmap) or (isinstance(value, numpy.ndarray) and _is_mapped(value)):
            raise CannotShare("there is an array in it that is memory-mapped")
        if type(value) is not numpy.ndarray or value.dtype.hasobject or not value.size:
            return super().reducer_override(value)
        reach = [(length - 1) * stride for length, stride in zip(value.shape, value.strides, strict=True)]
        before = -sum(step for step in reach if step < 0)
        after = sum(step for step in reach if step > 0) + value.itemsize
        region = _Region(value.ctypes.data - before, before + after, value)
        return _array, (region, value.dtype, value.shape, value.strides, before, value.flags.writeable)


def _is_mapped(array: numpy.ndarray[Any, Any]) -> bool:
    base: Any = array
    while isinstance(base, numpy.ndarray | memoryview):
        base = base.base if isinstance(base, numpy.ndarray) else base.obj
    return isinstance(base, mmap.mmap) or (isinstance(base, torch.Tensor) and base.untyped_storage().is_shared())


def _array(
    memory: memoryview, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, writeable: bool
) -> numpy.ndarray[Any, Any]:
    array: numpy.ndarray[Any, Any] = numpy.ndarray(shape, dtype, memory, offset, strides)
    array.flags.writeable = writeable
    return array


class _Unpickler(pickle.Unpickler):
    """Unpickles what this worker's own parent sent it as it started it, as the worker's orders came themselves.

    Whoever could change those bytes could as well start another program: nothing here comes from a file, a
    database or another machine, from which nothing is ever unpickled.
    """

    def __init__(self, packed: Packed, memory: memoryview, loaded: LoadedObjective | None) -> None:
        super().__init__(io.BytesIO(packed.pickled))
        self._regions, self._memory, self._loaded = packed.regions, memory, loaded
        self._storages: dict[int | None, torch.UntypedStorage] = {None: torch.UntypedStorage(0)}

    def persistent_load(self, reference: Any) -> Any:
        kind, *rest = reference
        if kind == "place":
            assert self._loaded is not None
            return module_state.at(rest[0], self._loaded)
        if kind == "memory":
            return self._slice(rest[0])
        number, dtype = rest
        if number not in self._storages:
            self._storages[number] = torch.frombuffer(self._slice(number), dtype=torch.uint8).untyped_storage()
        storage = self._storages[number]
        # torch.load makes it so.
        wrapped: Any = torch.storage.TypedStorage
        return storage if dtype is None else wrapped(wrap_storage=storage, dtype=dtype, _internal=True)

    def _slice(self, number: int) -> memoryview:
        offset, size = self._regions[number]
        return self._memory[offset : offset + size]


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
