"""Checkpoint files: whole or as before, and only what was recorded is opened."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from search.checkpoints import CheckpointError, load, save


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"epoch": 3, "model": {"weight": torch.randn(4, 3)}, "python": (1, (2, 3), None)}
    checksum = save(tmp_path / "new" / "3.pt", state)
    assert checksum == hashlib.sha256((tmp_path / "new" / "3.pt").read_bytes()).hexdigest()
    found = load(tmp_path / "new" / "3.pt", checksum)
    assert torch.equal(found["model"].pop("weight"), state["model"].pop("weight"))  # type: ignore[attr-defined]
    assert found == state
    assert os.listdir(tmp_path / "new") == ["3.pt"]


class Unwritable:
    def __reduce__(self) -> Any:
        raise OSError("disk full")


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "1.pt"
    checksum = save(path, {"epoch": 1})
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*1\.pt: disk full"):
        save(path, {"weights": torch.zeros(1000), "epoch": Unwritable()})
    assert load(path, checksum) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["1.pt"]


def test_a_full_disk_is_told_in_the_systems_words(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a file may not grow any more, as on a full disk
    try:
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*1\.pt: File too large$"):
            save(tmp_path / "1.pt", {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b[:50] + b"?" + b[51:], lambda b: b""])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "1.pt"
    checksum = save(path, {"epoch": 1, "weights": torch.zeros(100)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="not what was recorded"):
        load(path, checksum)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"1\.pt: No such file"):
        load(tmp_path / "1.pt", "0")


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "1.pt"
    write({"epoch": Harmful(tmp_path / "mark")}, path)
    with pytest.raises(CheckpointError, match=r"1\.pt holds no state"):
        load(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not (tmp_path / "mark").exists()
