"""A trial trained again from what is stored of it, its curve laid beside the one on record: `dialin replay`.

In the foreground, as `dialin train` trains; nothing is written to the database. `search.promises` says how alike the
two curves must be, `search.comparing` how alike they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution

from search import space
from search.by_value import ByValue
from search.comparing import Comparing, Likeness, Pair, distance
from search.data import Data, Folds
from search.errors import ObjectiveError
from search.foreground import Order, place, train_trial
from search.loading import LoadedObjective, reference_here, resolve
from search.micro_batch_size import MicroBatchSize
from search.objective import Task
from search.printing import short
from search.promises import Promise, promise
from search.provenance import provenance
from search.reporting import Interrupted, Result
from search.settings import of_study
from storage import matching, queries
from storage import provenance as provenances
from storage.errors import DialinError, UsageError
from storage.optuna_internals import renumber
from storage.outcomes import Outcome
from storage.provenance import Origin, Provenance, trial_seed
from storage.queries import TrialDetail
from storage.shared import SharedStorage
from storage.space_view import fits
from storage.studies import StudyRecord
from storage.words import counted

Say = Callable[[str], None]

# How far two curves may be apart where bits are not promised, in shares of the largest value of the recorded one.
TOLERANCE = 0.02
FAILED = (Outcome.ERROR, Outcome.OUT_OF_MEMORY, Outcome.LOST)
# Digits of a checksum that people are shown.
DIGITS = 12


@dataclass(frozen=True)
class Wanted:
    """A trial to train again, and with what.

    Attributes:
        loaded: the objective as it is here. data: the folder of data sets.
        changed: although the objective or its data have changed since. failed: although it ended in an error.
    """

    study: StudyRecord
    trial: TrialDetail
    origin: Origin
    loaded: LoadedObjective
    device: torch.device
    data: Path
    tolerance: float = TOLERANCE
    changed: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Replayed:
    """What came of it.

    Attributes:
        trial: its number.
        pairs: the epochs of both curves. missing: how many on record have not come again.
        apart: the mean distance of the searched metric's two curves; None where there is nothing to compare.
        values: the trial's on record and that of its replay; None of one that did not train to its end.
        allowed: how far curves and values may be apart, where bits are not promised.
        interrupted: by Ctrl-C. healed: the trial had failed, and this time nothing did.
    """

    trial: int
    pairs: tuple[Pair, ...]
    missing: int
    promise: Promise
    likeness: Likeness
    apart: float | None
    values: tuple[float | None, float | None]
    allowed: float
    interrupted: bool = False
    healed: bool = False

    @property
    def first_difference(self) -> int | None:
        """The first epoch that came otherwise."""
        return next((pair.epoch for pair in self.pairs if not pair.same), None)

    @property
    def kept(self) -> bool:
        """Whether what was promised came."""
        return self.likeness is not Likeness.DIFFERENT


def as_searched(loaded: LoadedObjective, study: StudyRecord) -> LoadedObjective:
    """The objective as the study searches it: its direction, its space, its length."""
    loaded = loaded.to(study.direction)
    objective = of_study(loaded.objective, study.space)
    return replace(loaded, objective=replace(objective, epochs=study.epochs) if study.epochs else objective)


def replay(wanted: Wanted, say: Say) -> Replayed:
    """Train the trial again, as far as it got, with a line an epoch. `wanted.loaded` is as the study searches it.

    Raises:
        UsageError: the trial has no curve, it failed, or its objective or data have changed, and nobody said so.
        ObjectiveError: the objective asks for knobs that the trial has not; RaisedError: it raises.
    """
    refuse_without_curve(wanted)
    return _Replay(wanted, say, _other_source(wanted, say)).train()


@dataclass
class _Replay:
    """One replay under way, by `other_source` than the trial's. `promise` is known when the data is."""

    wanted: Wanted
    say: Say
    other_source: bool
    promise: Promise = field(default_factory=lambda: Promise(0))

    def train(self) -> Replayed:
        wanted, trial, objective = self.wanted, self.wanted.trial, self.wanted.loaded.objective
        seed = wanted.origin.seed
        seed = seed if seed is not None else trial_seed(wanted.study.seed, trial.number)
        self.say(f"trial {trial.number} of {wanted.study.name}: {_recipe(trial)}; seed {seed}")
        own_code, length = objective.trains_itself, wanted.study.length
        compared = Comparing(trial, objective.searched, own_code=own_code, length=length, say=self.say)
        order = Order(wanted.loaded, {}, None, wanted.device, seed, wanted.data)
        if own_code:
            self._expect(None)
        else:
            _check_recipe(wanted)
        result, interrupted = None, False
        try:
            result = train_trial(order, recorded_trial(trial), compared, self._built, _micro_batch(trial))
        except Interrupted:
            pass  # it has got as far as the trial did
        except KeyboardInterrupt:
            interrupted = True
        return self._judged(compared, result, interrupted)

    def _built(self, _task: Task, data: Data | Folds) -> None:
        self._expect(data)

    def _expect(self, data: Data | Folds | None) -> None:
        """What is here is known before training: is it what there was, and what may be expected of it?"""
        wanted, loaded = self.wanted, self.wanted.loaded
        here = provenance(loaded.objective, loaded.source_sha256, loaded.path, data, str(wanted.device))
        changed = ["source"] * self.other_source + ["data"] * _other_data(wanted, here, self.say)
        on_cpu, own_code = wanted.device.type == "cpu", loaded.objective.trains_itself
        self.promise = promise(wanted.trial, wanted.origin, here, on_cpu=on_cpu, own_code=own_code)
        if changed:
            because = f"it was trained with other {' and other '.join(changed)} than now"
            self.promise = Promise(0, f"{because}; {self.promise.why}" if self.promise.why else because)
        self.say(_expected(self.promise, wanted))

    def _judged(self, compared: Comparing, result: Result | None, interrupted: bool) -> Replayed:
        trial = self.wanted.trial
        complete = trial.outcome is Outcome.COMPLETE and not interrupted
        values = (trial.value, result.value if result is not None else None) if complete else (None, None)
        allowed = self.wanted.tolerance * compared.scale
        missing = 0 if interrupted else compared.missing
        return Replayed(
            trial=trial.number,
            pairs=tuple(compared.pairs),
            missing=compared.missing,
            promise=self.promise,
            likeness=self._likeness(compared, values, allowed, missing),
            apart=compared.apart,
            values=values,
            allowed=allowed,
            interrupted=interrupted,
            healed=trial.outcome in FAILED and result is not None,
        )

    def _likeness(
        self, compared: Comparing, values: tuple[float | None, float | None], allowed: float, missing: int
    ) -> Likeness:
        recorded, replayed = values
        apart = [] if recorded is None else [distance(recorded, math.nan if replayed is None else replayed)]
        others = [pair.epoch for pair in compared.pairs if not pair.same]
        if not others and not missing and not any(apart):
            return Likeness.SAME
        others += [compared.pairs[-1].epoch + 1 if compared.pairs else 1] if missing else []
        apart += [compared.apart] if compared.apart is not None else []
        near = bool(apart) and all(one <= allowed for one in apart)
        expected = bool(self.promise.why) and min(others, default=math.inf) > self.promise.exact
        return Likeness.NEAR if near and expected else Likeness.DIFFERENT


