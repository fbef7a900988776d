"""A worker whose training makes no step any more is ended, with its stacks in the trial's log; the trial goes on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_objectives import made
from studies import Inside, assert_settled, rows

from search.options import hang_seconds
from search.watchdog import DEFAULT_SECONDS, Watchdog, patience_with
from storage.errors import UsageError

HANGING = """
import threading
from pathlib import Path

from torch import nn

from search import Objective, split
import torch

ONCE = Path(__file__).with_suffix(".hung")


class Sleepy(nn.Linear):
    batches = 0

    def forward(self, points):
        self.batches += 1
        if self.training and self.batches > 6 and not ONCE.exists():
            ONCE.touch()
            threading.Event().wait()
        return super().forward(points)


points = torch.randn(96, 4)
objective = Objective(
    model=lambda trial: Sleepy(4, 2), data=lambda root: split(points, (points[:, 0] > 0).long()),
    loss=nn.CrossEntropyLoss(), epochs=3, trials=1, batch_sizes=(32,),
)
"""


@dataclass
class FakeTimer:
    """Stands for faulthandler's, of which a process has one: pytest's own."""

    armed: list[float] = field(default_factory=list)
    cancelled: int = 0

    def dump_traceback_later(self, timeout: float, /, *, file: int, exit: bool) -> None:
        self.armed.append(timeout)

    def cancel_dump_traceback_later(self) -> None:
        self.cancelled += 1


class TestWatchdog:
    def watched(self, clock: Callable[[], float], end: Callable[[str], None], timer: FakeTimer) -> Watchdog:
        return Watchdog(0.01, end, clock=clock, timer=timer)

    def test_silence_ends_the_process(self) -> None:
        times = iter(range(1000))
        said, heard, timer = list[str](), threading.Event(), FakeTimer()

        def end(words: str) -> None:
            said.append(words)
            heard.set()

        with self.watched(lambda: float(next(times)), end, timer).watching(7):
            assert heard.wait(20)
        assert said[0] == "trial 7 hangs: no batch for 0.01 s; its log has the stacks"
        assert timer.cancelled == 1

    def test_a_beat_is_enough(self) -> None:
        said, looks, timer = list[str](), threading.Semaphore(0), FakeTimer()

        def clock() -> float:
            looks.release()
            return 5.0

        with self.watched(clock, said.append, timer).watching(7):
            for _ in range(4):
                assert looks.acquire(timeout=20)
        assert said == []
        assert len(timer.armed) >= 3

    def test_without_a_limit_nobody_looks(self) -> None:
        timer = FakeTimer()
        with Watchdog(math.inf, lambda _said: None, timer=timer).watching(7):
            pass
        assert (timer.armed, timer.cancelled) == ([], 0)


@pytest.mark.parametrize(
    ("own", "objectives", "said", "seconds"),
    [
        (False, None, None, DEFAULT_SECONDS),
        (False, 5.0, None, 5.0),
        (False, 5.0, 7.0, 7.0),
        (False, 5.0, math.inf, math.inf),
        (False, math.inf, None, math.inf),
        (True, None, None, math.inf),
        (True, 5.0, None, 5.0),
        (True, None, 7.0, 7.0),
    ],
)
def test_who_says_how_long_is_too_long(own: bool, objectives: float | None, said: float | None, seconds: float) -> None:
    door: dict[str, Any] = {"train": lambda run: None, "model": None, "data": None, "loss": None} if own else {}
    few: dict[str, Any] = {} if not own else {"batch_sizes": (4,), "optimizers": ("adam",), "schedules": ("constant",)}
    objective = made(step_timeout=objectives, **door, **few).objective
    assert patience_with(objective, said) == seconds


@pytest.mark.parametrize(("said", "seconds"), [(None, None), ("never", math.inf), ("30s", 30.0), ("1h30m", 5400.0)])
def test_a_limit_is_said_as_other_times_are(said: str | None, seconds: float | None) -> None:
    assert hang_seconds(said) == seconds


@pytest.mark.parametrize("said", ["", "soon", "0s", "-1"])
def test_what_is_no_time_is_refused(said: str) -> None:
    with pytest.raises(UsageError, match="--hang must be a time such as 30s or 10m, or never, but got"):
        hang_seconds(said)


def test_a_worker_that_hangs_is_ended_and_its_trial_goes_on(
    tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    run = Inside(capsys, monkeypatch)("run", "hanging.py", "--workers", 1, "--hang", "2s", "--storage", sqlite_url)
    assert run.status == 0, run
    assert_settled(sqlite_url, "hanging-1", 1)
    assert "failed: trial 0 hangs: no batch for 2 s; its log has the stacks" in run.out
    [log] = (tmp_path / "dialin-files").glob("*/trial-00000/log.txt")
    assert 'hanging.py", line 20 in forward' in log.read_text()
    assert [tuple(row) for row in rows(sqlite_url, "SELECT ending FROM dialin_owners ORDER BY generation")] == [
        ("died",),
        ("settled",),
    ]
