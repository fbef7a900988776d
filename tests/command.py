"""Runs the installed command `dialin` as a person's shell does; `conftest.py` makes fixtures of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# The script that pip wrote: `python -m search.cli` would put the working folder first on the import path.
DIALIN = Path(sys.executable).with_name("dialin")

# A process that a script started by `&` ignores SIGINT, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Running:
    """A command in the background, in a process group of its own. Its output goes to files."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        """Start it in `folder`; `log` with the endings .out and .err takes its output."""
        self.arguments = arguments
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [DIALIN, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What it has printed to standard error so far."""
        return self._err.read_text()

    def send_signal(self, number: signal.Signals) -> None:
        """To this process alone, as `kill PID` does."""
        self.process.send_signal(number)

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the whole process group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, timeout: float = 120) -> int:
        """Its exit status; after `timeout` seconds it is killed and the test fails with what it printed."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(self._story(f"did not end within {timeout} s")) from None

    def wait_until(self, condition: Callable[[], object], timeout: float = 60, every: float = 0.25) -> None:
        """Return when `condition()` is true, asked `every` so many seconds.

        Fail when the command ends first or `timeout` seconds pass.
        """
        end = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None and not condition():
                raise AssertionError(self._story(f"ended with {self.process.returncode} before its time"))
            if time.monotonic() > end:
                raise AssertionError(self._story(f"what was waited for did not come within {timeout} s"))
            time.sleep(every)

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Return when it has printed `text`."""
        self.wait_until(lambda: text in self.stdout or text in self.stderr, timeout)

    def kill(self) -> None:
        """Kill it, its process group and all it started elsewhere, and collect it; twice does no harm."""
        started = []
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                started = psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def _story(self, what: str) -> str:
        return f"dialin {' '.join(self.arguments)}: {what}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Dialin:
    """Calling it runs the command to its end; `start` leaves it running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._logs = folder.with_name(f"{folder.name}-output")
        self._numbers = itertools.count(1)
        self._running: list[Running] = []

    def __call__(
        self, *arguments: object, timeout: float = 120, **environment: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Run `dialin ARGUMENTS` in the test's folder with these variables set (None: removed), no input.

        Gives returncode, stdout and stderr as text. After `timeout` seconds it is killed and the test fails.
        """
        running = self.start(*arguments, **environment)
        status = running.wait(timeout)
        return subprocess.CompletedProcess(running.arguments, status, running.stdout, running.stderr)

    def start(self, *arguments: object, **environment: str | None) -> Running:
        """Start `dialin ARGUMENTS` in the test's folder with these variables set (None: removed)."""
        self._logs.mkdir(exist_ok=True)
        merged = {name: value for name, value in (os.environ | environment).items() if value is not None}
        log = self._logs / f"{next(self._numbers)}-dialin"
        running = Running([str(argument) for argument in arguments], self.folder, merged, log)
        self._running.append(running)
        return running

    def kill_all(self) -> None:
        for running in self._running:
            running.kill()