def refuse_without_curve(wanted: Wanted) -> None:
    """Raises UsageError: there is nothing to compare with, or it is the curve of a trial that failed."""
    trial = wanted.trial
    named, state = f"trial {trial.number} of {wanted.study.name}", trial.state.replace("_", " ")
    if trial.outcome in FAILED:
        got = f"after {counted(len(trial.epochs), 'epoch')}" if trial.epochs else "before an epoch had ended"
        if not wanted.failed:
            raise UsageError(
                f"{named} failed {got} ({trial.reason or state}): --failed trains it again, as far as it gets"
            )
    elif not trial.epochs:
        raise UsageError(f"{named} is {state} and has no epoch on record" + (f": {trial.reason}" * bool(trial.reason)))


def _other_source(wanted: Wanted, say: Say) -> bool:
    """Whether it was trained with another source, which is said. UsageError: nobody said that this does not matter."""
    now, number = wanted.loaded.source_sha256, wanted.trial.number
    trained = {one.objective: one.commit for one in wanted.origin.owners.values()}
    others = [sha256 for sha256 in trained or {wanted.study.objective_sha256: None} if sha256 not in ("", now)]
    if not others:
        return False
    then, commit = others[0], trained.get(others[0])
    said = f"{wanted.loaded.reference} has changed since trial {number} was trained: its SHA-256 was {then[:DIGITS]}"
    said += f", about commit {commit[:DIGITS]}," if commit else ""
    said += f" and is {now[:DIGITS]}"
    if not wanted.changed:
        raise UsageError(f"{said}; another source need not give that curve: --changed trains it all the same")
    say(said)
    return True


