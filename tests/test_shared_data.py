"""What is packed is unpacked again bit for bit, on memory that processes share until they write to it."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from search import Data
from search.packing import CannotShare, pack, unpack
from search.shared_data import NamelessFile

WHOLE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "float": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "bfloat16": torch.ones(4, dtype=torch.bfloat16),
    "complex": torch.view_as_complex(torch.randn(4, 2)),
    "conjugate": torch.view_as_complex(torch.randn(4, 2)).conj(),
    "bool": torch.tensor([True, False]),
    "transposed": WHOLE.t(),
    "expanded": torch.ones(3, 1).expand(3, 4),
    "window": WHOLE[1:3, 2:5],
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(3),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "learnt": torch.ones(3, requires_grad=True),
    "parameter": nn.Parameter(torch.ones(2)),
}
ARRAYS = {
    "float": numpy.linspace(0, 1, 7),
    "fortran": numpy.asfortranarray(numpy.arange(12).reshape(3, 4)),
    "backwards": numpy.arange(12).reshape(3, 4)[::-1, ::2],
    "scalar": numpy.array(4.5),
    "empty": numpy.empty((0, 2)),
    "structured": numpy.array([(1, 2.5)], dtype=[("a", "i2"), ("b", "f8")]),
    "times": numpy.array(["2020-01-01"], dtype="datetime64[D]"),
    "objects": numpy.array(["a", None], dtype=object),
    "read only": numpy.broadcast_to(numpy.arange(3), (2, 3)),
}


class Memo(Dataset[Tensor]):
    """Keeps what it was asked for: it changes as it is used."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.asked = images, [0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        self.asked.append(row)
        return self.images[row]


