"""What a person sees while a search runs: a view that redraws itself in a terminal, plain lines anywhere else.

`search.launch` feeds both from the database, so they show every worker of the study, on any machine.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search import printing
from storage.queries import RankedTrial, SettledTrial, StudyStatus


class View(Protocol):
    """Shows where a study stands."""

    def update(self, status: StudyStatus, best: RankedTrial | None, settled: Sequence[SettledTrial]) -> None:
        """Called a few times a second; `settled` holds what ended since the last call."""

    def note(self, text: str) -> None:
        """A line that stays: a death, a hand-back."""

    def close(self) -> None:
        """The last state stays on the screen."""


class PlainView:
    """Lines without control codes: one for each trial that ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def update(self, status: StudyStatus, best: RankedTrial | None, settled: Sequence[SettledTrial]) -> None:
        """Print what has ended."""
        for trial in settled:
            self.note(f"[{printing.progress(status)}] {printing.settled_line(trial, status.study.metric)}")

    def note(self, text: str) -> None:
        """Print one line."""
        printing.say(self._console, text)

    def close(self) -> None:
        """Nothing is held."""


class LiveView:
    """A few lines that are drawn over, with a row for every slot."""

    def __init__(
        self,
        console: Console,
        slots: Mapping[int, str],
        clock: Callable[[], float] = time.monotonic,
        doing: str = "elapsed",
    ) -> None:
        """`slots`: names of the slots on this machine by the process id of their workers. `doing`: for so long."""
        self._slots = slots
        self._doing = doing
        self._clock = clock
        self._started = clock()
        self._settled_at_start: int | None = None
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def update(self, status: StudyStatus, best: RankedTrial | None, settled: Sequence[SettledTrial]) -> None:
        """Draw the new state."""
        if self._settled_at_start is None:
            self._settled_at_start = status.settled
        self._live.update(self._draw(status, best))

    def note(self, text: str) -> None:
        """Print a line above the view."""
        printing.say(self._live.console, text)

    def close(self) -> None:
        """Leave the last drawing on the screen."""
        self._live.stop()

    def _draw(self, status: StudyStatus, best: RankedTrial | None) -> RenderableType:
        study = status.study
        arrow = "↑" if study.direction == "maximize" else "↓"
        head = Text.assemble(
            (study.name, "bold"),
            f"   {study.metric} {arrow}   ",
            (printing.progress(status), "bold"),
            f"   {self._times(status)}",
        )
        top = Text("best  none yet", style="dim")
        if best is not None:
            top = Text.assemble("best  ", (printing.number(best.value), "bold green"), f" in trial {best.number}: ")
            top.append(printing.full_recipe(best))
        counts = printing.counts(status.counts)
        saved = f"; {status.epochs_saved} epochs saved by pruning" if status.epochs_saved else ""
        return Group(head, top, self._rows(status), Text(counts + saved, style="dim"))

    def _times(self, status: StudyStatus) -> str:
        elapsed = self._clock() - self._started
        done = status.settled - (self._settled_at_start or 0)
        left = status.study.trials - status.settled
        if done <= 0 or left <= 0:
            return f"{printing.duration(elapsed)} {self._doing}"
        return f"{printing.duration(elapsed)} {self._doing}, about {printing.duration(elapsed / done * left)} left"

    def _rows(self, status: StudyStatus) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for heading in ("slot", "trial", "epoch", "now", "best"):
            table.add_column(heading, justify="left" if heading == "slot" else "right", header_style="dim")
        host = socket.gethostname()
        here = {trial.pid: trial for trial in status.running if trial.host == host and not trial.adoptable}
        for pid, name in self._slots.items():
            idle = (name, "-", "", "", "")
            table.add_row(*(printing.running_row(here[pid], status.study.length) if pid in here else idle))
        for trial in status.running:
            if here.get(trial.pid) is not trial or trial.pid not in self._slots:
                slot, *cells = printing.running_row(trial, status.study.length)
                table.add_row("waiting for a worker" if trial.adoptable else f"{trial.host} {slot}", *cells)
        return table


def make_view(console: Console, slots: Mapping[int, str], doing: str = "elapsed") -> View:
    """The live view in a terminal that can redraw, plain lines in a file, a pipe or a dumb terminal."""
    can_redraw = console.is_terminal and os.environ.get("TERM") != "dumb"
    return LiveView(console, slots, doing=doing) if can_redraw else PlainView(console)
