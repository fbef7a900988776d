"""What a study has cost, as people read it: a row for each outcome; for `dialin status` and the report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from search import printing
from storage.costs import Cost, Saved, StudyCosts

HEADINGS = ("outcome", "trials", "epochs", "time", "device time", "samples", "peak memory")
MIB, GIB = 2**20, 2**30


def size(count: int | None) -> str:
    """Bytes of memory: `512 MiB`, `7.4 GiB`."""
    if count is None:
        return "-"
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:,.0f} MiB"


def rows(costs: StudyCosts) -> list[tuple[str, ...]]:
    """A row for each outcome, and the sum where there are several."""
    told = [_row(state.replace("_", " "), trials, cost) for state, (trials, cost) in costs.by_state.items()]
    if len(told) > 1:
        told.append(_row("all", sum(trials for trials, _ in costs.by_state.values()), costs.total))
    return told


def _row(state: str, trials: int, cost: Cost) -> tuple[str, ...]:
    times = printing.duration(cost.seconds), printing.duration(cost.device_seconds)
    return state, str(trials), f"{cost.epochs:,}", *times, f"{cost.samples:,}", size(cost.peak_memory)


def table(costs: StudyCosts) -> Table:
    """For a terminal."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in HEADINGS:
        drawn.add_column(heading, justify="left" if heading == "outcome" else "right", header_style="dim")
    for row in rows(costs):
        drawn.add_row(*row)
    return drawn


def saved_line(costs: StudyCosts) -> str:
    """`epochs: 120 saved by pruning (about 1:10), 12 by patience (about 0:07)`; empty where none was."""
    said = [f"{costs.pruning.epochs:,} saved by pruning {_time(costs.pruning)}"] if costs.pruning.epochs else []
    word = "" if said else "saved "
    said += [f"{costs.patience.epochs:,} {word}by patience {_time(costs.patience)}"] if costs.patience.epochs else []
    return f"epochs: {', '.join(said)}" if said else ""


def _time(saved: Saved) -> str:
    return f"(about {printing.duration(saved.seconds)})"


def as_json(costs: StudyCosts) -> dict[str, Any]:
    """The same in numbers."""
    by_outcome = {state: {"trials": trials} | _numbers(cost) for state, (trials, cost) in costs.by_state.items()}
    saved = {"pruning": asdict(costs.pruning), "patience": asdict(costs.patience)}
    return {"by_outcome": by_outcome, "total": _numbers(costs.total), "saved": saved}


def _numbers(cost: Cost) -> dict[str, Any]:
    return {name: value for name, value in asdict(cost).items() if name != "device"}
