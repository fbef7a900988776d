"""All trials of a study as a table: one row a trial, the same columns as text, CSV, JSON and as a data frame.

`dialin trials` prints it, `Search.trials()` gives the frame, the report carries it along. Imports no torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from search import printing
from search.cost_table import size
from storage.overview import TrialLine

if TYPE_CHECKING:
    import pandas

# Before the columns of knobs, which are named as the recipe has them (lr, batch_size, ...), and those of metrics.
COLUMNS = (
    "number",
    "outcome",
    "value",
    "best_epoch",
    "epochs",
    "seconds",
    "device_seconds",
    "samples",
    "peak_memory",
    "device",
    "started_at",
    "settled_at",
)
METRICS = "metrics."
_KINDS = {
    "number": "int64",
    "outcome": "str",
    "value": "float64",
    "best_epoch": "Int64",
    "epochs": "int64",
    "seconds": "float64",
    "device_seconds": "float64",
    "samples": "int64",
    "peak_memory": "Int64",
    "device": "str",
}
# A spreadsheet takes a text that begins so for a formula, and the text comes from whoever wrote the objective.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def rows_of(lines: Sequence[TrialLine]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns, and a row for each trial with the columns that it has.

    A knob whose name is a column's own is called recipe.NAME, a model's one whose name is taken model.NAME. Metrics
    are those of the best epoch. Times are aware datetimes in UTC.
    """
    recipes = [_spread(line.recipe) for line in lines]
    taken = {*COLUMNS, *(name for recipe in recipes for name in recipe)}
    rows = [
        {**_cost(line)}
        | {f"recipe.{name}" if name in COLUMNS else name: value for name, value in recipe.items()}
        | {f"model.{name}" if name in taken else name: value for name, value in line.model.items()}
        | {f"{METRICS}{name}": value for name, value in line.metrics.items()}
        for line, recipe in zip(lines, recipes, strict=True)
    ]
    further = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    knobs = [name for name in further if not name.startswith(METRICS)]
    return [*COLUMNS, *knobs, *(name for name in further if name.startswith(METRICS))], rows


def _cost(line: TrialLine) -> dict[str, Any]:
    cost = line.cost
    return {
        "number": line.number,
        "outcome": line.state,
        "value": line.value,
        "best_epoch": line.best_epoch,
        "epochs": cost.epochs,
        "seconds": cost.seconds,
        "device_seconds": cost.device_seconds,
        "samples": cost.samples,
        "peak_memory": cost.peak_memory,
        "device": cost.device or None,
        "started_at": _moment(line.started_at),
        "settled_at": _moment(line.settled_at),
    }


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _spread(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A number a column: betas become beta1 and beta2."""
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        several = enumerate(value, start=1) if isinstance(value, list) else ()
        flat |= {f"{name.removesuffix('s')}{n}": one for n, one in several} or {name: value}
    return flat


def as_csv(lines: Sequence[TrialLine]) -> str:
    """With a heading. What a trial has not is empty; times are ISO 8601 in UTC."""
    columns, rows = rows_of(lines)
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writerow({name: _cell(name) for name in columns})
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue().rstrip("\n")


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def as_records(lines: Sequence[TrialLine]) -> list[dict[str, Any]]:
    """For JSON: every row has every column."""
    columns, rows = rows_of(lines)
    plain = [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in rows
    ]
    return [{name: row.get(name) for name in columns} for row in plain]


def as_table(lines: Sequence[TrialLine], metric: str) -> Table:
    """For a terminal: what it cost, and the recipe in a few words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("trial", "outcome", metric, "epochs", "time", "memory"):
        justify: Literal["left", "right"] = "left" if heading == "outcome" else "right"
        table.add_column(heading, justify=justify, header_style="dim", no_wrap=True)
    table.add_column("recipe", header_style="dim", overflow="fold")
    for line in lines:
        cost = line.cost
        table.add_row(
            str(line.number),
            line.state.replace("_", " "),
            printing.number(line.value),
            str(cost.epochs),
            printing.duration(cost.seconds),
            size(cost.peak_memory),
            in_words(line),
        )
    return table


def in_words(line: TrialLine) -> str:
    """The recipe in a line, with the model's own knobs behind it."""
    of_recipe, of_model = (
        " ".join(f"{name} {printing.short(value)}" for name, value in knobs.items())
        for knobs in ({} if line.summary else _spread(line.recipe), line.model)
    )
    return " | ".join(part for part in (line.summary or of_recipe, of_model) if part)


def frame(lines: Sequence[TrialLine]) -> pandas.DataFrame:
    """As a data frame, with a type for each of COLUMNS also where there is no trial yet."""
    import pandas

    columns, rows = rows_of(lines)
    table = pandas.DataFrame(rows, columns=columns)
    for name in ("started_at", "settled_at"):
        table[name] = pandas.to_datetime(table[name], utc=True)
    return table.astype(_KINDS)
