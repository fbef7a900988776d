"""The figures of the run: the schedules that were trained, what stopping early has saved, who trained what when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go

from search.report.data import ReportData
from search.report.figures import BLUE, GREEN, GREY, LEGEND, ORANGE, OUTCOMES, RED, VIOLET, figure, short
from storage.records import RecordedTrial, Span

# A schedule is drawn through so many points.
POINTS = 240
COLOURS = (GREEN, BLUE, ORANGE, VIOLET, RED)
# Of more spans only the last ones are drawn.
MOST_SPANS = 3000


def schedules(data: ReportData) -> go.Figure | None:
    """The learning rate over the run of the best trials, as a share of its highest."""
    by_number = {one.number: one for one in data.trials}
    curves = [(ranked.number, curve) for ranked in data.best if (curve := _rates(by_number[ranked.number]))]
    if not curves:
        return None
    made = figure("Learning-rate schedules of the best trials", 340)
    for (number, (x, y)), colour in zip(curves, COLOURS, strict=False):
        recipe = by_number[number].recipe
        name = f"trial {number}: {recipe.get('schedule', '')}, lr {recipe.get('lr', 0):.2g}"
        line = {"color": colour, "width": 2.2}
        made.add_trace(go.Scatter(x=x, y=y, name=name, mode="lines", line=line, hovertemplate="%{y:.1%} of the rate"))
    made.update_layout(showlegend=True, legend=LEGEND)
    made.update_xaxes(title="share of the run", tickformat=".0%", range=[0, 1])
    made.update_yaxes(title="share of the rate", tickformat=".0%", rangemode="tozero")
    return made


def _rates(trial: RecordedTrial) -> tuple[list[float | None], list[float | None]] | None:
    """The recipe's schedule; where nobody here knows one of that name, the rates on record after each epoch."""
    table = _table(trial.recipe)
    if table is not None:
        return [short(step / (len(table) - 1)) for step in range(len(table))], [short(one) for one in table]
    recorded = [epoch.metrics["lr"] for epoch in trial.epochs if "lr" in epoch.metrics]
    if len(recorded) < 2 or max(recorded) <= 0:
        return None
    count = len(recorded)
    return [short((n + 1) / count) for n in range(count)], [short(rate / max(recorded)) for rate in recorded]


def _table(recipe: Mapping[str, Any]) -> list[float] | None:
    from search.schedules import SCHEDULES, factors  # imports torch

    row = SCHEDULES.get(str(recipe.get("schedule")))
    if row is None:
        return None
    shape = {name: recipe[name] for name in row.defaults if name in recipe}
    try:
        return [float(one) for one in factors(row, shape, POINTS, float(recipe.get("warmup", 0.0)))]
    except (ValueError, TypeError):  # a person's own row of the same name
        return None


def saved(data: ReportData) -> go.Figure | None:
    """Epochs that were trained, by how their trials ended, beside those that were spared."""
    parts = [
        (state.replace("_", " "), cost.epochs, cost.device_seconds, OUTCOMES[state], "")
        for state, (_, cost) in data.cost.by_state.items()
        if cost.epochs
    ]
    spared = (("spared by pruning", data.cost.pruning), ("spared by patience", data.cost.patience))
    parts += [(what, one.epochs, one.seconds, BLUE, "/") for what, one in spared if one.epochs]
    if not parts:
        return None
    made = figure("Epochs trained, and epochs spared", 180)
    for name, epochs, seconds, colour, pattern in parts:
        made.add_trace(
            go.Bar(
                x=[epochs],
                y=["epochs"],
                name=name,
                orientation="h",
                marker={"color": colour, "opacity": 0.9, "pattern": {"shape": pattern, "fillmode": "replace"}},
                hovertemplate=f"{name}: {epochs:,} epochs, {seconds / 60:.1f} min<extra></extra>",
            )
        )
    made.update_layout(barmode="stack", showlegend=True, legend=LEGEND, margin={"l": 16, "t": 40})
    made.update_yaxes(visible=False)
    made.update_xaxes(title="epochs")
    return made


def timeline(data: ReportData) -> go.Figure | None:
    """Each worker a row, each of its trials a bar."""
    spans = data.spans[-MOST_SPANS:]
    if not spans:
        return None
    workers = {worker: row for row, worker in enumerate(dict.fromkeys(span.worker for span in spans))}
    outcomes = {one.number: one.state for one in data.trials}
    made = figure("Which worker trained which trial when (UTC)", 130 + 26 * len(workers))
    for outcome in dict.fromkeys(outcomes[span.number] for span in spans):
        some = [span for span in spans if outcomes[span.number] == outcome]
        made.add_trace(_bars(some, outcome, data.made_at))
    made.update_layout(barmode="overlay", showlegend=True, legend=LEGEND, margin={"l": 16, "t": 40})
    made.update_yaxes(type="category", automargin=True, categoryorder="array", categoryarray=[*workers][::-1])
    made.update_xaxes(type="date", nticks=4, tickangle=0)  # more lie on each other on a phone
    return made


def _bars(spans: Sequence[Span], outcome: str, now: float) -> go.Bar:
    ends = [now if span.ended_at is None else span.ended_at for span in spans]
    return go.Bar(
        base=[_moment(span.began_at) for span in spans],
        x=[round(1000 * (end - span.began_at), 1) for span, end in zip(spans, ends, strict=True)],
        y=[span.worker for span in spans],
        customdata=[[span.number, span.ending.replace("_", " ")] for span in spans],
        name=outcome.replace("_", " "),
        orientation="h",
        width=0.62,
        marker={"color": OUTCOMES.get(outcome, GREY), "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"}},
        hovertemplate="trial %{customdata[0]}: %{customdata[1]}<extra></extra>",
    )


def _moment(seconds: float) -> str:
    """In UTC, as plotly reads it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
