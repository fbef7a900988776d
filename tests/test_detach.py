"""`dialin run --detach`: mistakes are told at once, then the search goes on in a process of its own session."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command import Dialin
from optuna.trial import TrialState
from studies import SLOW, Inside, all_have_ended, assert_settled, rows, states, trials, wait_until

from search.checkpoint_settings import CheckpointSettings
from search.detached import read, written
from search.place import Place
from search.preflight import Placement
from search.terms import NewStudy

Start = Callable[..., tuple[psutil.Process, subprocess.CompletedProcess[str]]]


@pytest.fixture
def detach(dialin: Dialin) -> Iterator[Start]:
    """Runs `dialin run SLOW --detach ...` to its end; the background process, and what was said."""
    begun = []

    def start(*options: object) -> tuple[psutil.Process, subprocess.CompletedProcess[str]]:
        done = dialin("run", SLOW, "--detach", "--trials", 2, "--workers", 2, "--pruner", "none", *options)
        assert done.returncode == 0, done.stderr
        found = re.search(r"as process (\d+)", done.stdout)
        assert found, done.stdout
        begun.append(psutil.Process(int(found[1])))
        return begun[-1], done

    yield start
    for process in begun:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            for child in process.children(recursive=True):
                child.kill()
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "place",
    [
        Place(),
        Place(
            "sqlite:///a.db",
            Path("files"),
            Path("data"),
            Placement(2, "cpu", 3),
            ("plots", "tensorboard"),
            math.inf,
            CheckpointSettings("elsewhere", 500),
        ),
    ],
)
def test_the_background_searches_for_what_was_asked_for(place: Place) -> None:
    wanted = NewStudy(name="mine", trials=3, space={"lr": [1e-4, 1e-2]}, until=0.5)
    assert read(written("digits", wanted, place)) == ("digits", wanted, place)


def epochs(url: str) -> int:
    return int(rows(url, "SELECT count(*) FROM dialin_epochs")[0][0])


def test_it_goes_on_when_the_terminal_is_closed(detach: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'dialin.db'}"
    process, done = detach()
    log = next((tmp_path / "dialin-files").glob("slow-1-*/detached.log"))
    assert done.stdout.splitlines() == [
        f"slow-1 trains in the background, as process {process.pid}; it prints to {log}",
        "  dialin watch slow-1",
        "  dialin logs slow-1",
        "  dialin stop slow-1",
    ]
    assert done.stderr == ""
    assert os.getsid(process.pid) == process.pid
    wait_until(lambda: epochs(url) > 1, "the first epochs", 60)
    os.killpg(process.pid, signal.SIGHUP)
    before = epochs(url)
    wait_until(lambda: epochs(url) > before, "more epochs")
    (tmp_path / "hurry").touch()
    wait_until(lambda: all_have_ended([process.pid]), "the end of the search", 60)
    assert states(assert_settled(url, "slow-1", 2)) == {TrialState.COMPLETE: 2}
    assert "slow-1: 2/2 trials, 2 complete; finished" in log.read_text()


def test_it_is_stopped_as_any_other_and_its_password_is_on_no_command_line(
    detach: Start, inside: Inside, postgres_url: str, tmp_path: Path
) -> None:
    process, _ = detach("--storage", postgres_url, "--files", tmp_path / "kept", "--study", "mine")
    wait_until(lambda: epochs(postgres_url) > 1, "the first epochs", 60)
    everyone = [process, *process.children(recursive=True)]
    assert [one.cmdline() for one in everyone if postgres_url in " ".join(one.cmdline())] == []
    assert inside("stop", "mine", "--storage", postgres_url).status == 0
    wait_until(lambda: all_have_ended([one.pid for one in everyone]), "the end of the search", 60)
    assert states(trials(postgres_url, "mine")) == {TrialState.RUNNING: 2}
    assert rows(postgres_url, "SELECT count(*) FROM dialin_leases WHERE expires_at = 0") == [(2,)]
    [log] = (tmp_path / "kept").glob("mine-*/detached.log")
    assert "stopped: by `dialin stop`" in log.read_text()


def test_a_mistake_is_told_in_the_foreground_and_leaves_nothing(dialin: Dialin, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def objective(trial, more):\n    return 1.0\n")
    done = dialin("run", "mine.py", "--detach")
    assert done.returncode == 2
    assert done.stderr.startswith("dialin: `objective` in mine.py is a function, but none that takes a trial")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_at_its_start_leaves_no_process(
    dialin: Dialin, tmp_path: Path, signal_number: signal.Signals
) -> None:
    """SIGTERM as Ctrl-C."""
    (tmp_path / "slow_import.py").write_text("import time\nopen('importing', 'w').close()\ntime.sleep(600)\n")
    run = dialin.start("run", "slow_import.py", "--detach")
    run.wait_until((tmp_path / "importing").exists)
    started = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal_number)
    assert run.wait(timeout=30) == 130
    wait_until(lambda: all_have_ended([one.pid for one in started]), "the end of what it started")
    assert not (tmp_path / "dialin.db").exists()
