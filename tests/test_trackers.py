"""Trackers by name, what they may do to a trial (nothing), and the lines of a trial's own log.

That each can be made by its name is said by the tests of what it leaves (`test_trackers_*.py`, `test_plots.py`).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from studies import Inside
from told import INFO, point

from search import trackers
from search.trackers import HANDED_BACK, Ending, Point, TrialInfo, running
from search.trackers.plain import Plain
from search.trackers.running import Background, Direct, Guarded, Trackers
from storage.errors import UsageError


class Fake:
    """Keeps what it is told. `fails` in one of its methods; until `gate` is open it is stuck in `epoch`."""

    def __init__(self, fails: str = "", gate: threading.Event | None = None) -> None:
        self.fails, self.gate = fails, gate
        self.heard: list[str] = []

    def start(self, info: TrialInfo) -> None:
        self._hear("start", f"start {info.number}")

    def epoch(self, point: Point) -> None:
        if self.gate is not None:
            self.gate.wait()
        self._hear("epoch", f"epoch {point.epoch}")

    def end(self, ending: Ending) -> None:
        self._hear("end", ending.outcome)

    def _hear(self, method: str, what: str) -> None:
        if method == self.fails:
            raise OSError(f"no space left for {what}")
        self.heard.append(what)


@pytest.fixture(params=[Direct, Background])
def kind(request: pytest.FixtureRequest) -> type[Guarded]:
    kind: type[Guarded] = request.param
    return kind


def a_trial(told: Trackers, info: TrialInfo = INFO, outcome: str = "complete") -> None:
    told.start(info)
    for epoch in (1, 2):
        told.epoch(epoch, point(epoch).metrics, 0.5)
    told.end(outcome, 0.5)


def trials_of(guarded: list[Guarded], count: int = 1) -> None:
    """All of a worker's life."""
    told = Trackers(guarded)
    for _ in range(count):
        a_trial(told)
    told.close()


