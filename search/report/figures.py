"""The figures of curves: every trial's, the best so far, the schedules that won.

Figures are plotly's, without colours of text and paper, which the page gives them by its theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from search.report.data import ReportData
from storage.history import evenly
from storage.outcomes import Outcome
from storage.records import RecordedTrial

# They stand out on white and on black alike.
BLUE, GREEN, ORANGE, RED, VIOLET, GREY = "#3b82f6", "#10a37f", "#e8890c", "#e5484d", "#8e5bd9", "#8b95a3"
OUTCOMES = {
    "complete": GREEN,
    "pruned": GREY,
    "diverged": ORANGE,
    "out_of_memory": VIOLET,
    "lost": VIOLET,
    "error": RED,
    "running": BLUE,
    "adoptable": BLUE,
    "paused": BLUE,
}
# Of more trials an even choice is drawn, of curves the best ones always.
MOST_CURVES, BEST_CURVES, MOST_DOTS = 300, 40, 1500
# Above the figure, in the order of the traces.
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
# Digits that a screen can show.
DIGITS = 5


def figure(title: str, height: int = 380) -> go.Figure:
    """An empty one."""
    made = go.Figure()
    made.update_layout(
        height=height, margin={"l": 64, "r": 16, "t": 12, "b": 48}, showlegend=False, hovermode="closest", meta=title
    )
    return made


def short(value: float | None) -> float | None:
    """A number with as many digits as can be seen; None for what is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def learning_curves(data: ReportData) -> go.Figure | None:
    """The searched metric by epoch: complete trials, faded those that were stopped, the best one above all."""
    trained = [one for one in data.trials if sum(epoch.value is not None for epoch in one.epochs) > 1]
    if not trained:
        return None
    made = figure(f"Learning curves: {data.study.metric} by epoch of every trial", 440)
    best = data.best[0].number if data.best else None
    leading = {ranked.number for ranked in data.best}
    drawn = _some(data, trained, leading)
    stopped = [one for one in drawn if one.outcome is not Outcome.COMPLETE]
    complete = [one for one in drawn if one.outcome is Outcome.COMPLETE and one.number != best]
    made.add_trace(_lines(stopped, "stopped early", GREY, 0.5, 1.0))
    made.add_trace(_lines(complete, "complete", BLUE, 0.6, 1.3))
    made.add_trace(_lines([one for one in drawn if one.number == best], f"best (trial {best})", GREEN, 1.0, 3.0))
    made.update_layout(showlegend=True, legend=LEGEND)
    made.update_xaxes(title="epoch")
    made.update_yaxes(title=data.study.metric, title_standoff=6, automargin=True, range=_visible(data, trained))
    return made


def _some(data: ReportData, trained: Sequence[RecordedTrial], leading: set[int]) -> list[RecordedTrial]:
    if len(trained) <= MOST_CURVES:
        return [*trained]
    ranked = [data.evidence.judged[index].number for index in data.evidence.ranked[:BEST_CURVES]]
    first = [one for one in trained if one.number in leading or one.number in ranked]
    return first + evenly([one for one in trained if one not in first], MOST_CURVES - len(first))


def _lines(trials: Iterable[RecordedTrial], name: str, colour: str, opacity: float, width: float) -> go.Scatter:
    """All of them in one trace, with gaps between them: a trace each would take seconds to draw."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for one in trials:
        told = [epoch for epoch in one.epochs if epoch.value is not None]
        x += [*(epoch.epoch for epoch in told), None]
        y += [*(short(epoch.value) for epoch in told), None]
        numbers += [one.number] * len(told) + [None]
    return go.Scatter(
        x=x,
        y=y,
        customdata=numbers,
        mode="lines",
        name=name,
        opacity=opacity,
        line={"color": colour, "width": width},
        hovertemplate="trial %{customdata}, epoch %{x}: %{y}<extra></extra>",
    )


def _visible(data: ReportData, trials: Iterable[RecordedTrial]) -> list[float] | None:
    """The range of values without the worst tenth, which would press all others together; None for all of it."""
    values = [epoch.value for one in trials for epoch in one.epochs]
    finite = sorted(value for value in values if value is not None and math.isfinite(value))
    return visible(data, finite)


def visible(data: ReportData, finite: Sequence[float]) -> list[float] | None:
    """The range that shows sorted values but for the worst tenth."""
    if len(finite) < 20:
        return None
    cut = len(finite) // 10
    kept = finite[cut:] if data.study.direction == "maximize" else finite[: len(finite) - cut]
    margin = 0.05 * (kept[-1] - kept[0])
    return [kept[0] - margin, kept[-1] + margin] if margin > 0 else None


def best_so_far(data: ReportData) -> go.Figure | None:
    """The best complete value against settled trials, and against the device time that they took."""
    points = _progress(data)
    if not points:
        return None
    made = figure(f"Best {data.study.metric} so far, by settled trials and by device time", 380)
    made.set_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.08)
    for column, what in ((1, "count"), (2, "minutes")):
        stairs = _stairs(points)
        x = [point[what] for point in stairs]
        complete = [point for point in points if point["value"] is not None]
        made.add_trace(_dots(evenly(complete, MOST_DOTS), what), row=1, col=column)
        steps = {"color": GREEN, "width": 2.5, "shape": "hv"}
        best = [point["best"] for point in stairs]
        drawn = go.Scatter(x=x, y=best, mode="lines", line=steps, hovertemplate="best: %{y}<extra></extra>")
        made.add_trace(drawn, row=1, col=column)
    finite = sorted(point["value"] for point in points if point["value"] is not None)
    made.update_yaxes(range=visible(data, finite))
    made.update_xaxes(title="settled trials", row=1, col=1)
    made.update_xaxes(title="device time, minutes", row=1, col=2)
    made.update_yaxes(title=data.study.metric, title_standoff=6, automargin=True, row=1, col=1)
    return made


def _stairs(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points at which the best changes, the first and the last."""
    changes = [now for before, now in pairwise(points) if before["best"] != now["best"]]
    return [points[0], *changes, points[-1]]


def _dots(points: Sequence[dict[str, Any]], what: str) -> go.Scatter:
    return go.Scatter(
        x=[point[what] for point in points],
        y=[point["value"] for point in points],
        customdata=[point["number"] for point in points],
        mode="markers",
        marker={"color": BLUE, "size": 6, "opacity": 0.55},
        hovertemplate="trial %{customdata}: %{y}<extra></extra>",
    )


def _progress(data: ReportData) -> list[dict[str, Any]]:
    """A point for each settled trial: how many, after how much device time, its value if it is complete, the best."""
    points, best, seconds = [], None, 0.0
    for count, one in enumerate(data.settled, start=1):
        seconds += one.device_seconds
        counts = one.outcome is Outcome.COMPLETE and one.feasible and one.value is not None
        value = one.value if counts and math.isfinite(one.value or 0.0) else None
        if value is not None and (best is None or data.better(value, best)):
            best = value
        points.append(
            {"count": count, "minutes": short(seconds / 60), "value": short(value), "best": short(best)}
            | {"number": one.number}
        )
    return points if best is not None else []
