"""The space that a search of an objective explores, as a table or as records; `dialin objectives NAME` prints it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from search import optimizers
from search.knobs import Knob
from search.loading import LoadedObjective
from search.objective import Objective
from search.space import describe
from storage.words import counted

# From this many columns on there is room to say what each knob is.
WIDE = 110


def space_as_records(objective: Objective) -> list[dict[str, Any]]:
    """One record a knob, as `Knob.as_dict` has it."""
    return [knob.as_dict() for knob in describe(objective)]


def print_space(console: Console, loaded: LoadedObjective) -> None:
    """What is searched, how far, and the table of knobs."""
    objective = loaded.objective
    searched = objective.searched
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("knob", "range", "default", "only for"):
        table.add_column(heading, no_wrap=heading == "knob")
    if wide:
        table.add_column("")
    knobs = describe(objective)
    for knob in knobs:
        cells = [knob.name, knob.range, _default(knob), knob.condition]
        table.add_row(*cells, *([knob.text] if wide else []))
    said = f"{loaded.reference}: {objective.description}" if objective.description else loaded.reference
    length = f"{counted(objective.epochs, 'epoch')}, " if objective.epochs else ""
    for line in (said, f"{searched.direction} {searched.name}, {length}{objective.trials} trials"):
        console.print(line, markup=False, highlight=False)
    if objective.trains_itself:
        console.print("its own knobs are known when it trains: `dialin check` shows those of one trial")
    if not knobs:
        return
    console.print(table)
    if any(knob.name == "lr_multiple" for knob in knobs):
        rows = optimizers.resolve_all(objective.optimizers).values()
        bases = ", ".join(f"{row.name} {row.base_lr:g}" for row in rows)
        console.print(f"lr = lr_multiple x the optimizer's base rate: {bases}", markup=False, highlight=False)


def _default(knob: Knob) -> str:
    if knob.default is None:
        return ""
    return f"{knob.default:.3g}" if isinstance(knob.default, float) else str(knob.default)
