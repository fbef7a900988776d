"""The figures of knobs: how much each decides, where in its range good trials lie, and two of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.advice import Evidence
from search.advice.evidence import Knob
from search.report.data import ReportData
from search.report.figures import BLUE, GREEN, GREY, figure, short, visible
from storage.history import evenly
from storage.outcomes import Outcome
from storage.records import RecordedTrial

# A knob that fewer trials have has no slice.
FEWEST = 5
# Of fewer best trials the region of them holds every one.
A_FEW = 10
# Of more knobs only those that decide most have a slice; of more trials an even choice has a dot, the best ones always.
MOST_SLICES, MOST_DOTS, BEST_DOTS = 24, 800, 100
SCALE = "Viridis"
# An edge in which dots of any colour are seen on white and on dark.
EDGE = {"width": 1, "color": "rgba(128,128,128,0.7)"}
# A range of fewer whole numbers has a tick at each.
MOST_TICKS = 8
NAMES = {
    "lr_multiple": "lr_multiple (lr / the optimizer's base rate)",
    "one_minus_momentum": "1 - momentum",
    "one_minus_beta1": "1 - beta1",
    "one_minus_beta2": "1 - beta2",
    "l2": "l2 (decoupled decay is 100 times that)",
}


def title_of(knob: str) -> str:
    """A knob's name on an axis."""
    return NAMES.get(knob, knob)


def importance(data: ReportData) -> go.Figure | None:
    """How much each knob decides whether a trial is a good one."""
    found = data.importances
    if not found:
        return None
    names, values = [*found][::-1], [*found.values()][::-1]
    made = figure("Importance of each knob", 80 + 24 * len(names))
    made.add_trace(
        go.Bar(
            x=[short(value) for value in values],
            y=names,
            orientation="h",
            marker={"color": BLUE},
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    made.update_xaxes(title="share", tickformat=".0%")
    made.update_yaxes(type="category")
    made.update_layout(margin={"l": 150})
    return made


def slices(data: ReportData) -> list[tuple[str, go.Figure]]:
    """For each knob the values of its trials, with the region of the best ones shaded; the most important first."""
    order = [*data.importances]
    tried = [knob for knob in data.evidence.knobs if len(knob.rows) >= FEWEST]
    knobs = sorted(tried, key=lambda knob: order.index(knob.name) if knob.name in order else len(order))
    return [(knob.name, _slice(data, knob)) for knob in knobs[:MOST_SLICES]]


def _slice(data: ReportData, knob: Knob) -> go.Figure:
    made = figure(f"{data.study.metric} by {title_of(knob.name)}", 230)
    chosen = [data.evidence.judged[index] for index in some_of(data, knob.rows)]
    complete = [one for one in chosen if one.outcome is Outcome.COMPLETE and one.feasible]
    numbers = {one.number for one in complete}
    others = [one for one in chosen if one.number not in numbers]
    made.add_trace(_dots(others, knob, GREY, 0.45))
    made.add_trace(_dots(complete, knob, BLUE, 0.8))
    if data.best and (best := [one for one in complete if one.number == data.best[0].number]):
        trace = _dots(best, knob, GREEN, 1.0)
        trace.marker.update(size=12, symbol="star")
        made.add_trace(trace)
    finite = sorted(value for one in chosen if (value := one.value) is not None and math.isfinite(value))
    made.update_yaxes(range=visible(data, finite))
    made.update_xaxes(automargin=True, **_axis(knob))
    _shade(made, data.evidence, knob)
    made.update_layout(margin={"l": 56, "r": 8, "t": 8, "b": 30})
    return made


def some_of(data: ReportData, rows: Iterable[int]) -> list[int]:
    """So many judged trials at most, by their indices: the best ones, and an even choice of the others."""
    wanted = [int(row) for row in rows]
    if len(wanted) <= MOST_DOTS:
        return wanted
    best = {*data.evidence.ranked[:BEST_DOTS].tolist()}
    first = [row for row in wanted if row in best]
    return first + evenly([row for row in wanted if row not in best], MOST_DOTS - len(first))


def _axis(knob: Knob) -> dict[str, Any]:
    d = knob.distribution
    if isinstance(d, CategoricalDistribution):
        return {
            "type": "category",
            "tickangle": -40,
            "categoryorder": "array",
            "categoryarray": [str(choice) for choice in d.choices],
        }
    assert isinstance(d, FloatDistribution | IntDistribution)
    if d.log:
        margin = 0.04 * math.log10(d.high / d.low)
        return {
            "type": "log",
            "exponentformat": "e",
            "range": [math.log10(d.low) - margin, math.log10(d.high) + margin],
        }
    margin = 0.04 * (d.high - d.low)
    whole = {"dtick": 1} if isinstance(d, IntDistribution) and d.high - d.low <= MOST_TICKS else {}
    return {"range": [d.low - margin, d.high + margin], **whole}


def _shown(knob: Knob, value: Any) -> Any:
    return str(value) if knob.choices else short(float(value))


def _dots(trials: Sequence[RecordedTrial], knob: Knob, colour: str, opacity: float) -> go.Scatter:
    return go.Scatter(
        x=[_shown(knob, one.params[knob.name]) for one in trials],
        y=[short(one.value) for one in trials],
        customdata=[[one.number, one.state.replace("_", " ")] for one in trials],
        mode="markers",
        marker={"color": colour, "size": 6, "opacity": opacity},
        hovertemplate="trial %{customdata[0]} (%{customdata[1]})<br>%{x}: %{y}<extra></extra>",
    )


def _shade(made: go.Figure, evidence: Evidence, knob: Knob) -> None:
    """Where the best trials lie, all of a few and of more four fifths; choices that a tenth of them has."""
    best = np.isin(knob.rows, evidence.best)
    count = int(best.sum())
    if count < FEWEST:
        return
    style: dict[str, Any] = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 0}}
    style |= {"fillcolor": GREEN, "opacity": 0.13, "layer": "below"}
    if knob.choices:
        for index in range(len(knob.choices)):
            if (knob.shares[best] == index).sum() >= max(1, 0.1 * count):
                made.add_shape(x0=index - 0.4, x1=index + 0.4, **style)
        return
    values = np.asarray([float(evidence.judged[index].params[knob.name]) for index in knob.rows[best]])
    low, high = np.quantile(values, [0.1, 0.9] if count >= A_FEW else [0, 1])
    made.add_shape(x0=short(float(low)), x1=short(float(high)), **style)


