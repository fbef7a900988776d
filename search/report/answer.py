"""The answer: the best recipe, and what its number is worth: confirmed by fresh seeds, or the best of many draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from search import confirmation_page, printing
from search.confirmation import Confirmation
from search.ranking import spread
from search.report.data import ReportData
from search.report.figures import BLUE, GREEN, LEGEND, ORANGE, figure, short
from search.report.markup import command, paragraph, section, table, text
from storage.queries import RankedTrial
from storage.words import counted


def answer(data: ReportData, place: Callable[..., str], title: str) -> str:
    """The section. `place` gives a figure its place in the page."""
    study = data.study
    if not data.best:
        kept = data.status.kept
        nearest = kept is not None and kept.nearest is not None
        none = printing.none_feasible(kept) if kept is not None and nearest else "no complete trial yet"
        return section("answer", title, paragraph(none))
    best, confirmed = data.best[0], data.answer is not None and data.answer.winner is not None
    knobs = f'<div class="two">{_values("Recipe", best, "settings")}{_values("Model", best, "model")}</div>'
    again = _again(data, data.answer, place) if data.answer is not None else []
    hint = "The best of many noisy values is partly luck: train it with other seeds before relying on its last digits."
    act = f"dialin best {study.name}" + (" --weights best.pt" if study.epochs else "")  # a bare function has none
    act += "" if data.answer is not None and data.answer.finished else f"\n{printing.confirm_command(study)}"
    told = "" if confirmed else paragraph(hint, "soft")
    return section("answer", title, paragraph(headline(data)), knobs, *again, _others(data), told, command(act))


def headline(data: ReportData) -> str:
    """The best in a sentence."""
    best, winner = data.best[0], data.answer.winner if data.answer is not None else None
    if winner is not None:
        seeds = counted(len(winner.values), "fresh seed")
        return f"{data.study.metric} {spread(winner)}: the mean of {seeds} of trial {winner.trial}, with its interval."
    at = f", in epoch {best.best_epoch}" if best.best_epoch else ""
    worth = printing.unconfirmed(data.status.settled)
    return f"{data.study.metric} {printing.number(best.value)} in trial {best.number}{at} ({worth})."


def _again(data: ReportData, found: Confirmation, place: Callable[..., str]) -> list[str]:
    """What fresh seeds of the best recipes have shown."""
    rows = [
        (*row, printing.full_recipe(one.found))
        for row, one in zip(confirmation_page.rows(found), found.recipes, strict=True)
    ]
    said = [
        paragraph(line[:1].upper() + line[1:])
        for line in confirmation_page.lines(found, data.study, data.status.settled)
    ]
    left = [] if found.finished else [paragraph(f"{found.name} is not finished.")]
    body = table((*confirmation_page.HEADINGS, "recipe"), rows, range(len(confirmation_page.HEADINGS)), wide=7)
    return ["<h3>Fresh seeds of the best recipes</h3>", body, place(seeds(found)), *said, *left]


def seeds(found: Confirmation) -> go.Figure | None:
    """Each recipe a row: its seeds, their mean with its interval, and what the search saw."""
    recipes = [one for one in found.recipes if one.values]
    if not recipes:
        return None
    made = figure(f"{found.metric} with fresh seeds, and as the search saw it", 110 + 34 * len(recipes))
    rows = {one.trial: f"trial {one.trial}" for one in recipes}
    each = [(value, rows[one.trial]) for one in recipes for value in one.values.values()]
    made.add_trace(_marks("seeds", each, {"color": BLUE, "size": 8, "opacity": 0.5}))
    seen = [(one.found.value, rows[one.trial]) for one in recipes]
    made.add_trace(_marks("in the search", seen, {"color": ORANGE, "size": 9, "symbol": "diamond-open"}))
    sure = [one for one in recipes if one.is_confirmed]
    means = _marks("mean", [(one.mean.estimate, rows[one.trial]) for one in sure], {"color": GREEN, "size": 10})
    means.error_x = {
        "type": "data",
        "symmetric": False,
        "array": [short(one.mean.high - one.mean.estimate) for one in sure],
        "arrayminus": [short(one.mean.estimate - one.mean.low) for one in sure],
        "color": GREEN,
    }
    made.add_trace(means)
    made.update_layout(showlegend=True, legend=LEGEND, margin={"l": 16, "t": 40})
    made.update_yaxes(type="category", automargin=True, categoryorder="array", categoryarray=[*rows.values()][::-1])
    made.update_xaxes(title=found.metric)
    return made


def _marks(name: str, points: list[tuple[float, str]], marker: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=[short(value) for value, _ in points],
        y=[row for _, row in points],
        name=name,
        mode="markers",
        marker=marker,
        hovertemplate=f"%{{y}}, {name}: %{{x}}<extra></extra>",
    )


def _others(data: ReportData) -> str:
    """The best trials by what the search saw of them."""
    if len(data.best) < 2:
        return ""
    rows = [
        (
            rank,
            one.number,
            printing.number(one.value),
            one.best_epoch or "-",
            f"{one.seconds:.1f} s",
            printing.full_recipe(one),
        )
        for rank, one in enumerate(data.best, start=1)
    ]
    seen = " in the search" if data.answer is not None else ""
    heading = ("", "trial", f"{data.study.metric}{seen}", "best epoch", "time", "recipe")
    title = f"The best {len(rows)}" + (", confirmed ones first" if data.answer is not None else "")
    return f"<h3>{title}</h3>{table(heading, rows, range(5), wide=5)}"


def _values(title: str, best: RankedTrial, group: str) -> str:
    values = best.attrs.get(group, {})
    if not values:
        return ""
    rows = [(name, _value(value)) for name, value in values.items()]
    return f"<div><h3>{text(title)}</h3>{table(('knob', 'value'), rows)}</div>"


def _value(value: Any) -> str:
    several = value if isinstance(value, list) else [value]
    return ", ".join(f"{one:.6g}" if isinstance(one, float) else str(one) for one in several)
