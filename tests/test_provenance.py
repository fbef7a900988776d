"""What each trial says it was trained with: its seed, and versions, device, threads, source, data and commit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from finished import Place, interrupted_after
from sqlalchemy import update
from studies import TINY, TINY_TEXT, Inside, engines_disposed, rows, trials
from torch.utils.data import Dataset, TensorDataset

from search import fingerprint as fingerprints
from search.data import Data, split
from search.devices import cpu_name
from search.fingerprint import fingerprint
from search.loading import resolve
from search.provenance import checkout, versions
from storage import provenance
from storage.optuna_internals import models
from storage.provenance import Origin, Provenance, noted, trial_seed
from storage.shared import open_storage

OWN_LOOP = """\
from search import Objective


def train(run):
    run.trial.set_user_attr("provenance", "a person's own")
    for epoch in run.epochs:
        run.report(score=epoch / 10)


objective = Objective(train=train, metric="score", direction="maximize", epochs=2)
"""


def test_every_trial_has_its_seed_and_what_it_was_trained_with(either_url: str, tmp_path: Path) -> None:
    place = Place(either_url, tmp_path / "files")
    name = place.searched(trials=2)
    [first, second] = trials(either_url, name)
    assert first.user_attrs["provenance"]["seed"] == trial_seed(3, 0)
    assert second.user_attrs["provenance"]["seed"] == trial_seed(3, 1)
    assert first.user_attrs["provenance"]["owners"] == second.user_attrs["provenance"]["owners"]
    origin = place.origin(name)
    assert [*origin.owners] == [1]
    found = origin.of(1)
    assert found is not None
    assert found.objective == hashlib.sha256(TINY.read_bytes()).hexdigest()
    assert (found.threads, found.device.startswith(cpu_name())) == (1, True)
    assert found.versions["torch"] == torch.__version__
    assert {"python", "numpy", "dialin"} <= {*found.versions}
    assert not {"optuna", "search", "pathlib"} & {*found.versions}
    assert found.data == {
        "fingerprint": fingerprint(resolve(str(TINY)).objective.data(tmp_path)),
        "train": 96,
        "valid": 64,
        "test": None,
        "folds": 1,
        "kind": ["float32 4", "int64 number"],
        "shaped_by": [],
    }
    assert found.training["written"] == "network"
    assert found.training["loss"] == "CrossEntropyLoss()"
    assert found.training["metrics"] == ["accuracy", "loss"]


def test_workers_that_train_alike_are_told_once_and_an_owner_that_does_not_by_itself(
    either_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(either_url, tmp_path / "files")
    name = place.study(trials=1)
    place.work(name, interrupt=interrupted_after(1, monkeypatch))
    place.work(name, interrupt=interrupted_after(2, monkeypatch))
    monkeypatch.undo()
    try:
        place.work(name, threads=2)
    finally:
        torch.set_num_threads(1)
    assert [line.generation for line in place.trial(name).epochs] == [1, 2, 3, 3]
    origin = place.origin(name)
    assert {first: one.threads for first, one in origin.owners.items()} == {1: 1, 3: 2}
    assert [getattr(origin.of(generation), "threads", None) for generation in (1, 2, 3, 4)] == [1, 1, 2, 2]
    kept = rows(either_url, "SELECT key FROM study_system_attributes WHERE key LIKE 'dialin:provenance:%'")
    assert len(kept) == 2


def test_a_loop_of_ones_own_and_a_function_say_it_too(sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    (tmp_path / "loop.py").write_text(OWN_LOOP)
    (tmp_path / "old.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    loop = place.searched(tmp_path / "loop.py", metric="score", epochs=2)
    old = place.searched(tmp_path / "old.py", metric="value", direction="minimize", epochs=0)
    for name, door in ((loop, "loop"), (old, "function")):
        origin = place.origin(name)
        assert origin.seed == trial_seed(3, 0)
        assert origin.last is not None
        assert (origin.last.training["written"], origin.last.data) == (door, None)
    assert place.trial(loop).attrs["own_provenance"] == "a person's own"


def test_show_says_it(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    name = place.searched()
    said = inside("show", name, 0, *place.at)
    assert f"seed {trial_seed(3, 0)}, torch {torch.__version__}, 1 thread of {cpu_name()}" in said.out
    told = json.loads(inside("show", name, 0, "--json", *place.at).out)
    assert told["seed"] == trial_seed(3, 0)
    assert [(one["from_owner"], one["threads"]) for one in told["provenance"]] == [(1, 1)]


def test_an_owner_is_noted_where_it_trains_with_something_else() -> None:
    first = noted({}, 7, 1, "aa")
    assert first == {"provenance": {"seed": 7, "owners": {"1": "aa"}}}
    assert noted(first, 7, 2, "aa") == first
    third = noted(first, 7, 3, "bb")
    assert third["provenance"]["owners"] == {"1": "aa", "3": "bb"}
    assert noted(third, 7, 10, "aa")["provenance"]["owners"] == {"1": "aa", "3": "bb", "10": "aa"}
    assert noted({"provenance": "a person's own"}, 7, 2, "aa")["provenance"]["owners"] == {"2": "aa"}


def test_what_somebody_else_wrote_in_its_place_is_left_out(sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    name = place.searched()
    assert place.origin(name).owners
    attr = models.StudySystemAttributeModel
    with engines_disposed():
        storage = open_storage(sqlite_url)
        with storage.backend.write() as session:
            broken = update(attr).where(attr.key.startswith("dialin:provenance:"))
            session.execute(broken.values(value_json='{"objective": 3, "threads": "many"}'))
    assert place.origin(name) == Origin(trial_seed(3, 0), {})
    with engines_disposed():
        storage = open_storage(sqlite_url)
        for told in (None, 3, {"owners": 4}, {"owners": {"x": 1}, "seed": "s"}):
            assert provenance.origin(storage, 1, {"provenance": told}) == Origin()


def test_the_same_has_one_digest_and_anything_else_another() -> None:
    one = Provenance(objective="a", threads=1, versions={"torch": "2", "numpy": "3"})
    assert one.digest == replace(one, versions={"numpy": "3", "torch": "2"}).digest
    others = [replace(one, threads=2), replace(one, commit="c"), replace(one, data={"fingerprint": "f"})]
    assert len({one.digest, *(other.digest for other in others)}) == 4


# -- The commit


def git(folder: Path, *words: str) -> str:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, env={**os.environ, **who}, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_that_tracks_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TINY_TEXT)
    assert checkout(path) == (None, None)
    git(tmp_path, "init", "--quiet")
    assert checkout(path) == (None, None), "nobody tracks it"
    git(tmp_path, "add", "mine.py")
    assert checkout(path) == (None, None), "there is no commit"
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert checkout(path) == (commit, False)
    (tmp_path / "notes.txt").write_text("untracked")
    assert checkout(path) == (commit, False)
    path.write_text(TINY_TEXT + "\n")
    assert checkout(path) == (commit, True)


def test_no_git_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout(TINY) == (None, None)


def test_versions_are_those_of_what_the_file_imports(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\nimport sklearn.datasets as d\nfrom optuna import Trial\nimport nothing\n"
        "def data(root):\n    import yaml\n"
    )
    import sklearn  # the file's own import has come before

    found = versions(tmp_path / "mine.py", "cpu")
    assert found["sklearn"] == sklearn.__version__
    assert not {"os", "optuna", "nothing", "yaml"} & {*found}
    assert {"torch", "python"} <= {*versions(tmp_path / "missing.py", "cpu")}


def test_a_cpu_is_called_what_the_system_calls_it(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nmodel name\t: A Fine CPU @ 3 GHz\nprocessor\t: 1\nmodel name\t: B\n")
    assert cpu_name(tmp_path / "x86") == "A Fine CPU @ 3 GHz"
    assert cpu_name(tmp_path / "missing") != ""


# -- The data

X, Y = torch.arange(80.0).view(20, 4), torch.arange(20) % 2


def test_the_checksum_of_data_is_that_of_its_values_and_of_their_split() -> None:
    one = fingerprint(split(X, Y, valid=5))
    assert one == fingerprint(split(X.clone(), Y.clone(), valid=5))
    label = Y.clone()
    label[3] = 1 - label[3]
    others = [split(X, label, valid=5), split(X + 1e-5, Y, valid=5), split(X, Y, valid=5, seed=1)]
    others += [split(X, Y, valid=6), split(X.double(), Y, valid=5), split(X, Y, valid=5, test=2)]
    others += [split(X, Y, valid=5, balance=True)]
    assert len({one, *map(fingerprint, others)}) == len(others) + 1
    assert fingerprint(split(X, Y, folds=4)) != fingerprint(split(X, Y, folds=5))


def test_of_a_large_tensor_evenly_spaced_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MOST_BYTES", 16 * 10)
    changed = X.clone()
    changed[1] += 1  # every second row of 16 bytes is read
    assert fingerprint(Data((X, Y), (X, Y))) == fingerprint(Data((changed, Y), (X, Y)))
    changed[2] += 1
    assert fingerprint(Data((X, Y), (X, Y))) != fingerprint(Data((changed, Y), (X, Y)))


class Pictures(Dataset[Any]):
    """Holds names and labels, and reads no file before it is asked."""

    def __init__(self, names: Any, labels: list[int], transform: Any = None) -> None:
        self.names, self.labels, self.transform = names, labels, transform

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("no item is made")


def of_table(table: Any) -> str:
    part = Pictures(table, [0, 1])
    return fingerprint(Data(part, part))


def test_a_dataset_is_told_by_what_it_holds_wherever_its_files_lie() -> None:
    def of(names: list[str], labels: list[int]) -> str:
        part = Pictures(names, labels, transform=lambda picture: picture)
        return fingerprint(Data(part, part))

    here = of(["/home/me/a.png", "/home/me/b.png"], [0, 1])
    assert here == of(["/mnt/shared/a.png", "/mnt/shared/b.png"], [0, 1])
    assert here != of(["/home/me/a.png", "/home/me/c.png"], [0, 1])
    assert here != of(["/home/me/a.png", "/home/me/b.png"], [1, 1])
    frames = [pandas.DataFrame({"file": ["a.png", "b.png"], "age": [30, age]}) for age in (40, 40, 41)]
    assert [of_table(frame) == of_table(frames[0]) for frame in frames] == [True, True, False]
    assert of_table(numpy.array(["a", "b"], object)) != of_table(numpy.array(["a", "c"], object))
    assert of_table([numpy.float64(0.5)]) == of_table([0.5]), "NumPy 1 and 2 print it otherwise"
    tensors = TensorDataset(X, Y)
    assert fingerprint(Data(tensors, tensors)) == fingerprint(Data(TensorDataset(X.clone(), Y), tensors))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(()), torch.zeros(0, 3), torch.zeros(2, dtype=torch.complex64).conj(), torch.eye(3).to_sparse()],
    ids=["a number", "nothing", "complex", "sparse"],
)
def test_any_tensor_has_one(value: torch.Tensor) -> None:
    class Holder(Dataset[Any]):
        def __init__(self) -> None:
            self.value = value

        def __len__(self) -> int:
            return 1

    assert len(fingerprint(Data(Holder(), Holder()))) == fingerprints.DIGITS


def test_data_that_cannot_be_read_train_all_the_same(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: Any) -> str:
        raise RuntimeError("not to be read")

    monkeypatch.setattr("search.provenance.fingerprint", refuse)
    place = Place(sqlite_url, tmp_path / "files")
    name = place.searched()
    last = place.origin(name).last
    assert last is not None
    assert last.data is not None
    assert (last.data["fingerprint"], last.data["train"]) == (None, 96)
    assert place.trial(name).outcome == "complete"
