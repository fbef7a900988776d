"""What a worker tells as it goes, as events with fields: a line for people, or an object of JSON for programs.

`search.solo` and `search.queue_worker` make one for the process and hand it on. Nothing here knows a database.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

# Events of which people are not told: they see a line when a trial has ended.
_FOR_PROGRAMS = {"trial began"}


class Told:
    """Writes events. JSON goes to what was standard output when this was made, whatever a trial's log takes since."""

    def __init__(self, as_json: bool = False, write: Callable[[str], None] | None = None) -> None:
        """`write` takes lines in place of standard output."""
        self._as_json = as_json
        # Whoever reads a log file or a pipe sees each line when it is written.
        self._write = write or (writer_to(1) if as_json else partial(print, flush=True))
        self._fields: Mapping[str, Any] = {}
        self._before = ""

    def __call__(self, event: str, message: str, level: str = "info", **fields: Any) -> None:
        """Tell one event; `level`: "info", "warning" or "error", `fields` are plain values."""
        if self._as_json:
            self._write(as_json_line(event, message, level, {**self._fields, **fields}))
        elif event not in _FOR_PROGRAMS:
            self._write(self._before + message)

    @contextmanager
    def about(self, before: str = "", **fields: Any) -> Iterator[None]:
        """Every event in this block has these fields, as `study` and `trial`; lines for people begin with `before`."""
        outside = self._fields, self._before
        self._fields, self._before = {**self._fields, **fields}, self._before + before
        try:
            yield
        finally:
            self._fields, self._before = outside

    @contextmanager
    def with_warnings(self) -> Iterator[None]:
        """What Dialin's modules warn of is an event too, where programs read; a trial's log has it as ever."""
        if not self._as_json:
            yield
            return
        handler = _Handler(self)
        loggers = [logging.getLogger(name) for name in ("search", "storage")]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


SILENT = Told(write=lambda _line: None)


def as_json_line(event: str, message: str, level: str, fields: Mapping[str, Any]) -> str:
    """One object: time (UTC, ISO 8601), level, event, message, host, pid, and the event's own fields."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told: dict[str, Any] = {"time": now, "level": level, "event": event, "message": message}
    told |= {"host": socket.gethostname(), "pid": os.getpid()}
    told |= {name: _plain(value) for name, value in fields.items() if value is not None}
    return json.dumps(told, default=str)


def _plain(value: Any) -> Any:
    """JSON has no word for numbers that are not finite."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _Handler(logging.Handler):
    """What a module warned of, as an event; and as a line on standard error where that is a trial's log."""

    def __init__(self, told: Told) -> None:
        super().__init__(logging.INFO)
        self._told = told
        self._terminal = _which_file(2)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        fields = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
        self._told("log", message, record.levelname.lower(), **fields)
        if record.levelno >= logging.WARNING and _which_file(2) != self._terminal:
            print(message, file=sys.stderr)


def _which_file(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def writer_to(descriptor: int) -> Callable[[str], None]:
    """Takes lines for what this file descriptor is now: later it may be a trial's log."""
    there = os.dup(descriptor)

    def write(line: str) -> None:
        os.write(there, f"{line}\n".encode(errors="backslashreplace"))

    return write
