"""A search in a real notebook: a view that is drawn over, an interrupt that ends no cell, errors with their lines."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from studies import rows, trials, wait_until
from test_live import BEST, SETTLED, running, status

from search.notebook import REDRAW_SECONDS, NotebookView, is_here
from storage.outcomes import Outcome
from storage.queries import SettledTrial

MODEL = """
import os, time
from pathlib import Path
import torch
from torch import nn
import search

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, inputs):
        return self.layers(inputs.flatten(1))

def model(trial):
    return Net(trial.suggest_int("width", 4, 8))

def data(root):
    images, targets = torch.rand(200, 1, 8, 8), torch.arange(200) % 10
    return search.split(images, targets, valid=0.3)

net = search.Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), epochs=2)
"""
RUN = "found = search.run(net, workers=2, trials=3, pruner='none')"
READ = "print(found.best.model, found.trials().shape[0], len(found.study.trials))"
BROKEN = """
def broken(root):
    raise ValueError("no rows")

search.run(search.Objective(model=model, data=broken, loss=nn.CrossEntropyLoss()), workers=1)
"""
SLOW = """
def slow(trial):
    for step in range(10**6):
        time.sleep(0.01)
        Path("begun").touch()
        trial.report(1.0, step)

held = search.run(slow, workers=1, trials=2, study="held")
"""
HELD = "print(held.trials().outcome[0], held)"


@pytest.fixture
def run_cells(tmp_path: Path) -> Any:
    """Runs a notebook of these cells in a kernel; the kernel is interrupted when the file `begun` is there."""

    def run(*sources: str) -> list[Any]:
        made: Any = nbformat.v4
        cells = [made.new_code_cell(source) for source in sources]
        client: Any = nbclient.NotebookClient(
            made.new_notebook(cells=cells),
            timeout=180,
            kernel_name="python3",
            allow_errors=True,
            resources={"metadata": {"path": str(tmp_path)}},
        )
        ended = threading.Event()

        def interrupt() -> None:
            wait_until(lambda: (tmp_path / "begun").exists() or ended.is_set(), "the slow cell", 180)
            if not ended.is_set():
                client.km.provisioner.process.send_signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            client.execute()
        finally:
            ended.set()
            thread.join()
        return [cell.outputs for cell in client.nb.cells]

    return run


def text_of(outputs: list[Any]) -> str:
    """What a person reads below a cell, without colours."""
    texts = []
    for one in outputs:
        texts += [one.get("text", ""), one.get("data", {}).get("text/plain", ""), *one.get("traceback", [])]
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(texts))


def test_a_model_written_in_a_cell_is_searched_by_workers(run_cells: Any, tmp_path: Path) -> None:
    _, ran, shown, read, broken, slow, held = run_cells(MODEL, RUN, "found", READ, BROKEN, SLOW, HELD)
    url = f"sqlite:///{tmp_path / 'dialin.db'}"
    [view] = [one for one in ran if one.output_type == "display_data"]
    assert "net-1" in view.data["text/html"]
    assert "3/3 trials" in view.data["text/html"]
    assert view.data["text/plain"].startswith("net-1   accuracy ↑   3/3 trials")
    assert view.data["text/plain"].endswith("\nfinished")
    assert [one.output_type for one in ran] == ["display_data"], text_of(ran)
    assert "<Search net-1: finished, 3/3 trials" in shown[0].data["text/plain"]
    assert "net-1" in shown[0].data["text/html"]
    assert re.fullmatch(r"\{'width': \d\} 3 3", text_of(read).strip()), text_of(read)
    assert [trial.state.is_finished() for trial in trials(url, "net-1")] == [True] * 3
    assert rows(url, "SELECT objective FROM dialin_studies ORDER BY study_id") == [
        ("notebook:net",),
        ("notebook:slow",),
    ]

    assert "data(): ValueError: no rows" in text_of(broken)
    assert re.search(r'File ".*ipykernel.*", line 2, in broken\n +raise ValueError\("no rows"\)', text_of(broken))

    assert "KeyboardInterrupt" not in text_of(slow)
    assert "resume() goes on" in text_of(slow)
    assert text_of(held).startswith("adoptable <Search held: waiting for a worker, 0/2 trials>")


class Screen:
    """What a notebook would show, and a clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.drawn: list[Mapping[str, str]] = []
        self.view = NotebookView({11: "cpu/0"}, lambda: self.now, self.display)

    def display(self, bundle: Mapping[str, str]) -> Any:
        self.drawn.append(bundle)
        return self.drawn.append

    @property
    def html(self) -> str:
        return self.drawn[-1]["text/html"]

    @property
    def text(self) -> str:
        return self.drawn[-1]["text/plain"]


def ended(number: int, value: float, outcome: Outcome = Outcome.COMPLETE) -> SettledTrial:
    return SettledTrial(number, outcome, value, 4, 1.0, "sgd", "", 0.0)


class TestTheView:
    def test_it_says_what_the_terminal_says(self) -> None:
        screen = Screen()
        screen.view.update(status(trials=(running(13, 11),)), BEST, [])
        assert screen.text.splitlines()[:2] == [
            "digits-3   accuracy ↑   12/40 trials   0:00 elapsed",
            "best  0.9876 in trial 7: adam lr 0.0031 batch 32 cosine | width 24 dropout 0.123",
        ]
        for said in ("digits-3", "12/40 trials", "0.9876", "width 24 dropout 0.123", "cpu/0", "6/15", "0.9123"):
            assert said in screen.html

    def test_it_is_drawn_over_only_when_it_is_time_and_something_changed(self) -> None:
        screen = Screen()
        screen.view.update(status(10), BEST, [])
        screen.view.update(status(11), BEST, [])
        assert len(screen.drawn) == 1
        screen.now += REDRAW_SECONDS
        screen.view.update(status(11), BEST, [])
        assert len(screen.drawn) == 2
        screen.view.close()
        assert screen.text.endswith("\nwaiting for a worker; resume() goes on")
        screen.view.close()
        assert len(screen.drawn) == 3

    def test_trials_that_end_are_dots_and_the_best_a_line(self) -> None:
        screen = Screen()
        four = [ended(0, 0.5), ended(1, 0.9), ended(2, -7.0, Outcome.PRUNED), ended(3, 0.7)]
        screen.view.update(status(), BEST, four)
        heights = re.findall(r'cy="([\d.]+)"', screen.html)
        assert [float(height) for height in heights] == [88.0, 8.0, 88.0, 48.0]
        assert screen.html.count('fill-opacity="0.3"') == 1
        assert "trial 2 pruned: -7.0000" in screen.html
        [line] = re.findall(r'points="([^"]+)"', screen.html)
        assert [point.split(",")[1] for point in line.split()] == ["88.0", "8.0", "8.0", "8.0"]

    def test_what_people_write_is_text_and_not_html(self) -> None:
        screen = Screen()
        screen.view.update(status(), BEST, [SETTLED])
        screen.view.note("worker cpu/0 failed: <script>")
        assert "&lt;script&gt;" in screen.html
        assert "<script>" not in screen.html
        assert "worker cpu/0 failed: <script>" in screen.text

    def test_here_is_no_notebook(self) -> None:
        assert not is_here()
