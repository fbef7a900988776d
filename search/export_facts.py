"""What is known of a trial that is taken out of its study, as plain values: recipe, metrics with their spread, cost.

Pure functions of what `search.export` has read; `search.model_card` says the same in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from search.confirmation import Confirmation
from search.ranking import confirmed_as_record
from storage.provenance import Origin, Provenance, trial_seed
from storage.queries import StudyStatus, TrialDetail
from storage.replicates import Replicate
from storage.studies import NOTEBOOK, StudyRecord

NOTHING = Provenance()


@dataclass(frozen=True)
class Facts:
    """One complete trial of `study`, what it was trained with, and other runs of the same recipe.

    `status`: of the search that found the recipe. `answer`: of the confirmation that prefers it, and whose best seed
    the trial is. `weights`: names of the files with weights; empty where there are none. `looked`: whether a
    confirmation of the search has opened the test split, for whichever recipe.
    """

    study: StudyRecord
    trial: TrialDetail
    origin: Origin
    status: StudyStatus
    others: Sequence[Replicate] = ()
    answer: Confirmation | None = None
    weights: tuple[str, ...] = ()
    looked: bool = False

    @property
    def provenance(self) -> Provenance:
        """What its last owner trained with; one that says nothing where that is not on record."""
        return self.origin.last or NOTHING

    @property
    def seed(self) -> int:
        """Of weights, order and augmentation."""
        return self.origin.seed if self.origin.seed is not None else trial_seed(self.study.seed, self.trial.number)

    @property
    def objective(self) -> str:
        """Where it is from. A person's path is nobody else's: the file's name will do."""
        stored = self.study.objective
        return stored if stored.startswith(NOTEBOOK) else Path(stored).name

    @property
    def source_sha256(self) -> str:
        """Of the objective that it was trained with."""
        return self.provenance.objective or self.study.objective_sha256

    @property
    def written_by(self) -> str:
        """This version of Dialin; empty where it is imported from a folder that nobody has installed."""
        with suppress(metadata.PackageNotFoundError):
            return metadata.version("dialin")
        return ""

    @property
    def title(self) -> str:
        """`digits-1, trial 12`."""
        return f"{self.study.name}, trial {self.trial.number}"

    @property
    def has_recipe(self) -> bool:
        """Whether its optimizer and schedule are Dialin's: a bare function's are its own."""
        settings = self.trial.attrs.get("settings")
        if "model" not in self.trial.attrs or not isinstance(settings, dict):
            return False
        return all(isinstance(settings.get(name), str) for name in ("optimizer", "schedule"))


def recipe_record(facts: Facts) -> dict[str, Any]:
    """The recipe in real units, with all else that its training took."""
    study, trial, provenance = facts.study, facts.trial, facts.provenance
    return {
        "study": study.name,
        "trial": trial.number,
        "objective": facts.objective,
        "objective_sha256": facts.source_sha256,
        "metric": study.metric,
        "direction": study.direction,
        "epochs": study.epochs,
        "folds": study.folds,
        "seed": facts.seed,
        "recipe": dict(trial.attrs.get("settings", {})),
        "model": dict(trial.attrs.get("model", {})),
        "options": dict(provenance.training.get("options", {})),
    }


def metrics_record(facts: Facts) -> dict[str, Any]:
    """The trial's own numbers, the other runs' with their spread, and the curve."""
    study, trial = facts.study, facts.trial
    return {
        "metric": study.metric,
        "direction": study.direction,
        "value": trial.value,
        "best_epoch": trial.best_epoch,
        "best_of": facts.status.settled,
        "at_best": at_best(trial),
        "folds": fold_values(study, trial),
        "other_runs": spread(facts),
        "confirmed": confirmed_record(facts.answer),
        "curve": [{"epoch": line.epoch, **_metrics(line, study.metric)} for line in trial.epochs],
    }


def _metrics(line: Any, metric: str) -> dict[str, float]:
    return dict(line.metrics) or ({} if line.value is None else {metric: line.value})


def at_best(trial: TrialDetail) -> dict[str, float]:
    """Every metric of the epoch whose weights are kept."""
    return next((dict(line.metrics) for line in trial.epochs if line.epoch == trial.best_epoch), {})


def fold_values(study: StudyRecord, trial: TrialDetail) -> list[float]:
    """Each fold's value: what is on record at its end is the mean of those so far."""
    if study.folds == 1:
        return []
    means = [line.value for line in trial.epochs if line.value is not None]
    return [mean * fold - before * (fold - 1) for fold, (before, mean) in enumerate(pairwise([0.0, *means]), start=1)]


def spread(facts: Facts) -> dict[str, Any] | None:
    """Runs of the same recipe with other seeds: number, mean and standard deviation of each metric; None without any.

    The trial itself is left out: it was chosen for its value, which is therefore partly luck.
    """
    if not facts.others:
        return None
    values: dict[str, list[float]] = {facts.study.metric: [one.value for one in facts.others]}
    for name in facts.others[0].metrics:
        if name not in (facts.study.metric, "lr"):
            values[name] = [one.metrics[name] for one in facts.others if name in one.metrics]
    return {
        "runs": len(facts.others),
        "trials": [f"{one.study} {one.number}" for one in facts.others],
        "values": values[facts.study.metric],
        "mean": {name: fmean(found) for name, found in values.items() if found},
        "standard_deviation": {name: stdev(found) for name, found in values.items() if len(found) > 1},
    }


def confirmed_record(answer: Confirmation | None) -> dict[str, Any] | None:
    """What fresh seeds made of the recipe, and the test split of their models; None where nobody has confirmed it."""
    if answer is None or answer.winner is None:
        return None
    told = {"study": answer.study, "trial": answer.winner.trial, **confirmed_as_record(answer.winner)}
    models = answer.test.models if answer.test is not None else None
    return told | {"test": None if models is None else [*models.values()]}


def cost_record(facts: Facts) -> Mapping[str, Any]:
    """What the trial and the whole search took."""
    status, trial = facts.status, facts.trial
    samples = sum(line.samples for line in trial.epochs)
    return {
        "epochs": len(trial.epochs),
        "seconds": trial.seconds,
        "samples": samples,
        "search_trials": status.settled,
        "search_epochs": status.epochs_trained,
        "search_device_seconds": max(status.study.spent_seconds, status.seconds),
    }


def finite(value: float | None) -> bool:
    """Whether there is a number to print."""
    return value is not None and math.isfinite(value)
