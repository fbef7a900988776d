"""One trial on a page: recipe, outcome, curve, cost, the end of its log; what `dialin show` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from search import printing
from search.chart import chart
from search.cost_table import size
from storage.attributes import PEAK_MEMORY, bytes_of
from storage.outcomes import Outcome
from storage.provenance import Origin
from storage.queries import TrialDetail
from storage.studies import StudyRecord
from storage.words import counted

# Rows of the curves of metric and training loss: with all the rest they fit on 24 rows.
HEIGHTS = (7, 4)
LOSSES = ("train_loss", "loss")


def trial_as_json(study: StudyRecord, trial: TrialDetail, origin: Origin, log: Path) -> dict[str, Any]:
    """Everything about it, as plain values."""
    return {
        "study": study.name,
        "trial": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "metric": study.metric,
        "value": trial.value,
        "best_epoch": trial.best_epoch,
        "recipe": dict(trial.attrs.get("settings", {})),
        "model": dict(trial.attrs.get("model", {})),
        "params": dict(trial.params),
        "enqueued": dict(trial.enqueued),
        "constraints": dict(trial.constraints),
        "origin": trial.attrs.get("origin", ""),
        "seed": origin.seed,
        "provenance": [{"from_owner": first, **asdict(one)} for first, one in origin.owners.items()],
        "epochs": [asdict(epoch) for epoch in trial.epochs],
        "seconds": round(trial.seconds, 3),
        "peak_memory": bytes_of(trial.attrs.get(PEAK_MEMORY)),
        "owners": [asdict(owner) for owner in trial.owners],
        "started_at": trial.started_at,
        "settled_at": trial.settled_at,
        "traceback": trial.attrs.get("traceback", ""),
        "weights": trial.weights.path if trial.weights is not None else None,
        "log": str(log) if log.is_file() else None,
    }


def print_trial(
    console: Console, study: StudyRecord, trial: TrialDetail, origin: Origin, log: Path, lines: Sequence[str]
) -> None:
    """The page. `lines` are the last ones of its log."""
    printing.say(console, f"{study.name} trial {trial.number}: {_outcome(study, trial)}")
    for text in (
        *_recipe(trial),
        *_constraints(trial),
        *_curves(console, study, trial),
        *_folds(study, trial),
        *_cost(trial),
        *_provenance(origin),
    ):
        printing.say(console, text)
    if lines:
        printing.say(console, f"log, its end (all of it: dialin logs {study.name} {trial.number}):")
        for line in lines:
            printing.say(console, f"  {line}")
    elif trial.started_at is not None:
        printing.say(console, f"no log: there is no {log}")


def _outcome(study: StudyRecord, trial: TrialDetail) -> str:
    if trial.state == "waiting":
        return "waiting for a worker, which starts it with the values below"
    words = {
        "adoptable": "its worker is gone; it goes on with the next one that is free",
        "paused": "it keeps what it has learned, and goes on when that is worth more than another trial",
    }
    said = words.get(trial.state, trial.state.replace("_", " "))
    if trial.outcome is None:
        of = f" of {study.length}" if study.length else ""
        last = trial.epochs[-1].epoch if trial.epochs else 0
        return f"{said}, epoch {last}{of}"
    if trial.value is not None:
        said += f", {study.metric} {_value(trial.value, trial)}"
    return f"{said}: {trial.reason}" if trial.reason else said


def _value(value: float, trial: TrialDetail) -> str:
    """With the epoch that it is of: the best one; a pruned trial's is its last one's, and its best is said too."""
    by_epoch = {line.epoch: line.value for line in trial.epochs if line.value is not None}
    best, last = trial.best_epoch, max(by_epoch, default=None)
    if trial.outcome is not Outcome.PRUNED or best in (None, last):
        return printing.number(value) + (f" in epoch {best}" if best else "")
    said = f"{printing.number(value)} in epoch {last}"
    return said + (f", at best {printing.number(by_epoch[best])} in epoch {best}" if best in by_epoch else "")


def _recipe(trial: TrialDetail) -> list[str]:
    origin = trial.attrs.get("origin")
    return [*_knobs(trial), *([f"from: {origin}"] if origin else [])]


def _knobs(trial: TrialDetail) -> list[str]:
    own = trial.attrs.get("model", {})
    if trial.attrs.get("recipe"):
        return [str(trial.attrs["recipe"]), *([f"model: {_in_words(own)}"] if own else [])]
    values = trial.params or trial.enqueued
    return [_in_words(values)] if values else []


def _constraints(trial: TrialDetail) -> list[str]:
    return [f"constraints: {printing.constraints(trial.constraints)}"] if trial.constraints else []


def _in_words(values: Any) -> str:
    return " ".join(f"{name} {printing.short(value)}" for name, value in values.items())


def _curves(console: Console, study: StudyRecord, trial: TrialDetail) -> list[str]:
    """The searched metric, and below it the loss."""
    if not trial.epochs:
        return []
    numbers = [epoch.epoch for epoch in trial.epochs]
    mark = numbers.index(trial.best_epoch) + 1 if trial.best_epoch in numbers else 0
    loss = next((name for name in LOSSES if name != study.metric and name in trial.epochs[0].metrics), None)
    lines: list[str] = []
    for name, height in zip((study.metric, loss), HEIGHTS, strict=True):
        if name is None:
            continue
        values = [epoch.metrics.get(name, epoch.value if name == study.metric else None) for epoch in trial.epochs]
        lines += chart(
            name,
            values,
            width=console.width,
            height=height,
            ascii_only=console.options.ascii_only,
            mark=mark,
            ends=(numbers[0], numbers[-1]),
        )
    return lines


def _folds(study: StudyRecord, trial: TrialDetail) -> list[str]:
    """The value of each fold that is over: what is on record at its end is the mean of those so far."""
    if study.folds == 1:
        return []
    means = [epoch.value for epoch in trial.epochs if epoch.value is not None]
    values = [mean * fold - before * (fold - 1) for fold, (before, mean) in enumerate(pairwise([0.0, *means]), start=1)]
    if not values:
        return []
    of = "" if len(values) == study.folds else f" of {study.folds}"
    return [f"folds: {', '.join(map(printing.number, values))}{of}; mean {printing.number(means[-1])}"]


def _cost(trial: TrialDetail) -> list[str]:
    if not trial.epochs:
        return []
    count = len(trial.epochs)
    parts = [f"{counted(count, 'epoch')} in {printing.duration(trial.seconds)}"]
    parts[0] += f" ({trial.seconds / count:.3g} s each)"
    samples = trial.epochs[-1].samples
    if samples:
        parts.append(f"{samples:,} samples an epoch")
    parts.append(" and ".join(dict.fromkeys(epoch.device for epoch in trial.epochs if epoch.device)) or "?")
    if (peak := bytes_of(trial.attrs.get(PEAK_MEMORY))) is not None:
        parts.append(f"{size(peak)} of memory at most")
    owners = [
        f"{owner.host} pid {owner.pid} on {owner.slot} ({counted(owner.epochs, 'epoch')}"
        + (", now)" if owner.holds else ")")
        for owner in trial.owners
    ]
    lines = [f"cost: {', '.join(parts)}"]
    lines += [f"trained by {', then '.join(owners)}"] if owners else []
    return lines + ([f"weights kept in {trial.weights.path}"] if trial.weights is not None else [])


def _provenance(origin: Origin) -> list[str]:
    """The seed, and what its last owner trained with; all of it is in the JSON."""
    if origin.seed is None:
        return []
    last = origin.last
    said = [f"seed {origin.seed}"]
    if last is not None:
        said += [f"torch {last.versions.get('torch', '?')}", f"{counted(last.threads, 'thread')} of {last.device}"]
        changed = ", with changes" if last.changed else ""
        said += [f"commit {last.commit[:12]}{changed}"] if last.commit else []
    others = f"; {counted(len(origin.owners), 'kind')} of owners, see --json" if len(origin.owners) > 1 else ""
    return [", ".join(said) + others]
