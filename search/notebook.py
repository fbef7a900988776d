"""The live view of a search in a notebook: HTML that is drawn over, and the same as plain text for where none is shown.

`search.views` chooses it inside an IPython kernel. IPython is imported only where it is running already.
"""

from __future__ import annotations

import html
import io
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType

from search import printing
from search.live import Drawing
from storage.outcomes import Outcome
from storage.queries import RankedTrial, SettledTrial, StudyStatus

# A front end redraws the whole output at each update.
REDRAW_SECONDS = 0.5
NOTES_SHOWN = 8
CHARTED = 400
CHART_WIDTH, CHART_HEIGHT = 640, 96
# The colours of Jupyter's own theme, light or dark; those after the commas where there is none.
ACCENT = "var(--jp-brand-color1, #1976d2)"
GOOD = "var(--jp-success-color1, #2e7d32)"
STYLE = "font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px; line-height: 1.5;"
CELL = "padding: 1px 14px 1px 0; border: none; background: none; font-variant-numeric: tabular-nums;"
WORDS = ("slot", "recipe")
FAINT = "opacity: .65"

Bundle = Mapping[str, str]
Display = Callable[[Bundle], Callable[[Bundle], None]]


def is_here() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def show(bundle: Bundle) -> Callable[[Bundle], None]:
    """Display it in the running cell; calling what is returned draws over it."""
    from IPython.display import display

    handle: Any = display(dict(bundle), raw=True, display_id=True)  # type: ignore[no-untyped-call]  # IPython's

    def again(other: Bundle) -> None:
        handle.update(dict(other), raw=True)

    return again


class NotebookView:
    """A card in the cell's output, drawn over while the search runs."""

    def __init__(
        self, slots: Mapping[int, str], clock: Callable[[], float] = time.monotonic, display: Display = show
    ) -> None:
        """`slots` as `Drawing`."""
        self._drawing = Drawing(slots, clock)
        self._clock, self._display = clock, display
        self._again: Callable[[Bundle], None] | None = None
        self._drawn_at, self._drawn = -REDRAW_SECONDS, ""
        self._last: tuple[StudyStatus, RankedTrial | None] | None = None
        self._settled: list[SettledTrial] = []
        self._notes: list[str] = []
        self._closed = False

    def update(self, status: StudyStatus, best: RankedTrial | None, settled: Sequence[SettledTrial]) -> None:
        """Draw the new state, if it is time to."""
        self._last = status, best
        self._settled += settled
        if settled or self._clock() - self._drawn_at >= REDRAW_SECONDS:
            self._draw()

    def note(self, text: str) -> None:
        """A line below the rest, that stays."""
        self._notes.append(text)
        self._draw()

    def close(self) -> None:
        """The last state stays in the notebook."""
        self._closed = True
        self._draw()

    def _draw(self) -> None:
        if self._last is None:
            return
        status, best = self._last
        drawn = card(self._html(status, best))
        self._drawn_at = self._clock()
        if drawn == self._drawn:
            return
        self._drawn = drawn
        text = "\n".join([as_text(self._drawing.lines(status, best)), *self._below(status)])
        bundle = {"text/html": drawn, "text/plain": text}
        if self._again is None:
            self._again = self._display(bundle)
        else:
            self._again(bundle)

    def _html(self, status: StudyStatus, best: RankedTrial | None) -> str:
        parts = [
            heading(status, f"{self._drawing.metric(status)} · {self._drawing.times(status)}"),
            "" if status.study.confirms else best_line(best),
            _chart([trial for trial in self._settled if trial.value is not None][-CHARTED:], status.study.direction),
        ]
        if status.running:
            parts.append(table(Drawing.HEADINGS, self._drawing.rows(status)))
        parts.append(f'<div style="{FAINT}">{html.escape(self._drawing.outcomes(status))}</div>')
        parts += [f"<div>{html.escape(line)}</div>" for line in self._below(status)]
        return "".join(parts)

    def _below(self, status: StudyStatus) -> list[str]:
        """What failed, what happened to workers, and in the end what has become of the study."""
        failed = [printing.failure_line(failure) for failure in status.failures]
        lines = [*failed, *self._notes[-NOTES_SHOWN:]]
        if self._closed:
            call = "confirm" if status.study.confirms else "resume"
            lines.append(printing.state_of(status) + ("" if status.finished else f"; {call}() goes on"))
        return lines