def _other_data(wanted: Wanted, here: Provenance, say: Say) -> bool:
    """Whether it was trained on other data, which is said. UsageError: nobody said that this does not matter."""
    now = (here.data or {}).get("fingerprint")
    then = {(one.data or {}).get("fingerprint") for one in wanted.origin.owners.values()} - {None}
    if then <= {now}:
        return False
    said = f"trial {wanted.trial.number} was trained on other data: its checksum was {', '.join(map(str, then))}"
    said += f", and is {now}"
    if not wanted.changed:
        raise UsageError(f"{said}; --data names another folder, --changed trains on this all the same")
    say(said)
    return True


def _check_recipe(wanted: Wanted) -> None:
    """Raises ObjectiveError: from the trial's parameters another recipe comes out than it was trained with."""
    then = wanted.trial.attrs.get("settings")
    now = json.loads(json.dumps(space.sample(recorded_trial(wanted.trial), wanted.loaded.objective).as_dict()))
    if not isinstance(then, dict) or then == now:
        return
    name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
    raise ObjectiveError(
        f"{name} was {then.get(name)} in trial {wanted.trial.number}, and would be {now.get(name)} now: "
        "its objective searches otherwise today"
    )


def recorded_trial(trial: TrialDetail) -> optuna.Trial:
    """A trial in memory that suggests what one on record did, under its number."""
    [made] = space.trials_in_memory(1, _RecordedSampler(trial))
    renumber(made, trial.number)
    return made


class _RecordedSampler(optuna.samplers.BaseSampler):
    def __init__(self, trial: TrialDetail) -> None:
        self._trial = trial

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        number, params = self._trial.number, self._trial.params
        if param_name not in params:
            raise ObjectiveError(f"trial {number} has no {param_name!r}, which its objective suggests now")
        value = params[param_name]
        if not fits(value, param_distribution):
            raise ObjectiveError(f"{param_name} is {value} in trial {number}, which is not searched any more")
        return value


def _micro_batch(trial: TrialDetail) -> MicroBatchSize:
    """So many samples at a time as it was trained with in the end."""
    found, size = MicroBatchSize(), trial.attrs.get("micro_batch")
    if isinstance(size, int):
        found.go_on(size)
    return found


def _recipe(trial: TrialDetail) -> str:
    own = " ".join(f"{name} {short(value)}" for name, value in (trial.attrs.get("model") or {}).items())
    recipe = trial.attrs.get("recipe") or space.in_words(trial.params)
    return f"{recipe} | {own}" if own else str(recipe)


def _expected(found: Promise, wanted: Wanted) -> str:
    """What may be expected of it, in one line."""
    if not found.why:
        return "trained with the same as here: it must come again bit for bit"
    near = f"its curve may be {100 * wanted.tolerance:g}% of its largest value away"
    if not found.exact:
        return f"it need not come again bit for bit: {found.why}; {near}"
    return f"up to epoch {found.exact} it must come again bit for bit: {found.why}; {near}"


def replay_of(
    storage: SharedStorage,
    study: StudyRecord,
    number: int | None,
    objective: str | ByValue | None,
    *,
    device: str | None,
    data: Path,
    tolerance: float,
    changed: bool,
    failed: bool,
    say: Say,
) -> Replayed:
    """Find a trial and its objective here, and train it again.

    Args:
        number: None: the best one. objective: where it is on this machine; None: it is a built-in one.
        device: None: of the kind that trained it.

    Raises:
        DialinError: there is no best trial. UsageError, and what `replay` raises.
    """
    if number is None:
        best = queries.best(storage, study)
        if not best:
            raise DialinError(f"{study.name} has no complete trial yet: name one, as in `dialin replay {study.name} 0`")
        number = best[0].number
    trial = queries.trial(storage, study, number)
    origin = provenances.origin(storage, study.study_id, trial.attrs)
    if not isinstance(objective, ByValue):
        objective = reference_here(study.objective, objective, f"dialin replay {study.name} {number}")
    loaded = as_searched(resolve(objective), study)
    searched = loaded.objective.searched
    matching.check_same(study, loaded.reference, searched.name, searched.direction)
    there = _place(trial, origin, device)
    return replay(Wanted(study, trial, origin, loaded, there, data, tolerance, changed, failed), say)


def _place(trial: TrialDetail, origin: Origin, device: str | None) -> torch.device:
    """Where to train, on a CPU with as many threads as the trial's first owner had."""
    on_gpu = any(line.device.startswith("cuda") for line in trial.epochs)
    found = place(device if device is not None or on_gpu else "cpu")
    first = next(iter(origin.owners.values()), None)
    if found.type == "cpu" and first is not None and first.threads:
        torch.set_num_threads(first.threads)
    return found
