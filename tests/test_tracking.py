"""Real studies with `--log`: every trial where people look for it, whichever worker trained it, and in its own log."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from command import Running
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState
from studies import (
    SLOW,
    TINY,
    Inside,
    assert_settled,
    engines_disposed,
    meanwhile,
    optuna_url,
    press_ctrl_c,
    rows,
    trials,
    value,
    wait_until,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FILES = "dialin-files"


def curves(root: Path, name: str = "accuracy") -> dict[str, list[tuple[int, float]]]:
    """(step, value) by trial, as TensorBoard has them."""
    found = {}
    for folder in sorted(root.glob("*/tensorboard/trial-*")):
        events = EventAccumulator(str(folder)).Reload()
        found[folder.name] = [(event.step, event.value) for event in events.Scalars(name)]
    return found


def recorded(found: list[FrozenTrial]) -> dict[str, list[tuple[int, float]]]:
    """The same, as they are in the database."""
    return {
        f"trial-{trial.number:05d}": [(step, pytest.approx(one)) for step, one in trial.intermediate_values.items()]  # type: ignore[misc]
        for trial in found
    }


def log_of(root: Path, number: int) -> str:
    (log,) = root.glob(f"*/trial-{number:05d}/log.txt")
    return log.read_text()


def pictures(url: str, study: str) -> dict[int, list[str]]:
    """Names of the files that hang on each trial, as plain Optuna finds them."""
    with engines_disposed():
        storage = optuna.storages.RDBStorage(optuna_url(url))
        loaded = optuna.load_study(study_name=study, storage=storage)
        return {
            trial.number: sorted(meta.filename for meta in get_all_artifact_meta(trial, storage=storage))
            for trial in loaded.trials
        }


def test_two_workers_tell_of_each_trial_under_its_own_name(inside: Inside, either_url: str, tmp_path: Path) -> None:
    files = tmp_path / FILES
    run = inside(
        *("run", SLOW, "--trials", 4, "--epochs", 4, "--workers", 2, "--pruner", "none", "--files", files),
        *("--log", "tensorboard", "--log", "plots", "--storage", either_url),
    )
    assert run.status == 0, run.err
    found = assert_settled(either_url, "slow-1", 4)
    assert curves(files) == recorded(found)
    assert len({*rows(either_url, "SELECT worker_id FROM dialin_epochs")}) == 2, "both have trained"
    for trial in found:
        lines = log_of(files, trial.number).splitlines()
        assert lines[0].startswith(f"trial {trial.number} of slow-1: {trial.user_attrs['recipe']} width ")
        assert re.search(r"; on cpu/[01], \S+ pid \d+$", lines[0])
        epochs = [line for line in lines if re.match(r"epoch \d/4  accuracy \S+  ", line)]
        assert len(epochs) == 4
        assert f"accuracy {trial.intermediate_values[4]:.4g}  " in epochs[3]
        assert lines[-1] == f"complete: accuracy {trial.value:.4g} in epoch {trial.user_attrs['best_epoch']}"
    hanging = pictures(either_url, "slow-1")
    assert hanging == {number: ["confusion-matrix.png", "learning-curve.png"] for number in range(4)}


def test_the_dashboard_shows_the_pictures_of_a_trial_until_its_study_is_deleted(
    inside: Inside, start_dialin: Callable[..., Running], tmp_path: Path
) -> None:
    assert inside("run", TINY, "--trials", 1, "--workers", 1, "--log", "plots").status == 0
    running = start_dialin("dashboard", "--port", 0)
    running.wait_for("http://")
    address = running.stdout[running.stdout.index("http://") :].split()[0]

    def get(path: str) -> Any:
        with urllib.request.urlopen(address + path, timeout=20) as answer:
            return answer.read()

    (trial,) = json.loads(get("/api/studies/1?after=0"))["trials"]
    hanging = {one["filename"]: one["artifact_id"] for one in trial["artifacts"]}
    assert {*hanging} == {"learning-curve.png", "confusion-matrix.png"}
    for artifact in hanging.values():
        assert get(f"/artifacts/1/{trial['trial_id']}/{artifact}").startswith(b"\x89PNG")
    folder = tmp_path / "dialin-files" / "artifacts"
    assert len([*folder.iterdir()]) == 2
    assert inside("delete", "tiny-1", "--yes").status == 0
    assert [*folder.iterdir()] == []


def test_an_adopted_trial_leaves_one_continuous_curve(inside: Inside, tmp_path: Path) -> None:
    """Killed, not asked to end: whatever was not written by then is lost."""
    arguments = ("--workers", 1, "--log", "tensorboard")
    files, url = tmp_path / FILES, _url(tmp_path)

    def kill() -> None:
        wait_until(lambda: _known(tmp_path) and rows(url, "SELECT 1 FROM dialin_checkpoints"), "a checkpoint", 60)
        os.kill(value(url, "SELECT pid FROM dialin_workers"), signal.SIGKILL)
        (tmp_path / "hurry").touch()

    with meanwhile(kill):
        assert inside("run", SLOW, "--trials", 1, "--epochs", 30, "--pruner", "none", *arguments).status == 0
    found = assert_settled(url, "slow-1", 1)
    assert [step for step, _ in recorded(found)["trial-00000"]] == [*range(1, 31)]
    assert curves(files) == recorded(found)
    log = log_of(files, 0)
    assert re.search(r"^goes on after epoch [1-9]", log, re.M)
    assert log.count("trial 0 of slow-1: ") == 2


OWN_LOOP = """
import optuna
import torch
from torch import nn
from search import Objective, split

