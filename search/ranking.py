"""The best recipes of a study, confirmed ones first: what `dialin best` prints, as table, JSON, YAML, CSV or Python."""

from __future__ import annotations

import csv
import io
import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from rich.table import Table

from search import printing
from search.confirmation import Confirmation, Confirmed
from storage import queries
from storage.queries import RankedTrial
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.words import counted, in_one_line

# Parts of a record that are spread over columns of their own where there are only columns.
GROUPS = ("confirmed", "recipe", "model")


@dataclass(frozen=True)
class Best:
    """A trial that trained to its end. `value` is that of its best epoch (or its last, where the objective says so).

    `recipe` holds the real training knobs (lr, batch_size, ...), `model` the model's own. `confirmed`: what fresh seeds
    made of it; None: its value is the best of as many noisy draws as there are trials.
    """

    trial: int
    value: float
    best_epoch: int | None
    epochs: int
    seconds: float
    recipe: Mapping[str, Any]
    model: Mapping[str, Any]
    confirmed: Confirmed | None = None


@dataclass(frozen=True)
class Ranked:
    """A recipe by its trial; `confirmed`: what fresh seeds made of it, None where nobody has trained it again."""

    trial: RankedTrial
    confirmed: Confirmed | None = None

    @property
    def plain(self) -> Best:
        """As Python hands it out."""
        one = self.trial
        recipe, model = dict(one.attrs.get("settings", {})), dict(one.attrs.get("model", {}))
        return Best(one.number, one.value, one.best_epoch, one.epochs, one.seconds, recipe, model, self.confirmed)


def ranking(storage: SharedStorage, study: StudyRecord, top: int, answer: Confirmation | None) -> list[Ranked]:
    """The `top` recipes of a study: confirmed ones in the order of their means, then others by what the search saw."""
    known = answer.confirmed if answer is not None else ()
    numbers = {one.trial for one in known}
    others = [trial for trial in queries.best(storage, study, top + len(known)) if trial.number not in numbers]
    return [*(Ranked(one.found, one) for one in known), *map(Ranked, others)][:top]


def as_record(one: Ranked, study: StudyRecord, settled: int) -> dict[str, Any]:
    """A recipe as plain values, with what its number is worth."""
    record = printing.as_record(one.trial, study)
    recipe, model = record.pop("recipe"), record.pop("model")
    told = confirmed_as_record(one.confirmed) if one.confirmed is not None else None
    return record | {"confirmed": told, "recipe": recipe, "model": model, "note": note(one, settled)}


def confirmed_as_record(one: Confirmed) -> dict[str, Any]:
    """What fresh seeds made of a recipe, as plain values."""
    return {
        "mean": one.mean.estimate,
        "low": one.mean.low,
        "high": one.mean.high,
        "seeds": len(one.values),
        "failed": one.failed,
        "violating": one.violating,
        "seconds": round(one.seconds, 3),
        "values": [*one.values.values()],
    }


def note(one: Ranked, settled: int) -> str:
    """What the number is worth."""
    if one.confirmed is None:
        return printing.unconfirmed(settled)
    return f"confirmed: mean of {counted(len(one.confirmed.values), 'fresh seed')}"


def spread(one: Confirmed) -> str:
    """`0.9889 (0.9851 to 0.9927)`."""
    mean = one.mean
    return f"{printing.number(mean.estimate)} ({printing.number(mean.low)} to {printing.number(mean.high)})"


def worth(one: Best) -> str:
    """Its mean with the interval where it is confirmed, else the value that the search saw."""
    return spread(one.confirmed) if one.confirmed is not None else printing.number(one.value)


def shown(ranked: Sequence[Ranked], study: StudyRecord, settled: int, form: str) -> str | Table:
    """In the form that was asked for."""
    records = [as_record(one, study, settled) for one in ranked]
    if form == "json":
        return printing.as_json(records)
    if form == "yaml":
        return yaml.safe_dump(records, sort_keys=False).rstrip()
    if form == "csv":
        return _csv(records)
    if form == "python":
        return _python(ranked, study, settled)
    return _table(ranked, study, settled)


def _table(ranked: Sequence[Ranked], study: StudyRecord, settled: int) -> Table:
    any_confirmed = any(one.confirmed is not None for one in ranked)
    title = f"{study.name}: {study.metric}"
    title += "" if any_confirmed else f" ({printing.unconfirmed(settled)})"
    table = Table(title=title, title_justify="left", box=None)
    seen = "in the search" if any_confirmed else study.metric
    headings = ["rank", "trial", *(["confirmed"] if any_confirmed else []), seen, "best epoch", "seconds", "recipe"]
    for heading in headings:
        left = heading in ("recipe", "confirmed")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for rank, one in enumerate(ranked, start=1):
        trial = one.trial
        worth = [spread(one.confirmed) if one.confirmed is not None else printing.unconfirmed(settled)]
        cells = (rank, trial.number, *(worth if any_confirmed else ()), printing.number(trial.value))
        cells += (trial.best_epoch or "-", f"{trial.seconds:.1f}", printing.full_recipe(trial))
        table.add_row(*map(str, cells))
    return table


def _csv(records: Sequence[dict[str, Any]]) -> str:
    """One column a value; the recipe's and the model's prefixed, so that no two collide."""
    flat = []
    for record in records:
        row = {key: value for key, value in record.items() if key not in GROUPS}
        for group in GROUPS:
            row |= {f"{group}.{key}": value for key, value in (record[group] or {}).items()}
        flat.append(row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue().rstrip()


def _python(ranked: Sequence[Ranked], study: StudyRecord, settled: int) -> str:
    blocks = []
    for one in ranked:
        record = printing.as_record(one.trial, study)
        said = f"{study.name}, trial {one.trial.number}: {study.metric} {worth(one.plain)}, {note(one, settled)}"
        names = "recipe = " + pprint.pformat(record["recipe"], sort_dicts=False)
        blocks.append(f"# {in_one_line(said)}\n{names}\nmodel = " + pprint.pformat(record["model"], sort_dicts=False))
    return "\n\n".join(blocks)
