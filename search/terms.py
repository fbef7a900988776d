"""The terms of a study, as a person says them: of one to be made, or of one that is to go on with others.

The commands, the notebook and the server make them from what they are given; `search.searches` works by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search import options
from search.samplers import AUTO, check_names
from storage import steering, studies
from storage.errors import UsageError
from storage.limits import MOST, Limits
from storage.shared import SharedStorage
from storage.steering import Wish
from storage.studies import StudyRecord


@dataclass(frozen=True)
class NewStudy:
    """What a person says of a study to be made; None is the objective's own, or a free name, or a random seed.

    `deadline` as `options.deadline_of` reads it, when the study is made. `sampler` and `pruner`: see `strategy`.
    `transfer`: start with recipes that served other studies, and those that ship with the package.

    UsageError: a number is no integer that a database's column holds, or the deadline cannot be read.
    """

    name: str | None = None
    trials: int | None = None
    epochs: int | None = None
    direction: str | None = None
    sampler: str | None = None
    pruner: str | None = None
    space: Mapping[str, Any] = field(default_factory=dict)
    until: float | None = None
    budget_seconds: float | None = None
    total_epochs: int | None = None
    deadline: str | None = None
    seed: int | None = None
    min_gain: float | None = None
    transfer: bool = True
    priority: int = 1
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("epochs", 1), ("total_epochs", 1), ("seed", 0)):
            refuse_beyond(name, getattr(self, name), least)
        steering.check_place(self.priority, self.concurrency)
        _check_name(self.name)
        options.check_until(self.until)
        _read(self.deadline)
        _check_gain(self.min_gain)
        self.strategy(bare=False)

    def strategy(self, *, bare: bool) -> tuple[str, str]:
        """Sampler and pruner: Dialin's own, which needs no pruner, where neither is named.

        A `bare` function is Optuna's as it is: of its values nobody knows which epoch they are from, if any.

        Raises:
            UsageError: there is none of that name, or they do not go together.
        """
        sampler = self.sampler or ("tpe" if bare or self.pruner else AUTO)
        pruner = self.pruner or ("none" if sampler == AUTO else "hyperband")
        check_names(sampler, pruner)
        if sampler == AUTO and pruner != "none":
            raise UsageError(f"--sampler {AUTO} asks no pruner: leave --pruner out, or name another sampler")
        return sampler, pruner


@dataclass(frozen=True)
class MoreOfStudy:
    """What a person says of a study to go on with; None: as it is. UsageError: it cannot be read.

    Attributes:
        trials: "100", or "+20" for so many more.
        until: a new value at which the study stops.
        budget: "8h" of device time in all, or "+1h" on top of what there was.
        total_epochs: "500" epochs of all trials together, or "+100" on top of what there was.
        deadline: as `options.deadline_of` reads it, when the study goes on.
        was: values that knobs added to the objective had in older trials.
        min_gain: the least that more trials must be likely to gain; 0: go on whatever they gain.
        priority, concurrency: the place in the queue; a concurrency of 0 for any number of trials at once.
    """

    trials: str | None = None
    until: float | None = None
    budget: str | None = None
    total_epochs: str | None = None
    deadline: str | None = None
    was: Mapping[str, Any] = field(default_factory=dict)
    min_gain: float | None = None
    priority: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        options.check_until(self.until)
        _check_gain(self.min_gain)
        _total_and_more("trials", self.trials)
        _total_and_more("total-epochs", self.total_epochs)
        self._seconds()
        _read(self.deadline)

    def wish(self, storage: SharedStorage, study: StudyRecord) -> Wish:
        """What is to be another of this study. Raises UsageError: the deadline is past, by the database's clock."""
        trials, more = _total_and_more("trials", self.trials)
        limits = Limits(
            self.until,
            self._budget_seconds(study),
            self._budget_epochs(study),
            deadline_on(storage, self.deadline),
        )
        return Wish(trials, more, limits, self.priority, self.concurrency)

    def _budget_epochs(self, study: StudyRecord) -> int | None:
        """Epochs that the study may have on record from its beginning; None: as it is."""
        total, more = _total_and_more("total-epochs", self.total_epochs)
        if more:
            total = more + (study.budget_epochs or study.spent_epochs)
            refuse_beyond("total-epochs", total, 1)
        return total

    def _budget_seconds(self, study: StudyRecord) -> float | None:
        """Device time that the study may spend from its beginning; None: as it is."""
        seconds = self._seconds()
        if seconds is None or self.budget is None or not self.budget.startswith("+"):
            return seconds
        return seconds + (study.spent_seconds if study.budget_seconds is None else study.budget_seconds)

    def _seconds(self) -> float | None:
        return options.seconds_of(self.budget and self.budget.removeprefix("+"))


def deadline_on(storage: SharedStorage, said: str | None) -> float | None:
    """A deadline as a person says it, by the database's clock; None: nothing was said."""
    return None if said is None else options.deadline_of(said, studies.clock(storage))


def _check_name(name: str | None) -> None:
    """People read and type it, and it is a part of a path."""
    if name is not None and (name in ("", ".", "..") or not name.isprintable()):
        raise UsageError(f"--study is the new study's name, printable and neither . nor .., but got {name!r}")


def _check_gain(gain: float | None) -> None:
    if gain is not None and not 0 <= gain < math.inf:
        raise UsageError(f"--min-gain must be a number of at least 0, but got {gain}")


def refuse_beyond(name: str, value: Any, least: int) -> None:
    """Raises UsageError: not an integer from `least` to what a column holds; None is nobody's wish."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} must be an integer of at least {least}, but got {value!r}")
    if value > MOST:
        raise UsageError(f"{name} must be at most {MOST}, but got {value}")


def _total_and_more(name: str, said: str | None) -> tuple[int | None, int]:
    if said is None:
        return None, 0
    if not said.removeprefix("+").isdecimal() or int(said) < 1:
        raise UsageError(f"--{name} must be a number such as 100, or +50 for 50 more, but got {said!r}")
    refuse_beyond(name, int(said), 1)
    return (None, int(said)) if said.startswith("+") else (int(said), 0)


def _read(deadline: str | None) -> None:
    """A deadline that cannot be read is said before anything slow; whether it is past, by the database's clock."""
    if deadline is not None:
        options.deadline_of(deadline, 0.0)
