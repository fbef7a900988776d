"""Optuna's samplers and pruners by name, as two tables, and the strategy that asks them.

The names are stored with a study, so `resume` and every worker make the same ones. Called by `search.judge`,
`search.strategies`, `search.searches` and `search.worker`; the commands list the names.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.strategy import GoOn, Left, Seen, SeenState, Start, Verdict
from storage.errors import UsageError

# Each rung trains three times as long and keeps a third of the trials (Li et al. 2018, Hyperband, section 3.6).
REDUCTION = 3


_Row = TypeVar("_Row")


@dataclass(frozen=True)
class SamplerRow:
    """`make(shared, own)` gives a worker's sampler: from the study's seed, for one sequence of all, and its own."""

    name: str
    text: str
    make: Callable[[int, int], BaseSampler]


@dataclass(frozen=True)
class PrunerRow:
    """`make(epochs)` gives the pruner of trials that train `epochs` epochs at most."""

    name: str
    text: str
    make: Callable[[int], BasePruner]


# A strategy of Dialin's own, `search.auto`; what it leaves open is drawn at random.
AUTO = "auto"

SAMPLERS = {
    row.name: row
    for row in (
        SamplerRow(
            "tpe",
            "tree-structured Parzen estimator: good from ten trials on",
            lambda _shared, own: TPESampler(seed=own),
        ),
        SamplerRow(
            "gp",
            "Gaussian process: for few, costly trials",
            lambda _shared, own: GPSampler(seed=own, warn_independent_sampling=False),
        ),
        SamplerRow(
            "cmaes",
            "CMA-ES: for hundreds of trials of numeric knobs",
            lambda _shared, own: CmaEsSampler(seed=own, warn_independent_sampling=False),
        ),
        SamplerRow(
            "qmc",
            "quasi-random: spreads trials evenly",
            lambda shared, own: QMCSampler(
                seed=shared, scramble=True, independent_sampler=RandomSampler(seed=own), warn_independent_sampling=False
            ),
        ),
        SamplerRow("random", "independent random draws", lambda _shared, own: RandomSampler(seed=own)),
        SamplerRow(
            AUTO,
            "Dialin's own: pauses trials and goes on with what promises most, and asks no pruner",
            lambda _shared, own: RandomSampler(seed=own),
        ),
    )
}

PRUNERS = {
    row.name: row
    for row in (
        PrunerRow(
            "hyperband",
            "successive halving from several first rungs at once",
            lambda epochs: HyperbandPruner(min_resource=1, max_resource=epochs or "auto", reduction_factor=REDUCTION),
        ),
        PrunerRow(
            "asha",
            "asynchronous successive halving: the best third goes on to each rung",
            lambda _epochs: SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
        ),
        PrunerRow(
            "median",
            "stops what is below the median, after a tenth of the epochs",
            lambda epochs: MedianPruner(n_warmup_steps=max(1, epochs // 10)),
        ),
        PrunerRow("none", "every trial trains to its end", lambda _epochs: NopPruner()),
    )
}


def make_sampler(name: str, seed: int, worker: int) -> BaseSampler:
    """The sampler of one worker: `worker`, its ordinal in the study, keeps two from drawing alike.

    Raises:
        UsageError: no sampler of that name.
    """
    row = _row(SAMPLERS, "sampler", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # QMCSampler says so of itself, since 2022
        return row.make(seed, (seed * 1_000_003 + worker) % 2**32)


def make_pruner(name: str, epochs: int) -> BasePruner:
    """The pruner of a study whose trials train `epochs` epochs at most, 0 for as many as they report.

    Raises UsageError.
    """
    return _row(PRUNERS, "pruner", name).make(epochs)


def check_names(sampler: str, pruner: str) -> None:
    """Raises UsageError with the names there are."""
    _row(SAMPLERS, "sampler", sampler)
    _row(PRUNERS, "pruner", pruner)


def _row(table: dict[str, _Row], kind: str, name: str) -> _Row:
    if name not in table:
        raise UsageError(f"there is no {kind} {name!r}: choose one of {', '.join(table)}")
    return table[name]


class OptunaStrategy:
    """What the study's sampler draws and its pruner says: every trial trains on until it is done or stopped."""

    def __init__(self, study: optuna.Study, own: Callable[[int], FrozenTrial] | None = None) -> None:
        """`own`: a trial by its number as its pruner is to see it (what pruners noted on it too); else it is read."""
        self._study = study
        self._own = own or self._read
        self._origin = type(study.sampler).__name__.removesuffix("Sampler").lower()

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        """A trial that another strategy paused, else a new one."""
        paused = next((one for one in seen if one.state is SeenState.PAUSED), None)
        if paused is not None:
            return GoOn(paused.number)
        return Start(None, self._origin) if left.trials > 0 else None

    def verdict(self, number: int, seen: Sequence[Seen], left: Left, may_pause: bool = True) -> Verdict:
        """What the pruner says. Of `seen` only trial `number` is looked at: pruners read the study themselves."""
        values = next(one.values for one in seen if one.number == number)
        trial = copy.copy(self._own(number))
        sign = -1 if self._study.direction is StudyDirection.MAXIMIZE else 1
        trial.intermediate_values = {epoch: sign * value for epoch, value in values.items()}
        return Verdict.STOP if self._study.pruner.prune(self._study, trial) else Verdict.GO_ON

    def _read(self, number: int) -> FrozenTrial:
        return next(trial for trial in self._study.get_trials(deepcopy=False) if trial.number == number)


def quiet_optuna() -> None:
    """Optuna's own lines (a study created, a trial finished) would break into the view: warnings only."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