@pytest.fixture
def there_and_back() -> Callable[[Any], Any]:
    def work(value: Any) -> Any:
        return unpack(pack(value, NamelessFile.make()))

    return work


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_comes_back_as_it_was(tensor: Tensor, there_and_back: Callable[[Any], Any]) -> None:
    found = there_and_back([tensor])[0]
    assert type(found) is type(tensor)
    assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert (found.storage_offset(), found.requires_grad) == (tensor.storage_offset(), tensor.requires_grad)
    assert found.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    assert torch.equal(found, tensor)


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_comes_back_as_it_was(array: numpy.ndarray[Any, Any], there_and_back: Callable[[Any], Any]) -> None:
    found = there_and_back({"x": array})["x"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.strides == array.strides or not array.size
    assert found.flags.writeable == array.flags.writeable
    assert numpy.array_equal(found, array)


def test_a_sparse_tensor_comes_back_as_it_was(there_and_back: Callable[[Any], Any]) -> None:
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(there_and_back(sparse).to_dense(), torch.eye(3))
    # torch keeps every unpickled sparse tensor until its next load, which would warn in whichever test that is.
    torch._utils._validate_loaded_sparse_tensors()


class TestWhatIsShared:
    def test_views_of_one_tensor_still_are(self) -> None:
        file = NamelessFile.make()
        packed = pack((WHOLE, WHOLE[2:], WHOLE), file)
        whole, part, again = unpack(packed)
        assert packed.size == WHOLE.nbytes
        assert again is whole
        part.zero_()
        assert not whole[2:].any()
        assert whole[:2].any()

    def test_an_array_and_the_tensor_made_of_it_still_are(self) -> None:
        array = numpy.arange(100.0)
        packed = pack({"a": array, "window": array[10:20], "t": torch.from_numpy(array)}, NamelessFile.make())
        found = unpack(packed)
        found["t"][15] = -1
        assert found["a"][15] == found["window"][5] == -1
        assert packed.size <= array.nbytes + 64

    def test_subsets_of_one_dataset_still_are(self, there_and_back: Callable[[Any], Any]) -> None:
        dataset = Memo(torch.arange(10))
        data = Data(Subset(dataset, [0, 1, 2]), Subset(dataset, [3, 4]), collate=lambda items: torch.stack(items) * 2)
        found = there_and_back(data)
        assert found.train.dataset is found.valid.dataset
        assert found.train[2] == 2
        assert found.valid.dataset.asked == [0, 2]
        assert dataset.asked == [0], "its state is each process's own"
        assert found.collate([torch.tensor(3)]).tolist() == [6]

    def test_a_loaders_processes_read_it_too(self, there_and_back: Callable[[Any], Any]) -> None:
        found = there_and_back(Memo(torch.arange(10)))
        assert torch.cat([*DataLoader(found, batch_size=5, num_workers=1)]).tolist() == [*range(10)]
        assert found.asked == [0], "a loader's process has its own, as ever"

    def test_only_what_is_in_memory_is_packed(self, tmp_path: Path) -> None:
        class Files(Dataset[bytes]):
            def __init__(self, paths: list[Path]) -> None:
                self.paths = paths

            def __getitem__(self, row: int) -> bytes:
                return self.paths[row].read_bytes()

        (tmp_path / "0.jpg").write_bytes(b"image" * 1000)
        packed = pack(Files([tmp_path / "0.jpg"]), NamelessFile.make())
        assert packed.size == 0
        assert len(packed.pickled) < 3000
        assert unpack(packed)[0] == b"image" * 1000

    def test_memory_lies_as_it_lay(self, there_and_back: Callable[[Any], Any]) -> None:
        """Vector code takes the same path, and gives the same bits."""
        whole = numpy.zeros(1000, dtype=numpy.uint8)
        parts = [torch.from_numpy(whole[start : start + 7]) for start in (1, 130, 517)]
        found = there_and_back(parts)
        assert [part.data_ptr() % 64 for part in found] == [part.data_ptr() % 64 for part in parts]

    def test_other_storages_are_not(self, there_and_back: Callable[[Any], Any]) -> None:
        one, other = there_and_back((torch.zeros(3), torch.zeros(3)))
        one += 1
        assert not other.any()


def test_the_file_is_in_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    packed = pack(torch.ones(1000), NamelessFile.make())
    assert [*tmp_path.iterdir()] == []
    found = unpack(packed)
    packed.remove()
    packed.remove()
    assert found.sum() == 1000, "who has it keeps it"
    with pytest.raises(OSError, match="gone"):
        unpack(replace(packed, file=None))


def mapped_file(folder: Path) -> numpy.ndarray[Any, Any]:
    numpy.save(folder / "x.npy", numpy.arange(10))
    mapped: numpy.ndarray[Any, Any] = numpy.load(folder / "x.npy", mmap_mode="r")
    return mapped


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an array mapped from a file": (mapped_file, "memory-mapped"),
    "a view of it": (lambda folder: mapped_file(folder)[2:], "memory-mapped"),
    "an array on a mapping": (lambda _: numpy.frombuffer(mmap.mmap(-1, 64)), "memory-mapped"),
    "a tensor that loaders share": (lambda _: torch.zeros(3).share_memory_(), "in shared memory"),
    "its array": (lambda _: torch.zeros(3).share_memory_().numpy(), "memory-mapped"),
    "much that is no tensor": (lambda _: [bytes(2**26), 1], "more than 64 MiB of the data are in no tensor"),
    "what cannot be pickled": (lambda _: [threading.Lock()], "cannot pickle"),
}


@pytest.mark.parametrize(("make", "why"), [pytest.param(*case, id=name) for name, case in REFUSED.items()])
def test_what_must_not_be_copied_is_not(make: Callable[[Path], Any], why: str, tmp_path: Path) -> None:
    value = make(tmp_path)
    with pytest.raises((CannotShare, TypeError), match=why):
        pack(value, NamelessFile.make())


def test_a_disk_without_room_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NamelessFile, "free_bytes", 1000)
    with pytest.raises(CannotShare, match="0 MiB do not fit on the disk"):
        pack(torch.zeros(200), NamelessFile.make())
