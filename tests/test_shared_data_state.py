"""A worker that is given its data is as one that called `data()`: what else that does is noticed, or kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forgetting import imports_forgotten

from search.by_value import Pickled
from search.loading import LoadedObjective, resolve
from search.packing import load_to_share, shared_or_loaded, unpack
from search.shared_data import NamelessFile, NotPacked, Packed

START = """
import functools, logging, os, random
import numpy, torch
from torch.utils.data import Dataset
from search import Data, Objective, split

class Points(Dataset):
    seen = 0
    def __init__(self, points, transform=None):
        self.points, self.transform, self.difficulty = points, transform, 0
    def __len__(self):
        return len(self.points)
    def __getitem__(self, row):
        return self.points[row], 0

"""
END = """
def model(trial):
    return torch.nn.Linear(4, 2)

objective = Objective(model=model, data=data, loss=torch.nn.CrossEntropyLoss(), metric="accuracy")
"""
POINTS = "return Data(Points(torch.ones(9, 4)), Points(torch.zeros(5, 4)))"


@pytest.fixture(autouse=True)
def imports_end_with_the_test(tmp_path: Path) -> Iterator[None]:
    with imports_forgotten(tmp_path):
        yield


def written(folder: Path, middle: str) -> LoadedObjective:
    path = folder / "my_model.py"
    path.write_text(START + middle + END)
    return resolve(str(path))


def given(loaded: LoadedObjective, folder: Path) -> tuple[Packed | NotPacked, Any]:
    """What a worker's own process would have in place of the data, and how it was packed."""
    file = NamelessFile.make()
    _, shared = load_to_share(loaded, folder, file)
    if isinstance(shared, Packed):
        return shared, unpack(replace(shared, file=file), loaded)
    return shared, None


CHANGES = {
    "a name": ("SIZE = 0\ndef data(root):\n    global SIZE\n    SIZE = 5", "SIZE of my_model.py"),
    "a new name": ("def data(root):\n    global SIZE\n    SIZE = 5", "SIZE of my_model.py"),
    "a list": ("WORDS = {'all': []}\ndef data(root):\n    WORDS['all'].append('a')", "WORDS['all'][0] of my_model.py"),
    "a set": ("WORDS = set()\ndef data(root):\n    WORDS.add('a')", "WORDS of my_model.py"),
    "a class": ("def data(root):\n    Points.seen = 3", "Points.seen of my_model.py"),
    "a tensor": ("MEAN = torch.zeros(2)\ndef data(root):\n    MEAN.fill_(1)", "MEAN of my_model.py"),
    "a generator": (
        "RANDOM = numpy.random.default_rng(0)\ndef data(root):\n    RANDOM.random()",
        "RANDOM of my_model.py",
    ),
    "a cache": ("@functools.cache\ndef size():\n    return [5]\ndef data(root):\n    size()", "size of my_model.py"),
    "a default": ("def data(root, cache={}):\n    cache['size'] = 5", "data.__defaults__[0]['size'] of my_model.py"),
    "a closure": (
        "def make():\n    size = [0]\n    def data(root):\n        size[0] = 5\n        DATA\n    return data\n"
        "data = make()",
        "data.__closure__[0].cell_contents[0] of my_model.py",
    ),
    "the environment": ("def data(root):\n    os.environ['SIZE'] = '5'", "the environment"),
    "an import": ("def data(root):\n    import my_helper", "my_helper is"),
}


@pytest.mark.parametrize(("source", "what"), [pytest.param(*case, id=name) for name, case in CHANGES.items()])
def test_data_that_leaves_something_behind_is_called_by_every_worker(
    source: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_helper.py").write_text("SIZE = 5\n")
    monkeypatch.setenv("SIZE", "0")
    source = source.replace("DATA", POINTS) if "DATA" in source else f"{source}\n    {POINTS}\n"
    shared, _ = given(written(tmp_path, source), tmp_path)
    assert isinstance(shared, NotPacked)
    assert what in shared.reason
    said: list[str] = []
    found = shared_or_loaded(shared, written(tmp_path, f"def data(root):\n    {POINTS}\n"), tmp_path, said.append)
    assert len(found.train) == 9
    assert said == [f"this worker loads the data itself: {shared.reason}"]


def test_what_a_module_holds_is_not_copied_beside_it(tmp_path: Path) -> None:
    """A curriculum: the model's step changes what the module's dataset hands out."""
    loaded = written(
        tmp_path,
        "TRANSFORMS = {'train': [lambda x: x]}\n"
        "TRAIN = Points(torch.ones(9, 4), TRANSFORMS['train'])\n"
        "def data(root):\n"
        "    logging.getLogger(__name__).info('loading')\n"
        "    return Data(TRAIN, Points(torch.zeros(5, 4), TRANSFORMS['train'][0]))\n",
    )
    shared, found = given(loaded, tmp_path)
    assert isinstance(shared, Packed)
    namespace = loaded.objective.model.__globals__
    assert found.train is namespace["TRAIN"]
    assert found.valid.transform is namespace["TRANSFORMS"]["train"][0]
    assert type(found.valid) is namespace["Points"]
    assert shared.size == 5 * 4 * 4


def test_data_that_cannot_be_unpacked_is_loaded(tmp_path: Path) -> None:
    loaded = written(tmp_path, f"def data(root):\n    {POINTS}\n")
    file = NamelessFile.make()
    _, shared = load_to_share(loaded, tmp_path, file)
    assert isinstance(shared, Packed)
    said: list[str] = []
    found = shared_or_loaded(shared, loaded, tmp_path, said.append)  # without its file
    assert torch.equal(found.train.points, torch.ones(9, 4))
    assert said == ["this worker loads the data itself: OSError: the file of the shared data is gone"]


def test_an_objective_of_a_notebook_shares_what_its_functions_share(tmp_path: Path) -> None:
    """It arrives by value: its functions have names of their own, which no module holds."""
    source = (
        "HARDNESS = {'now': 1}\n"
        "def data(root):\n"
        "    train = Points(torch.ones(9, 4), HARDNESS)\n"
        "    return Data(train, (torch.zeros(5, 4),), scale=lambda x: x * HARDNESS['now'])\n"
    )
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(START + source + END.replace("def model(trial):", "def model(trial):\n    HARDNESS['now'] += 1"), namespace)
    send, arguments = Pickled(namespace["objective"]).__reduce__()
    arrived = send(*arguments)
    loaded = LoadedObjective("notebook:objective", "objective", arrived, "", tmp_path / "notebook.ipynb")
    shared, found = given(loaded, tmp_path)
    assert isinstance(shared, Packed)
    arrived.model(None)
    assert found.train.transform == {"now": 2}, "the model's own"
    assert found.scale(torch.ones(1)) == 2
    assert type(found.train) is arrived.data.__globals__["Points"]
