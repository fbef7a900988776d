"""Scripts as people write them, with a bare `search.run(objective)` at their end, run as people run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from studies import SLOW, TINY, assert_settled, engines_disposed, rows, trials, value, wait_until

import search
from search.errors import ObjectiveError
from search.loading import resolve

START = """
from pathlib import Path
import torch
from torch import nn
import search
from helper import points

print("this script runs")

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, inputs):
        return self.layers(inputs)

def model(trial):
    return Net(trial.suggest_int("width", 4, 8))

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 160

    def __getitem__(self, row):
        return points()[row], points()[row].sum().gt(0).long()

def data(root):
    return search.Data(Rows(), Rows(), loader_workers=1)

mine = search.Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), epochs=2, batch_sizes=(64,))
"""
HELPER = """
import torch

def points():
    return torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
"""

Script = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """Starts `python tune.py`, with a module of the person's own beside it."""
    started = []

    def start(text: str) -> subprocess.Popen[str]:
        (tmp_path / "helper.py").write_text(HELPER)
        (tmp_path / "tune.py").write_text(text)
        process = subprocess.Popen(
            [sys.executable, "tune.py"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'dialin.db'}"


def test_an_unguarded_script_runs_once_and_its_classes_reach_the_workers(
    script: Script, url: str, tmp_path: Path
) -> None:
    """Also the processes of a DataLoader."""
    end = (
        'found = search.run(mine, trials=4, workers=2, pruner="none")\nprint(found.best.model, found.trials().shape[0])'
    )
    said, _ = script(START + end).communicate(timeout=120)
    assert said.count("this script runs") == 1, said
    assert "tune_mine-1: 4/4 trials, 4 complete; finished" in said
    assert said.splitlines()[-1].endswith("} 4")
    assert_settled(url, "tune_mine-1", 4)
    assert rows(url, "SELECT objective FROM dialin_studies") == [(f"{tmp_path / 'tune.py'}:mine",)]
    with pytest.raises(
        ObjectiveError, match=r"tune.py:\d+: tune.py starts a search when it is imported: put search.run"
    ):
        resolve(f"{tmp_path / 'tune.py'}:mine")


def test_ctrl_c_in_a_script_gives_trials_back_and_ends_it(script: Script, url: str, tmp_path: Path) -> None:
    running = script(f"import search\nsearch.run({str(SLOW)!r}, trials=2, workers=2)\nprint('went on')")
    database = tmp_path / "dialin.db"
    wait_until(database.exists, "the database", 60)
    wait_until(lambda: value(url, "SELECT count(*) FROM sqlite_master WHERE name = 'dialin_epochs'"), "tables")
    wait_until(lambda: value(url, "SELECT count(*) FROM dialin_epochs") >= 2, "epochs", 60)
    os.killpg(running.pid, signal.SIGINT)
    said, _ = running.communicate(timeout=30)
    assert "giving the trials back" in said
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert "went on" not in said
    assert value(url, "SELECT count(*) FROM dialin_leases WHERE expires_at = 0") == 2


def test_it_runs_on_another_thread_without_signal_handlers(url: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[search.Search] = []

    def work() -> None:
        with engines_disposed():
            found.append(search.run(TINY, storage=url, trials=1, workers=1, quiet=True))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert [one.name for one in found] == ["tiny-1"]
    assert len(trials(url, "tiny-1")) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_see_the_environment_as_it_is_when_the_search_begins(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process they are forked from may have been started long before."""
    with engines_disposed():
        search.run(told, storage=url, direction="maximize", trials=1, workers=1, quiet=True)
        monkeypatch.setenv("MOOD", "0.75")
        again = search.run(told, storage=url, direction="maximize", trials=1, workers=1, quiet=True)
        assert again.best is not None
        assert again.best.value == 0.75
        assert again.trials().x.between(0, 1).all()


def told(trial: object) -> float:
    """A bare Optuna function."""
    trial.suggest_float("x", 0, 1)  # type: ignore[attr-defined]
    return float(os.environ.get("MOOD", "0"))