def as_text(drawing: RenderableType) -> str:
    """What a terminal of 100 columns would show, without control codes."""
    file = io.StringIO()
    Console(file=file, width=100, force_terminal=False, force_jupyter=False, color_system=None).print(drawing)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def card(inside: str) -> str:
    """What a cell shows, in the theme's own letters."""
    return f'<div style="{STYLE} max-width: {CHART_WIDTH}px">{inside}</div>'


def heading(status: StudyStatus, behind: str) -> str:
    """The study's name, how far it is as a bar, and a few words."""
    study = status.study
    share = 100 * min(1.0, status.settled / max(1, study.trials))
    bar = (
        f'<div style="height: 4px; margin: 3px 0 5px; border-radius: 2px; background: rgba(128,128,128,.25)">'
        f'<div style="height: 4px; width: {share:.1f}%; border-radius: 2px; background: {ACCENT}"></div></div>'
    )
    words = f"<b>{html.escape(study.name)}</b> &nbsp; {printing.progress(status)}"
    return f'<div>{words} <span style="{FAINT}"> · {html.escape(behind)}</span></div>{bar}'


def best_line(best: RankedTrial | None) -> str:
    """The best trial with its recipe."""
    if best is None:
        return f'<div style="{FAINT}">best: none yet</div>'
    value = f'<b style="color: {GOOD}">{printing.number(best.value)}</b>'
    return f"<div>best {value} in trial {best.number}: {html.escape(printing.full_recipe(best))}</div>"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A small table: words to the left, numbers to the right."""
    sides = ["left" if heading in WORDS else "right" for heading in headings]

    def line(cells: Iterable[Any], style: str = "") -> str:
        inside = "".join(
            f'<td style="{CELL} text-align: {side}; {style}">{html.escape(str(cell))}</td>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f'<tr style="background: none">{inside}</tr>'

    inside = line(headings, FAINT) + "".join(map(line, rows))
    return f'<table style="{STYLE} border-collapse: collapse; margin: 4px 0; border: none">{inside}</table>'


def _chart(trials: Sequence[SettledTrial], direction: str) -> str:
    """A dot for each trial in the order in which they ended, faint where it was pruned; a line through the best."""
    values = [trial.value for trial in trials if trial.value is not None and trial.outcome is Outcome.COMPLETE]
    if len(values) < 2 or min(values) == max(values):
        return ""
    low, high = min(values), max(values)
    step = (CHART_WIDTH - 16) / max(1, len(trials) - 1)

    def spot(number: int, value: float) -> tuple[float, float]:
        share = min(1.0, max(0.0, (value - low) / (high - low)))  # what was pruned may lie far below
        return 8 + number * step, CHART_HEIGHT - 8 - share * (CHART_HEIGHT - 16)

    best, path, dots = None, [], []
    for number, trial in enumerate(trials):
        assert trial.value is not None
        x, y = spot(number, trial.value)
        complete = trial.outcome is Outcome.COMPLETE
        title = html.escape(f"trial {trial.number} {trial.outcome.text}: {printing.number(trial.value)}")
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{ACCENT}" fill-opacity="{0.9 if complete else 0.3}">'
            f"<title>{title}</title></circle>"
        )
        better = best is None or (trial.value > best if direction == "maximize" else trial.value < best)
        if complete and better:
            best = trial.value
        if best is not None:
            path.append("{:.1f},{:.1f}".format(*spot(number, best)))
    line = f'<polyline points="{" ".join(path)}" fill="none" stroke="{GOOD}" stroke-width="1.5"/>'
    size = f'width="100%" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}"'
    return f'<svg {size} style="display: block; margin: 2px 0">{line}{"".join(dots)}</svg>'
