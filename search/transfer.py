"""What finished studies say about recipes for a new one: which few of their best to start with, in what order.

A recipe was trained in one study, seldom in the others. What it would have come to there is guessed from that study's
trials by the recipes nearest to it, so that recipes are chosen that were good, or would have been, in many studies.
Called by `search.first_trials`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from search.optimizers import OPTIMIZERS
from search.portfolio import Floats, complementary, normalised

Settings = Mapping[str, Any]

if TYPE_CHECKING:
    from storage.history import PastStudy, PastTrial

# Of each study so many of its best recipes may be chosen.
CANDIDATES = 4
# How much the studies of the same objective count together, as a multiple of all others together.
SAME_OBJECTIVE = 2.0
# How much one of the others counts that searched the same metric, which is to say the same kind of task.
SAME_METRIC = 2.0
# What a guess from no recipe nearby is: a little worse than typical, with so much weight beside a recipe's own.
UNKNOWN, UNKNOWN_WEIGHT = 1.2, 0.5
# What a recipe came to itself counts so many times more than what its like came to: the best of many was lucky too.
OWN_WEIGHT = 4.0
# Recipes that are less far apart, in the units of `distances`, are nearly the same: half a decade of the rate.
ALIKE = 1.0
# How far apart recipes are because of a name, in the units of `distances`; "kind" is an optimizer's momentum, if any.
NAMES_APART = {"schedule": 0.5, "optimizer": 1.0, "kind": 2.0}


@dataclass(frozen=True)
class Proposal:
    """A recipe in torch's units, as `Recipe.as_dict` has it, to be fitted into an objective's space.

    `model` are values of the model's own knobs, of the same objective only. `origin` is for people.
    """

    settings: Mapping[str, Any]
    origin: str
    model: Mapping[str, Any] = field(default_factory=dict)


def won(past: Sequence[PastStudy], reference: str, metric: str, most: int) -> list[Proposal]:
    """Up to `most` of the past studies' best recipes, each the one that helps most beside those before it.

    `reference` and `metric` of the new search say which studies are like it. Of recipes that are nearly the same one
    is enough.
    """
    known = [(study, [trial for trial in study.trials if is_recipe(trial.settings)]) for study in past]
    known = [(study, trials) for study, trials in known if trials]
    best = [
        (study, trial)
        for study, trials in known
        for trial in trials
        if trial.rank is not None and trial.rank < CANDIDATES
    ]
    if not best:
        return []
    recipes = [trial.settings for _, trial in best]
    values = [expected(recipes, [one.settings for one in trials], of_study(study, trials)) for study, trials in known]
    weights = likeness([study for study, _ in known], reference, metric)
    apart, chosen = distances(recipes, recipes), list[int]()
    for one in complementary(np.column_stack(values), len(best), weights):
        if len(chosen) < most and all(apart[one, other] >= ALIKE for other in chosen):
            chosen.append(one)
    return [_proposal(*best[one], reference) for one in chosen]


def _proposal(study: PastStudy, trial: PastTrial, reference: str) -> Proposal:
    own = trial.model if same_objective(study.objective, reference) else {}
    origin = f"won study {study.name}" if trial.rank == 0 else f"rank {1 + (trial.rank or 0)} in study {study.name}"
    return Proposal(trial.settings, origin, own)


def likeness(past: Sequence[PastStudy], reference: str, metric: str) -> list[float]:
    """How much each past study counts for a new one."""
    same = [same_objective(study.objective, reference) for study in past]
    others = [
        0.0 if own else SAME_METRIC if study.metric == metric else 1.0 for own, study in zip(same, past, strict=True)
    ]
    each = SAME_OBJECTIVE * max(1.0, sum(others)) / max(1, sum(same))
    return [each if own else other for own, other in zip(same, others, strict=True)]


def same_objective(one: str, other: str) -> bool:
    """Files are compared by name, since machines keep them in different places."""
    return PurePath(one).name == PurePath(other).name


def of_study(study: PastStudy, trials: Sequence[PastTrial]) -> Floats:
    """Its trials' values, `normalised`, whichever way is better."""
    sign = -1.0 if study.direction == "maximize" else 1.0
    return normalised([sign * trial.value for trial in trials])


def expected(wanted: Sequence[Settings], trained: Sequence[Settings], values: Floats) -> Floats:
    """What each of `wanted` would have come to where `trained` came to `values`: a mean, of the nearest above all.

    Kernel regression (Nadaraya 1964, Watson 1964), with a weight for what is not known.
    """
    apart = distances(wanted, trained)
    near = np.exp(-0.5 * apart) + OWN_WEIGHT * (apart == 0)
    return (near @ values + UNKNOWN_WEIGHT * UNKNOWN) / (near.sum(axis=1) + UNKNOWN_WEIGHT)


def distances(some: Sequence[Settings], others: Sequence[Settings]) -> Floats:
    """Squares of how far recipes lie apart, shape (some, others): 1 is half a decade of the learning rate."""
    places = np.array([_place(one) for one in some]), np.array([_place(one) for one in others])
    apart: Floats = np.square(places[0][:, None] - places[1][None]).sum(axis=2)
    for name, cost in NAMES_APART.items():
        apart += cost * np.array([[_name(name, one) != _name(name, other) for other in others] for one in some])
    return apart


def _place(settings: Settings) -> list[float]:
    row = OPTIMIZERS.get(settings["optimizer"])
    unit, decay = (row.base_lr, settings["weight_decay"]) if row else (0.001, settings["weight_decay"])
    decay /= 100.0 if row and row.decoupled else 1.0
    remembered = settings.get("momentum", settings.get("betas", [0.0])[0])
    return [
        math.log10(settings["lr"] / unit) / 0.5,
        math.log2(settings["batch_size"]) / 2,
        math.log10(max(decay, 1e-7)) / 2,
        math.log10(1 - remembered) / 0.7,
        settings["warmup"] / 0.1,
    ]


def _name(name: str, settings: Settings) -> str:
    if name != "kind":
        return str(settings[name])
    row = OPTIMIZERS.get(settings["optimizer"])
    return str(row.momentum) if row else settings["optimizer"]


def is_recipe(settings: Settings) -> bool:
    """Whether what a database holds is a recipe as `Recipe.as_dict` writes it: nothing else is looked at."""
    names = all(isinstance(settings.get(name), str) for name in ("optimizer", "schedule"))
    numbers = all(_is_number(settings.get(name)) for name in ("lr", "weight_decay", "batch_size", "warmup"))
    if not names or not numbers or settings["lr"] <= 0 or settings["batch_size"] < 1 or settings["weight_decay"] < 0:
        return False
    betas = settings.get("betas", [0.9, 0.999])
    remembered = [settings.get("momentum", 0.9), *(betas if isinstance(betas, list) and len(betas) == 2 else [2])]
    return all(_is_number(one) and 0 <= one < 1 for one in remembered)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