def pair(data: ReportData, across: str, up: str) -> go.Figure | None:
    """Real learning rate against a choice, each trial a dot whose colour says how well it stands."""
    having = [index for index, one in enumerate(data.evidence.judged) if {across, up} <= {*one.recipe}]
    trials = [(index, data.evidence.judged[index]) for index in some_of(data, having)]
    choices = sorted({one.recipe[up] for _, one in trials}, key=lambda one: (isinstance(one, str), one))
    if len(trials) < 5 or len(choices) < 2:
        return None
    made = figure(f"{across} and {up}: how well trials did", max(280, 90 + 34 * len(choices)))
    standing = data.evidence.standing
    place = {choice: row for row, choice in enumerate(choices)}
    # Dots of one choice lie a little apart, always in the same way.
    apart = np.random.default_rng(0).uniform(-0.28, 0.28, len(trials))
    made.add_trace(
        go.Scatter(
            x=[short(one.recipe[across]) for _, one in trials],
            y=[place[one.recipe[up]] + float(shift) for (_, one), shift in zip(trials, apart, strict=True)],
            customdata=[[one.number, one.state, str(one.recipe[up]), short(one.value)] for _, one in trials],
            mode="markers",
            marker={
                "color": [short(float(standing[index])) for index, _ in trials],
                "colorscale": SCALE,
                "cmin": 0,
                "cmax": 1,
                "size": 9,
                "opacity": 0.85,
                "line": EDGE,
                "colorbar": {"title": {"text": "beats"}, "tickformat": ".0%", "thickness": 12, "outlinewidth": 0},
            },
            hovertemplate="trial %{customdata[0]} (%{customdata[1]})<br>%{customdata[2]}, "
            + across
            + " %{x}: %{customdata[3]}<extra></extra>",
        )
    )
    values = [one.recipe[across] for _, one in trials]
    decades = {"dtick": 1} if min(values) > 0 and max(values) >= 100 * min(values) else {}
    made.update_xaxes(title=across, type="log", exponentformat="e", **decades)
    # The name of the axis keeps clear of its labels, however long these are.
    ticks = {"tickvals": [*place.values()], "ticktext": [str(choice) for choice in choices]}
    made.update_yaxes(title={"text": up, "standoff": 14}, automargin=True, **ticks)
    made.update_layout(margin={"l": 16})
    return made
