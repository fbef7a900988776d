"""What a person sees while a search runs: a view that redraws itself in a terminal, plain lines anywhere else.

`search.views` chooses; `search.feed` feeds both from the database, so they show every worker, on any machine.
"""

from __future__ import annotations

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
from storage.words import counted


class View(Protocol):
    """Shows where a study stands."""

    def update(self, status: StudyStatus, best: RankedTrial | None, settled: Sequence[SettledTrial]) -> None:
        """Called a few times a second, or every few seconds; `settled` holds what ended since the last call."""

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


class Drawing:
    """What a view that is drawn over shows: a few lines, with a row for every slot."""

    HEADINGS = ("slot", "trial", "epoch", "now", "best")

    def __init__(self, slots: Mapping[int, str], clock: Callable[[], float], doing: str = "elapsed") -> None:
        """`slots`: names of the slots on this machine by the process id of their workers. `doing`: for so long."""
        self._slots = slots
        self._doing = doing
        self._clock = clock
        self._started = clock()
        self._settled_at_start: int | None = None

    def lines(self, status: StudyStatus, best: RankedTrial | None) -> RenderableType:
        """All of it, for a terminal."""
        head = Text.assemble(
            (status.study.name, "bold"),
            f"   {self.metric(status)}   ",
            (printing.progress(status), "bold"),
            f"   {self.times(status)}",
        )
        top = Text("best  none yet", style="dim")
        if status.study.confirms:  # the best of its trials is no answer
            top = Text(printing.strategy(status.study), style="dim")
        elif best is not None:
            top = Text.assemble("best  ", (printing.number(best.value), "bold green"), f" in trial {best.number}: ")
            top.append(printing.full_recipe(best))
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for heading in self.HEADINGS:
            table.add_column(heading, justify="left" if heading == "slot" else "right", header_style="dim")
        for row in self.rows(status):
            table.add_row(*row)
        return Group(head, top, table, Text(self.outcomes(status), style="dim"))

    def metric(self, status: StudyStatus) -> str:
        """`accuracy ↑`."""
        return f"{status.study.metric} {'↑' if status.study.direction == 'maximize' else '↓'}"

    def outcomes(self, status: StudyStatus) -> str:
        """How trials ended, how many are paused, and what pruning saved."""
        saved = f"; {counted(status.epochs_saved, 'epoch')} saved by pruning" if status.epochs_saved else ""
        paused = f"; {len(status.paused)} paused" if status.paused else ""
        return printing.counts(status.counts) + paused + saved

    def times(self, status: StudyStatus) -> str:
        """Time since the start, and a guess of what is left."""
        if self._settled_at_start is None:
            self._settled_at_start = status.settled
        elapsed = self._clock() - self._started
        done = status.settled - self._settled_at_start
        left = status.study.trials - status.settled
        if done <= 0 or left <= 0 or status.paused:  # a paused trial may be settled at once or train for long
            return f"{printing.duration(elapsed)} {self._doing}"
        return f"{printing.duration(elapsed)} {self._doing}, about {printing.duration(elapsed / done * left)} left"

    def rows(self, status: StudyStatus) -> list[tuple[str, ...]]:
        """A row for every slot, and for every trial that is trained or left elsewhere."""
        host = socket.gethostname()
        here = {trial.pid: trial for trial in status.running if trial.host == host and not trial.adoptable}
        rows = []
        for pid, name in self._slots.items():
            idle = (name, "-", "", "", "")
            rows.append(printing.running_row(here[pid], status.study.length) if pid in here else idle)
        for trial in status.running:
            if here.get(trial.pid) is not trial or trial.pid not in self._slots:
                slot, *cells = printing.running_row(trial, status.study.length)
                rows.append(("waiting for a worker" if trial.adoptable else f"{trial.host} {slot}", *cells))
        return rows


class LiveView:
    """A drawing in a terminal."""

    def __init__(
        self,
        console: Console,
        slots: Mapping[int, str],
        clock: Callable[[], float] = time.monotonic,
        doing: str = "elapsed",
    ) -> None:
        """As `Drawing`."""
        self._drawing = Drawing(slots, clock, doing)
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def update(self, status: StudyStatus, best: RankedTrial | None, settled: Sequence[SettledTrial]) -> None:
        """Draw the new state."""
        self._live.update(self._drawing.lines(status, best))

    def note(self, text: str) -> None:
        """Print a line above the view."""
        printing.say(self._live.console, text)

    def close(self) -> None:
        """Leave the last drawing on the screen."""
        self._live.stop()