def train(run):
    run.recipe
    for epoch in run.epochs:
        run.report(loss=1 / epoch)

own = Objective(train=train, metric="loss", direction="minimize", epochs=3)

def model(trial):
    return nn.Linear(4, 2)

def data(root):
    points = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    return split(points, (points.sum(1) > 0).long(), folds=3)

folds = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), epochs=2)

def bare(trial):
    x = trial.suggest_float("x", 0, 1)
    for step in range(10, 40, 10):
        trial.report(x / step, step)
    return x
"""


@pytest.mark.parametrize(("name", "steps"), [("own", [1, 2, 3]), ("bare", [10, 20, 30]), ("folds", [*range(1, 7)])])
def test_other_doors_and_folds_are_told_of_too(inside: Inside, tmp_path: Path, name: str, steps: list[int]) -> None:
    (tmp_path / "mine.py").write_text(OWN_LOOP)
    arguments = ("--workers", 1, "--pruner", "none", "--log", "tensorboard", "--log", "plots", "--study", "mine")
    run = inside("run", f"mine.py:{name}", "--trials", 1, *arguments)
    assert run.status == 0, run.err
    scalar, said = {
        "own": ("loss", "epoch 3/3  loss 0.3333  "),
        "bare": ("value", "step 30  value "),
        "folds": ("accuracy", "epoch 6/6  accuracy "),
    }[name]
    (curve,) = curves(tmp_path / FILES, scalar).values()
    assert [step for step, _ in curve] == steps
    others = ["confusion-matrix.png"] if name == "folds" else []
    assert pictures(_url(tmp_path), "mine") == {0: [*others, "learning-curve.png"]}
    log = log_of(tmp_path / FILES, 0)
    assert log.startswith("trial 0 of mine: ")
    assert said in log


def test_a_hand_back_is_written_to_the_log(inside: Inside, tmp_path: Path) -> None:
    files = tmp_path / FILES

    def interrupt() -> None:
        wait_until(lambda: [*files.glob("*/tensorboard/*/events*")], "a curve", 60)
        press_ctrl_c()

    with meanwhile(interrupt):
        assert inside("run", SLOW, "--workers", 1, "--pruner", "none", "--log", "tensorboard").status == 130
    assert log_of(files, 0).splitlines()[-1] == "handed back"
    (told,) = curves(files).values()
    assert [step for step, _ in told] == [step for (step,) in rows(_url(tmp_path), "SELECT epoch FROM dialin_epochs")]


def test_a_tracker_that_fails_costs_a_warning_in_a_log_and_nothing_else(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
    logs = ("--log", "mlflow", "--log", "tensorboard")
    assert inside("run", TINY, "--trials", 2, "--workers", 1, "--pruner", "none", *logs).status == 0
    found = trials(_url(tmp_path), "tiny-1")
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 2
    # Whatever the worker prints at that moment goes to the log of the trial in hand, or to its own after the last.
    texts = [*(tmp_path / FILES).glob("*/*/log.txt"), tmp_path / FILES / "workers.log"]
    said = "".join(text.read_text() for text in texts)
    assert [said.count(f"mlflow hears no more of trial {number}: ") for number in (0, 1)] == [1, 1]
    assert curves(tmp_path / FILES) == recorded(found)


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'dialin.db'}"


def _known(folder: Path) -> bool:
    """Whether the study's tables are there to be asked."""
    return (folder / "dialin.db").exists() and bool(
        rows(_url(folder), "SELECT 1 FROM sqlite_master WHERE name = 'dialin_checkpoints'")
    )
