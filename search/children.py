"""Child processes, forked from one that has imported torch once; `search.fleet` starts the first check and workers so.

The fork server is multiprocessing's own; this process never imports torch. A script or notebook that calls
`search.run` is never run again in a child: what its objective defines travels by value (`search.by_value`).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing import forkserver, spawn
from multiprocessing.process import BaseProcess
from typing import Any

from storage.errors import DialinError, UsageError

# How soon the wait for a child hears that it is wanted no more, in seconds.
LISTEN_SECONDS = 0.2

_starting = threading.Lock()


@dataclass(frozen=True)
class _Limit:
    """How long this thread waits for what it asks of a child. `stop()`: whether it should wait no more."""

    seconds: float = math.inf
    stop: Callable[[], bool] = lambda: False


_limit: ContextVar[_Limit] = ContextVar("limit", default=_Limit())  # noqa: B039 - frozen


def warm_up(likely: Iterable[str] = ()) -> None:
    """Start the process that children are forked from; it imports torch while this one goes on.

    Args:
        likely: modules that it imports as well, because its children will.

    Raises:
        UsageError: its socket cannot be made, as where the temporary folder's path is too long for one.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["search.preload"])
    # Python puts the current folder first on that process's import path, unless told not to: a person's
    # random.py must not stand in for Python's. `search.preload` takes the word back.
    words = {"PYTHONSAFEPATH": "1", "DIALIN_IMPORTS": " ".join(likely)}
    os.environ.update(words)
    try:
        with _ignoring_interrupts():
            forkserver.ensure_running()
    except OSError as error:
        folder = tempfile.gettempdir()
        raise UsageError(
            f"no process can be started with the temporary folder {folder}: {error}; let TMPDIR name another"
        ) from None
    finally:
        for word in words:
            del os.environ[word]


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Run `target(*args)` in a child with this process's environment, folder and import path as they are now.

    Raises:
        DialinError: the fork server is gone.
    """
    process = multiprocessing.get_context("forkserver").Process(
        target=_enter, args=(dict(os.environ), target, args), name=target.__name__
    )
    try:
        with _without_main():
            process.start()
    except (EOFError, ConnectionError):
        raise DialinError("the process that workers are forked from was killed: is there memory enough?") from None
    return process


class Silent(Exception):
    """A child died without a word, with this exit code."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class NotDone(Exception):
    """A child had nothing to say after so many seconds, and was killed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done after {seconds:.0f} s")
        self.seconds = seconds


@contextmanager
def at_most(seconds: float, stop: Callable[[], bool]) -> Iterator[None]:
    """In this block and thread a child is waited for so long, and no longer when `stop()` says so: it is killed."""
    token = _limit.set(_Limit(seconds, stop))
    try:
        yield
    finally:
        _limit.reset(token)


def ask(target: Callable[..., None], *args: Any) -> Any:
    """What `target(connection, *args)` sends from a child of its own.

    Raises:
        Silent: it ended before it had sent anything. DialinError: the fork server is gone.
        NotDone: it took longer than `at_most` allows.
    """
    limit, began = _limit.get(), time.monotonic()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = start(target, theirs, *args)
    theirs.close()
    try:
        while not ours.poll(LISTEN_SECONDS):
            if limit.stop() or time.monotonic() - began >= limit.seconds:
                raise NotDone(time.monotonic() - began)
        answer = ours.recv()
    except (KeyboardInterrupt, NotDone):
        child.kill()
        child.join()
        raise
    except EOFError:
        child.join()
        raise Silent(child.exitcode) from None
    finally:
        ours.close()
    child.join()
    return answer


def on_main_thread() -> bool:
    """Whether signal handlers can be set here: Python allows it on the main thread only."""
    return threading.current_thread() is threading.main_thread()


def _enter(environment: Mapping[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """The fork server's environment is that of its start: a notebook may have set CUDA_VISIBLE_DEVICES since.

    A DataLoader's processes are forked, as torch does by itself where nobody says otherwise: they have the data set
    without a copy, also one whose class is in a notebook. multiprocessing would have each child of a fork server start
    a fork server of its own, in which every loader's process of every epoch imports torch again.
    """
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)
    target(*args)


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes started by this thread in here do not run the `__main__` module's file again.

    multiprocessing does that so that a child finds what `__main__` defines. Nothing of ours is looked for there,
    and a script with a bare `search.run(objective)` would start a search in each of its workers. There is no
    switch for it: what the child is told is put together by one function, whose answer is shortened.
    """
    mine = threading.get_ident()
    with _starting:
        whole = spawn.get_preparation_data

        def shortened(name: str) -> dict[str, Any]:
            told = dict(whole(name))
            if threading.get_ident() == mine:
                told.pop("init_main_from_name", None)
                told.pop("init_main_from_path", None)
            return told

        spawn.get_preparation_data = shortened
        try:
            yield
        finally:
            spawn.get_preparation_data = whole


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started in this block ignore what reaches a whole process group: Ctrl-C, `timeout`'s SIGTERM."""
    numbers = (signal.SIGINT, signal.SIGTERM) if on_main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
