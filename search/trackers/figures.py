"""Draws a trial: its learning curve, the confusion matrix or the residuals of its best weights.

Figures are made without pyplot, which would look for a screen; `save` writes PNG files of about 1300 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from search.trackers.tracker import Ending, Point, TrialInfo

INK, FAINT, GRID = "#1f2933", "#6b7785", "#e4e8ec"
BLUE, ORANGE, GREEN = "#2563eb", "#e07b00", "#0f8a5f"
# Up to so many classes, each cell has its number; of more, the worst confusions are listed.
MOST_NUMBERED = 30
WORST = 15
# From so many points on, their density is drawn and not each of them.
CROWD = 2000


def save(figure: Figure, path: Path) -> None:
    """As PNG. OSError: it cannot be written."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=144, facecolor="white")


def learning_curve(info: TrialInfo, points: Sequence[Point], ending: Ending) -> Figure:
    """The searched metric and the training loss by epoch, the best epoch marked."""
    figure = _figure(info, ending, height=5.6)
    losses = any("train_loss" in point.metrics for point in points)
    above, *below = figure.subplots(2 if losses else 1, 1, sharex=True, squeeze=False)[:, 0]
    _curve(above, points, info.metric, BLUE, info)
    best = [point for point in points if point.epoch == ending.best_epoch]
    for axes in (above, *below):
        if best:
            axes.axvline(best[0].epoch, color=GREEN, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if best and math.isfinite(value := best[0].metrics.get(info.metric, math.nan)):
        above.plot([best[0].epoch], [value], "o", color=GREEN, markersize=7, zorder=4)
        above.set_title(f"best: {value:.4g} in epoch {best[0].epoch}", loc="right", color=GREEN, fontsize=10)
    for axes in below:
        _curve(axes, points, "train_loss", ORANGE, info)
    last: Axes = (above, *below)[-1]
    last.set_xlabel("epoch")
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def confusion_matrix(info: TrialInfo, counts: Tensor, ending: Ending) -> Figure:
    """True classes by predicted ones. counts: (C, C); a row is coloured by its shares."""
    table = counts.numpy()
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    classes = len(table)
    numbered = classes <= MOST_NUMBERED
    figure = _figure(info, ending, height=min(10.5, 4.6 + 0.22 * classes) if numbered else 7.6)
    axes = figure.subplots() if numbered else figure.subplots(1, 2, width_ratios=(3, 1))[0]
    shown = np.ma.masked_equal(shares, 0)
    smallest = max(float(shown.min()) if shown.count() else 0.01, 1e-4)
    # Of many classes a single mistake must be seen too: a faint cell of one pixel is not.
    norm = None if numbered else LogNorm(min(smallest, 0.5), 1)
    image = axes.imshow(shown, cmap=_blues(), norm=norm, vmin=0 if numbered else None, vmax=1 if numbered else None)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_facecolor("white")
    if numbered:
        _numbers(axes, table, shares)
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
    else:
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, label="share of the true class")
        _worst(figure.axes[1], table)
    for side in axes.spines.values():
        side.set_color(GRID)
    axes.tick_params(length=0, labelsize=9 if classes <= 12 or not numbered else 7)
    return figure


def residuals(info: TrialInfo, predicted: Tensor, true: Tensor, ending: Ending) -> Figure:
    """Predicted - true against predicted, and how the residuals are spread. Both: (N,)."""
    x, y = predicted.numpy(), (predicted - true).numpy()
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    figure = _figure(info, ending, height=5.4)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    if len(x) > CROWD:
        left.hexbin(x, y, gridsize=(70, 35), cmap=_blues(), bins="log", mincnt=1, linewidths=0.1)
    else:
        size = 18 if len(x) < 300 else 8
        left.scatter(x, y, s=size, color=BLUE, alpha=0.45 if len(x) > 60 else 0.8, linewidths=0)
    right.hist(y, bins=min(41, max(8, len(y) // 10)), orientation="horizontal", color=BLUE, alpha=0.8)
    for axes in (left, right):
        axes.axhline(0, color=GREEN, linewidth=1, linestyle=(0, (4, 3)))
        _plain(axes)
    left.set_xlabel("predicted")
    left.set_ylabel("predicted - true")
    right.set_xlabel("count")
    if len(y):
        spread = f"mean {y.mean():.3g}, standard deviation {y.std():.3g}"
        left.set_title(f"{spread}, {len(y)} values", loc="right", color=FAINT, fontsize=9)
    return figure


def _figure(info: TrialInfo, ending: Ending, *, height: float) -> Figure:
    """Nine inches wide, with the trial and its recipe above."""
    figure = Figure(figsize=(9, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    value = f", {info.metric} {ending.value:.4g}" if ending.value is not None else ""
    figure.suptitle(f"trial {info.number} of {info.study}{value}", x=0.01, ha="left", color=INK, weight="bold")
    recipe = figure.supxlabel(fill(info.summary, 125), x=0.01, ha="left", color=FAINT, fontsize=8)
    recipe.set_linespacing(1.3)
    return figure


def _curve(axes: Axes, points: Sequence[Point], name: str, color: str, info: TrialInfo) -> None:
    """One line; of folds, which follow each other, one each."""
    curve = [(point.epoch, point.metrics.get(name, math.nan)) for point in points]
    marker = "o" if len(curve) <= 40 else None
    fold = max(1, info.epochs // info.folds) if info.folds > 1 else math.inf
    for _, line in groupby(curve, key=lambda one: (one[0] - 1) // fold):
        axes.plot(*zip(*line, strict=True), color=color, linewidth=1.8, marker=marker, markersize=3.5, zorder=3)
    axes.set_ylabel(name.replace("_", " "))
    numbers = [value for _, value in curve if math.isfinite(value)]
    if name == "train_loss" and numbers and min(numbers) > 0 and max(numbers) > 100 * min(numbers):
        axes.set_yscale("log")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=FAINT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _blues() -> Any:
    return LinearSegmentedColormap.from_list("dialin", ["#eef4ff", "#9dbcf7", BLUE, "#16348f"])


def _numbers(axes: Axes, table: Any, shares: Any) -> None:
    size = 10 if len(table) <= 12 else 7 if len(table) <= 20 else 5.5
    for (row, column), count in np.ndenumerate(table):
        if count:
            color = "white" if shares[row, column] > 0.45 else INK
            axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=size)


def _worst(axes: Axes, table: Any) -> None:
    """The largest confusions in words."""
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    order = [place for place in wrong.ravel().argsort()[::-1][:WORST] if wrong.ravel()[place]]
    lines = [f"{place // len(table)} as {place % len(table)}: {wrong.ravel()[place]}" for place in order]
    axes.axis("off")
    text = "\n".join(["most confused", "", *lines]) if lines else "no class is confused"
    axes.text(0, 0.98, text, va="top", color=INK, fontsize=9, linespacing=1.5, transform=axes.transAxes)
