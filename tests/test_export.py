"""`dialin export`: a trial as a folder that needs nothing of Dialin."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from finished import Place
from plain_process import curves, without_dialin
from safetensors import safe_open
from safetensors.torch import load_file
from studies import OBJECTIVES, TINY, TINY_TEXT, Inside, engines_disposed, place_for_a_module
from test_folds_run import FOLDED

import search
from search import confirmation
from search.export import networks
from storage import studies
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.studies import StudyRecord

ALL = ("README.md", "metrics.json", "recipe.json", "recipe.py", "recipe.yaml", "train.py", "weights.safetensors")
FUNCTION = "def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n"
# tiny.py's network and data, where there is no Dialin; and those that validate: see search.data.split.
NETWORK = """
import torch
from torch import nn

POINTS = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
SIDES = (POINTS.sum(1) > 0).long()
order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
valid, train = order[:64].sort().values, order[64:].sort().values
TRAIN, VALID, MORE = (POINTS[train], SIDES[train]), (POINTS[valid], SIDES[valid]), {{}}
loss = nn.CrossEntropyLoss()


def make_net():
    return nn.Sequential(nn.Linear(4, {width}), nn.ReLU(), nn.Linear({width}, 2))
"""


@dataclass(frozen=True)
class Study:
    """A finished study of tiny.py that is only looked at, and an export of its best trial."""

    place: Place
    out: Path
    best: int


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with place_for_a_module(tmp_path_factory) as folder:
        place = Place(f"sqlite:///{folder / 'study.db'}", folder / "files")
        place.searched(trials=3)
        with engines_disposed():
            found = search.load("tiny-1", storage=place.url, files=place.folder)
            done = found.export(folder / "out")
            best = found.best
        assert best is not None
        assert (done.folder, done.files, done.notes) == (folder / "out", ALL, ())
        yield Study(place, folder / "out", best.trial)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_trial_is_written_from_every_database(inside: Inside, storage_url: str, tmp_path: Path) -> None:
    place = Place(storage_url, tmp_path / "files")
    name = place.searched()
    said = inside("export", name, "-o", "out", *place.at)
    assert said.status == 0, said.err
    assert said.out == f"trial 0 of {name} is in out: {', '.join(ALL)}\n"
    assert sorted(path.name for path in Path("out").iterdir()) == [*ALL]
    assert len({path.stat().st_mode for path in Path("out").iterdir()}) == 1, "who may read one may read all"
    assert [path.name for path in tmp_path.iterdir() if ".partial" in path.name] == []
    assert read(Path("out/recipe.json"))["seed"] == place.origin(name).seed


def test_the_weights_are_those_of_the_best_epoch(tiny: Study) -> None:
    kept = tiny.place.trial("tiny-1", tiny.best).weights
    assert kept is not None
    with engines_disposed():
        expected = search.load("tiny-1", storage=tiny.place.url, files=tiny.place.folder).weights()
    found = load_file(tiny.out / "weights.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    with safe_open(tiny.out / "weights.safetensors", "pt") as file:
        assert file.metadata()["trial"] == str(tiny.best)


def test_the_recipe_is_the_same_in_json_and_yaml(tiny: Study) -> None:
    trial = tiny.place.trial("tiny-1", tiny.best)
    recipe = read(tiny.out / "recipe.json")
    assert recipe["recipe"] == trial.attrs["settings"]
    assert recipe["model"] == trial.attrs["model"] == {"width": trial.params["width"]}
    assert (recipe["epochs"], recipe["metric"], recipe["trial"]) == (4, "accuracy", tiny.best)
    assert yaml.safe_load((tiny.out / "recipe.yaml").read_text()) == recipe


def test_the_exported_code_trains_the_curve_on_record_without_dialin(tiny: Study, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(tiny.out, again)
    trial = tiny.place.trial("tiny-1", tiny.best)
    (again / "network.py").write_text(NETWORK.format(width=trial.params["width"]))
    recorded = [[line.metrics["train_loss"], line.metrics["accuracy"]] for line in trial.epochs]
    assert curves(again) == {"again": recorded}


def test_the_metrics_have_the_whole_curve(tiny: Study) -> None:
    trial, metrics = tiny.place.trial("tiny-1", tiny.best), read(tiny.out / "metrics.json")
    assert (metrics["value"], metrics["best_epoch"], metrics["best_of"]) == (trial.value, trial.best_epoch, 3)
    assert [one["epoch"] for one in metrics["curve"]] == [1, 2, 3, 4]
    assert metrics["curve"][0] == {"epoch": 1, **trial.epochs[0].metrics}
    assert metrics["at_best"]["accuracy"] == trial.value
    assert metrics["other_runs"] is None


def test_the_card_says_what_it_is_how_good_and_what_it_took(tiny: Study) -> None:
    _, head, body = (tiny.out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "pytorch", "tags": ["dialin", "optuna"], "metrics": ["accuracy"]}
    for said in (
        f"# tiny-1, trial {tiny.best}\n",
        "among 3 trials",
        "They are one run's, chosen as the best of 3: partly luck.",
        "96 samples to train, 64 samples to validate",
        "Checksum of the splits: `",
        "There is no test split",
        f"torch {torch.__version__}",
        "1 thread",
        f"`dialin replay tiny-1 {tiny.best}`",
        "- This run: 4 epochs in ",
        "- The search: 3 trials (3 complete), 12 epochs",
        "only you can say",
        "Loss: `CrossEntropyLoss()`",
        "`train.py`: the training loop in plain torch",
    ):
        assert said in body, f"{said!r} is not in\n{body}"
    assert str(TINY.parent) not in body, "a person's folders are nobody else's"


def test_what_the_card_says_of_its_use_works(tiny: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (tiny.out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tiny.out)
    monkeypatch.syspath_prepend(str(OBJECTIVES))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["net"](torch.zeros(1, 4)).shape == (1, 2)


def test_runs_with_other_seeds_are_the_spread(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    name = place.searched(trials=1)
    place.searched(trials=1)  # of the same seed: the same run
    params = place.trial(name).params
    other = place.study(trials=2, seed=77)

    def ask_twice(storage: SharedStorage, record: StudyRecord) -> None:
        studies.enqueue(storage, record, params)
        studies.enqueue(storage, record, params)

    place.look(ask_twice, other)
    place.work(other)
    values = [place.trial(other, number).value for number in (0, 1)]
    assert inside("export", name, "-o", "out", *place.at).status == 0
    found = read(Path("out/metrics.json"))["other_runs"]
    assert (found["runs"], found["values"]) == (2, values)
    assert found["trials"] == [f"{other} 0", f"{other} 1"]
    assert found["mean"]["accuracy"] == pytest.approx(sum(v for v in values if v is not None) / 2)
    assert {"accuracy", "loss", "train_loss"} == {*found["standard_deviation"]}
    card = Path("out/README.md").read_text()
    assert "| metric | this run | 2 other runs, mean ± standard deviation |" in card
    assert "the other runs were not chosen, and say what to expect" in card


def test_a_confirmed_recipe_goes_with_what_its_seeds_say(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place, path = Place(sqlite_url, tmp_path / "files"), tmp_path / "mine.py"
    path.write_text(TINY_TEXT.replace("valid=0.4", "valid=0.3, test=0.2"))
    name = place.searched(path, trials=2, objective_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    again = ("--top", 1, "--seeds", 2, "--workers", 1)
    assert inside("confirm", name, *again, "--objective", path, *place.at).status == 0
    answer = place.look(lambda storage, record: confirmation.read(storage, record), name)
    assert answer is not None
    assert answer.winner is not None
    said = inside("export", name, "-o", "out", *place.at)
    assert said.out.startswith(f"trial {answer.best_seed} of {name}-confirm is in out: "), said.err
    recipe, metrics = read(Path("out/recipe.json")), read(Path("out/metrics.json"))
    assert recipe["recipe"] == place.trial(name, answer.winner.trial).attrs["settings"]
    assert recipe["seed"] == place.origin(answer.name, answer.best_seed or 0).seed
    other = 1 - (answer.best_seed or 0)
    assert (metrics["best_of"], metrics["other_runs"]["trials"]) == (2, [f"{name}-confirm {other}"])
    assert (metrics["confirmed"]["study"], metrics["confirmed"]["trial"]) == (name, answer.winner.trial)
    assert metrics["confirmed"]["values"] == [*answer.winner.values.values()]
    assert [{*model} for model in metrics["confirmed"]["test"]] == [{"accuracy", "loss"}] * 2
    card = Path("out/README.md").read_text()
    assert (
        f"best of 2 fresh seeds by which trial {answer.winner.trial} of `{name}` was confirmed. What to expect" in card
    )
    assert "Test split, opened once, for trial " in card
    named = inside("export", name, answer.winner.trial, "-o", "named", *place.at)
    assert (named.status, read(Path("named/recipe.json"))["study"]) == (0, name)
    assert "A confirmation of the search has opened the test split" in Path("named/README.md").read_text()


# -- Every door


def test_folds_a_loop_of_ones_own_and_a_function(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    (tmp_path / "folded.py").write_text(FOLDED)
    (tmp_path / "old.py").write_text(FUNCTION)
    folded = place.searched(tmp_path / "folded.py", epochs=2, folds=3)
    said = inside("export", folded, "-o", "folded", *place.at)
    assert "no train.py: its data are no tensors, or folds" in said.out
    assert {"weights-fold-1.safetensors", "weights-fold-3.safetensors", "recipe.py"} <= names("folded")
    metrics = read(Path("folded/metrics.json"))
    assert sum(metrics["folds"]) / 3 == pytest.approx(metrics["value"])
    loop = place.searched(OBJECTIVES / "own_loop.py", epochs=2)
    said = inside("export", loop, "-o", "loop", *place.at)
    assert "no train.py: the objective has a training loop of its own" in said.out
    assert {"weights.safetensors", "recipe.py"} <= names("loop")
    assert "def make_optimizer(net, groups=None):" in Path("loop/recipe.py").read_text()
    old = place.searched(tmp_path / "old.py", metric="value", direction="minimize", epochs=0, trials=2)
    said = inside("export", old, "-o", "old", *place.at)
    assert said.status == 0, said.err
    assert "no weights: " in said.out
    assert "no recipe.py: " in said.out
    assert names("old") == {"README.md", "metrics.json", "recipe.json", "recipe.yaml"}
    assert {*read(Path("old/recipe.json"))["recipe"]} == {"x"}


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


OWN_ROW = TINY_TEXT.replace(
    "epochs=4, trials=6",
    'epochs=4, trials=6, optimizers=(Optimizer("adamax", torch.optim.Adamax, 0.002, "Adam by its largest."),)',
).replace("import Data, Objective", "import Data, Objective, Optimizer")


def test_a_row_of_the_objectives_own_asks_for_the_objective(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    path = tmp_path / "my-own.py"
    path.write_text(OWN_ROW)
    name = place.searched(path)
    refused = inside("export", name, "-o", "out", *place.at)
    assert (refused.status, f"dialin export {name} 0 -o out --objective" in refused.err) == (2, True)
    assert not Path("out").exists()
    assert inside("export", name, "-o", "out", "--objective", path, *place.at).status == 0
    assert "torch.optim.Adamax(" in Path("out/recipe.py").read_text()
    assert "from my-own" not in Path("out/README.md").read_text()
    path.write_text(f"{OWN_ROW}# a remark\n")
    said = inside("export", name, "-o", "out", "--force", "--objective", path, *place.at)
    assert "no recipe.py: the recipe has a row of the objective's own, which has changed since" in said.out
    assert names("out") == {*ALL} - {"recipe.py", "train.py"}, "those of the first export do not go with this one"


def test_networks_are_told_apart_and_what_safetensors_cannot_hold_is_kept_all_the_same(
    inside: Inside, sqlite_url: str, tmp_path: Path
) -> None:
    assert networks({"a.weight": torch.zeros(1)}).keys() == {""}
    assert networks({"one": {"w": torch.zeros(1)}, "two": {"w": torch.zeros(1)}}).keys() == {"one", "two"}
    place = Place(sqlite_url, tmp_path / "files")
    stateful = "class Stateful(nn.Linear):\n    def get_extra_state(self):\n        return {'seen': 3}\n"
    stateful += "    def set_extra_state(self, state):\n        pass\n\n\ndef model"
    text = TINY_TEXT.replace("def model", stateful, 1).replace("nn.Linear(width, 2)", "Stateful(width, 20_000)")
    (tmp_path / "mine.py").write_text(text)
    name = place.searched(tmp_path / "mine.py")
    said = inside("export", name, "-o", "out", *place.at)
    assert "weights.pt in place of a safetensors file, which cannot hold 2._extra_state" in said.out
    assert torch.load("out/weights.pt", weights_only=True)["2._extra_state"] == {"seen": 3}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a file may not grow any more, as on a full disk
    try:
        full = inside("export", name, "-o", "full", *place.at)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (full.status, full.err.count("\n"), "weights.pt: File too large" in full.err) == (1, 1, True), full.err
    assert [path.name for path in tmp_path.iterdir() if "full" in path.name] == []


# -- What cannot be written


def test_a_study_without_a_finished_trial_or_a_failed_trial_is_a_line(
    inside: Inside, sqlite_url: str, tmp_path: Path
) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    (tmp_path / "mine.py").write_text(
        TINY_TEXT.replace("    width =", '    raise ValueError("no colour")\n    width =')
    )
    name = place.searched(tmp_path / "mine.py")
    nothing = inside("export", name, "-o", "out", *place.at)
    assert (nothing.status, nothing.err.count("\n")) == (1, 1)
    assert f"{name} has no complete trial yet: see `dialin status {name}`" in nothing.err
    assert place.trial(name).outcome is Outcome.ERROR
    failed = inside("export", name, 0, "-o", "out", *place.at)
    assert (failed.status, failed.err.count("\n")) == (2, 1)
    assert f"trial 0 of {name} did not train to its end (error: " in failed.err
    assert not Path("out").exists()


def test_a_folder_that_cannot_be_written_is_a_line(inside: Inside, tiny: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a person's own")
    for to, said in (
        ("file", "file is a file: -o names a folder"),
        ("file/out", "cannot write to"),
        ("/proc/out", "cannot write to /proc/out"),
    ):
        refused = inside("export", "tiny-1", "-o", to, *tiny.place.at)
        assert (refused.status, refused.err.count("\n"), said in refused.err) == (2, 1, True), refused.err
    assert (tmp_path / "file").read_text() == "a person's own"
    unsaid = inside("export", "tiny-1", *tiny.place.at)
    assert (unsaid.status, "--output" in unsaid.err) == (2, True)


def test_a_folder_with_something_in_it_is_written_to_only_by_force(inside: Inside, tiny: Study, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused = inside("export", "tiny-1", "-o", "out", *tiny.place.at)
    assert (refused.status, "out is not empty" in refused.err) == (2, True)
    assert names("out") == {"notes.txt"}
    assert inside("export", "tiny-1", "-o", "out", "--force", *tiny.place.at).status == 0
    assert names("out") == {*ALL, "notes.txt"}
    assert inside("export", "tiny-1", "-o", "out", "--force", *tiny.place.at).status == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_weights_that_are_not_here_are_a_line_and_nothing_is_left_behind(
    inside: Inside, tiny: Study, tmp_path: Path
) -> None:
    elsewhere = ("--storage", tiny.place.url, "--files", tmp_path / "elsewhere")
    refused = inside("export", "tiny-1", "-o", "out", *elsewhere)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "--files or --checkpoints, or go without by --no-weights" in refused.err
    assert [*tmp_path.iterdir()] == []
    assert inside("export", "tiny-1", "-o", "out", "--no-weights", *elsewhere).status == 0
    assert names("out") == {*ALL} - {"weights.safetensors"}


def test_there_is_no_dialin_where_the_code_is_tried() -> None:
    script = "import sys; sys.path.append(sys.argv[1])\ntry:\n    import search\n"
    script += "except ImportError as error:\n    print(error)"
    assert without_dialin(script) == "No module named 'search'\n"