class TestNames:
    def test_each_name_is_taken_once_in_its_order(self) -> None:
        assert trackers.check(["plots", "tensorboard", "plots"]) == ("plots", "tensorboard")
        assert {*trackers.TRACKERS} == {"tensorboard", "wandb", "mlflow", "plots"}

    def test_an_unknown_one_is_told_what_there_is(self) -> None:
        with pytest.raises(UsageError, match=r"must be one of tensorboard, wandb, mlflow, plots, but got 'tensorbord'"):
            trackers.check(["tensorbord"])

    @pytest.mark.parametrize("name", [name for name in trackers.TRACKERS if name != "plots"])
    def test_one_that_is_not_installed_is_told_how_to_get_it(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
        with pytest.raises(UsageError, match=rf"^--log {name} needs {name}, .*: pip install 'dialin\[{name}\]'$"):
            trackers.check([name])

    def test_the_command_says_so_before_anything_starts(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        said = Inside(capsys, monkeypatch)("run", "digits", "--log", "tensorbord")
        assert said.status == 2
        assert said.err.startswith("dialin: --log must be one of tensorboard, wandb, mlflow, plots")
        assert [*tmp_path.iterdir()] == []

    def test_asking_imports_neither_torch_nor_any_of_the_libraries(self) -> None:
        script = (
            "import sys\nfrom search import trackers\ntrackers.check(trackers.TRACKERS)\n"
            "print({'torch', 'tensorboard', 'wandb', 'mlflow', 'matplotlib'} & {*sys.modules})"
        )
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert said.stdout == "set()\n"


class TestHarmless:
    def test_one_that_works_hears_everything_in_order(self, kind: type[Guarded]) -> None:
        fake = Fake()
        trials_of([kind("fake", lambda: fake)])
        assert fake.heard == ["start 12", "epoch 1", "epoch 2", "complete"]

    @pytest.mark.parametrize("method", ["start", "epoch", "end"])
    def test_one_that_fails_is_left_out_with_one_warning_and_the_others_go_on(
        self, kind: type[Guarded], method: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        fake, other = Fake(fails=method), Fake()
        trials_of([kind("fake", lambda: fake), kind("other", lambda: other)])
        assert len(other.heard) == 4
        (warning,) = caplog.messages
        assert warning.startswith("fake hears no more of trial 12: OSError: no space left")
        assert "complete" not in fake.heard

    def test_the_next_trial_is_tried_anew(self, kind: type[Guarded]) -> None:
        fake = Fake(fails="epoch")
        trials_of([kind("fake", lambda: fake)], count=2)
        assert fake.heard == ["start 12", "start 12"]

    def test_a_library_that_is_missing_costs_a_warning(
        self, kind: type[Guarded], caplog: pytest.LogCaptureFixture
    ) -> None:
        def make() -> Any:
            raise ModuleNotFoundError("No module named 'fake'")

        trials_of([kind("fake", make)])
        assert caplog.messages == ["fake hears no more of trial 12: ModuleNotFoundError: No module named 'fake'"]

    def test_one_that_is_slow_holds_up_no_trial_and_is_told_the_whole_in_the_end(self) -> None:
        gate = threading.Event()
        slow, other = Fake(gate=gate), Fake()
        told = Trackers([Background("slow", lambda: slow), Direct("other", lambda: other)])
        a_trial(told, outcome=HANDED_BACK)
        a_trial(told)
        assert other.heard[-1] == "complete"
        assert "epoch 1" not in slow.heard
        gate.set()
        told.close()
        assert slow.heard == other.heard

    def test_one_that_is_stuck_is_left_behind_at_once_when_the_worker_was_told_to_end(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = threading.Event()
        told = Trackers([Background("stuck", lambda: Fake(gate=gate))])
        a_trial(told, outcome=HANDED_BACK)
        assert running.HURRIED_SECONDS <= 1 < running.END_SECONDS
        monkeypatch.setattr(running, "HURRIED_SECONDS", 0.0)
        monkeypatch.setattr(running, "END_SECONDS", 1e9)
        told.close(hurried=lambda: True)
        assert caplog.messages == ["stuck is slow: ending without waiting for it"]
        gate.set()

    def test_a_trial_that_never_started_ends_in_its_log_only(self) -> None:
        direct, background = Fake(), Fake()
        Trackers([Direct("log.txt", lambda: direct), Background("other", lambda: background)]).end("error")
        assert direct.heard == ["error"]
        assert background.heard == []

    def test_threads_end_with_the_worker(self) -> None:
        trials_of([Background("ending", Fake)])
        assert "tracker-ending" not in {thread.name for thread in threading.enumerate()}


class TestOwnLog:
    def lines(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        return capsys.readouterr().out.splitlines()

    def test_a_line_for_the_recipe_one_an_epoch_and_one_for_the_outcome(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plain = Plain()
        plain.start(INFO)
        plain.epoch(Point(3, {"accuracy": 0.91234, "train_loss": 0.31, "lr": 0.0021}, 0.8, 0.0))
        plain.end(Ending("complete", 0.91234, best_epoch=3))
        assert self.lines(capsys) == [
            "trial 12 of digits-1: adam lr 0.01 width 8; on cpu/0",
            "epoch 3/15  accuracy 0.9123  train_loss 0.31  lr 0.0021  0.8 s",
            "complete: accuracy 0.9123 in epoch 3",
        ]

    def test_whoever_goes_on_says_from_where(self, capsys: pytest.CaptureFixture[str]) -> None:
        Plain().start(TrialInfo("old-1", "k", 0, "value", 0, resumed_from=5))
        assert self.lines(capsys)[1:] == ["goes on after epoch 5"]

    def test_a_function_of_unknown_length_has_steps(self, capsys: pytest.CaptureFixture[str]) -> None:
        plain = Plain()
        plain.start(TrialInfo("old-1", "k", 0, "value", 0))
        plain.epoch(Point(0, {"value": 0.25}, 1.25, 0.0))
        assert self.lines(capsys)[1:] == ["step 0  value 0.25  1.25 s"]

    @pytest.mark.parametrize(
        ("ending", "line"),
        [
            (Ending("pruned", 0.5, 2, "pruned after epoch 3 of 15"), "pruned after epoch 3 of 15"),
            (Ending("out_of_memory", reason="tried 9 GiB"), "out of memory: tried 9 GiB"),
            (Ending("error", reason="m.py:3: ValueError: no"), "error: m.py:3: ValueError: no"),
            (Ending(HANDED_BACK), "handed back"),
            (Ending("complete", 0.5, 2, "no better since"), "complete: accuracy 0.5 in epoch 2; no better since"),
        ],
    )
    def test_every_way_to_end_has_a_line(self, ending: Ending, line: str, capsys: pytest.CaptureFixture[str]) -> None:
        plain = Plain()
        plain.start(INFO)
        plain.end(ending)
        assert self.lines(capsys)[-1] == line
