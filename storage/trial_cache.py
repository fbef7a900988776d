"""What a process remembers of a study's trials, so that a read of all of them reads only what is new.

`storage.shared.SharedStorage` is built on it. Optuna's own cache reads every unfinished trial again each time, and all
of them as objects of its ORM.

Samplers of a worker are shown a paused trial as PRUNED with its values so far. As RUNNING it would be a bad one to TPE
(its constant liar), one more point to GP over whose unknown value it integrates, and nothing to CMA-ES. (Optuna 5.0.
Of PRUNED ones GP sees none. That is the best of three: a value halfway is not comparable to COMPLETE ones.)
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Container
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Integer, and_, bindparam, func, or_, select
from sqlalchemy.orm import Session

from storage import fresh_rows
from storage.backend import Backend
from storage.fresh_rows import Marks
from storage.optuna_internals import CachedStorage, CachedStudy, forget_study, forget_trial, models, trial_id_of
from storage.patience import patient
from storage.tables import EpochRow, StudyRow, TrialRow
from storage.trial_rows import frozen, heads

# The most trials that are looked for by their ids in one statement.
_MANY = 10_000
# Of more trials in training than this a worker reads those that have new rows, and all of them again every so often:
# what was changed in place by another program, or committed out of order, is seen then.
_FEW = 20
_WHOLE_SECONDS = 60.0
# And pruners, which may ask at each of many short epochs, judge for so long by what was read last.
_MOMENT_SECONDS = 0.1


@dataclass
class _Seen:
    """How far a study has been read: which one it was, its last trial, and the numbers, by id, of those unfinished.

    `paused`: by the number of each that is, the generation that let it go. `at`: when that was.
    `whole_at`, `marks`: when all trials in training were read, and what was on record then or has been looked at since.
    """

    uid: str | None = None
    last: int = -1
    at: float = -math.inf
    whole_at: float = -math.inf
    marks: Marks = ()
    unfinished: dict[int, int] = field(default_factory=dict)
    paused: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """A trial as it is on record, not to be changed, and how long it has trained.

    `paused`: the generation that let it go; None where it is not paused.
    """

    trial: FrozenTrial
    paused: int | None
    seconds: float

    def is_like(self, other: Observed) -> bool:
        """Whether nothing has happened to it in between."""
        return self.trial is other.trial and (self.paused, self.seconds) == (other.paused, other.seconds)


class TrialCache(CachedStorage):
    """Reads of trials. One that has finished is read once: it changes no more.

    Of the others a read of all trials tells whether they have finished and, where it asks for such trials, all that is
    new in those RUNNING. What other programs note on a WAITING one is seen when it starts.
    """

    _backend: Backend

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._seen: dict[int, _Seen] = {}
        self._noted: set[int] = set()
        self._read_paused: dict[int, int] = {}  # by id, the generation that had let it go when it was read
        self._shown: dict[int, FrozenTrial] = {}  # by id, as samplers are shown those
        self._seconds: dict[int, float] = {}  # by id, of those unfinished
        self._uncounted: set[int] = set()  # ids of those that may have trained since
        # A trial, by id, that is judged by who reads, and has its values himself; and what he notes on it.
        self._noting: tuple[int, dict[str, Any]] | None = None

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A finished one may be of the cache, as Optuna's: it is not to be changed."""
        with self._lock:
            trial = self._get_cached_trial(trial_id)
        return trial if trial is not None else self._read_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._lock:
            self._catch_up(study_id, states is None or TrialState.RUNNING in states)
            found = [*self._studies[study_id].trials.values()]
            if self._backend.claimant is not None and (paused := self._seen[study_id].paused):
                found = [self._as_pruned(trial) if trial.number in paused else trial for trial in found]
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def observe(self, study_id: int) -> list[Observed]:
        """All trials by number, as a strategy looks at them: paused ones for what they are."""
        with self._lock:
            self._catch_up(study_id, running_too=True)
            self._count_seconds()
            trials, paused = self._studies[study_id].trials, self._seen[study_id].paused
            return [Observed(trial, paused.get(number), self._seconds_of(trial)) for number, trial in trials.items()]

    def _seconds_of(self, trial: FrozenTrial) -> float:
        told = trial.user_attrs.get("seconds") if trial.state.is_finished() else None
        return float(told) if isinstance(told, int | float) else self._seconds.get(trial_id_of(trial), 0.0)

    @patient
    def _count_seconds(self) -> None:
        """Of those that are trained, which a trial that has ended says itself."""
        if not self._uncounted:
            return
        query = select(EpochRow.trial_id, func.sum(EpochRow.seconds)).group_by(EpochRow.trial_id)
        with self._backend.read() as session:
            ids = [*self._uncounted]
            for first in range(0, len(ids), _MANY):
                found = session.execute(query.where(EpochRow.trial_id.in_(ids[first : first + _MANY])))
                self._seconds |= {trial_id: float(seconds) for trial_id, seconds in found}
        self._uncounted.clear()

    def _as_pruned(self, trial: FrozenTrial) -> FrozenTrial:
        trial_id = trial_id_of(trial)
        shown = self._shown.get(trial_id)
        if shown is None:
            shown = copy.copy(trial)
            shown.state, shown.datetime_complete = TrialState.PRUNED, trial.datetime_start
            value = trial.intermediate_values[trial.last_step] if trial.last_step is not None else math.nan
            shown.values = None if math.isnan(value) else [value]
            self._shown[trial_id] = shown
        return shown

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self._noted.add(trial_id)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._noted.add(trial_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        self._noted.add(trial_id)

    @patient
    def _read_trial(self, trial_id: int) -> FrozenTrial:
        with self._backend.read() as session:
            row = session.execute(heads().where(models.TrialModel.trial_id == trial_id)).one_or_none()
            if row is None:
                raise KeyError(models.NOT_FOUND_MSG)
            trial = next(frozen(session, [row]))
        with self._lock:
            known = self._trial_id_to_study_id_and_number.get(trial_id)
            if known is not None and known[1] == trial.number and trial.state.is_finished():
                self._add_trials_to_cache(known[0], [trial])
        return trial

    @patient
    def _catch_up(self, study_id: int, running_too: bool) -> None:
        """Bring what is remembered up to date. The lock is held."""
        seen = self._seen.setdefault(study_id, _Seen())
        crowded = len(seen.unfinished) > _FEW
        if self._noting is not None and crowded and time.monotonic() < seen.at + _MOMENT_SECONDS:
            return
        with self._backend.read() as session:
            uid, rows = _changed(session, study_id, seen)
            if self._is_replaced(study_id, seen, uid, rows):
                forget_study(self, study_id)
                seen = self._seen[study_id] = _Seen()
                uid, rows = _changed(session, study_id, seen)
            self._studies.setdefault(study_id, CachedStudy())
            stale = [row for row in rows if self._is_stale(study_id, row)]
            if running_too:
                met = {row.trial_id for row in stale}
                stale += self._gone_on(session, study_id, [row for row in rows if row.trial_id not in met])
            for row, trial in zip(stale, frozen(session, stale), strict=True):
                self._add_trials_to_cache(study_id, [trial])
                self._remember(row)
        unfinished = {row.trial_id: row.number for row in rows if not row.state.is_finished()}
        there = {row.trial_id for row in rows}
        for trial_id, number in seen.unfinished.items():
            if trial_id not in there:
                forget_trial(self, study_id, number)
        seen.uid, seen.unfinished = uid, unfinished
        seen.paused = {row.number: row.paused for row in rows if row.trial_id in unfinished and row.paused is not None}
        seen.last = max([seen.last, *there])
        if running_too:
            seen.at = time.monotonic()

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        """Keeps those of a study by number, which a read of all of them then need not sort."""
        study = self._studies[study_id]
        last = next(reversed(study.trials), -1)
        numbers = [trial.number for trial in trials if trial.number not in study.trials]
        super()._add_trials_to_cache(study_id, trials)
        if any(before > number for before, number in pairwise([last, *numbers])):
            study.trials = dict(sorted(study.trials.items()))

    def _remember(self, row: Any) -> None:
        """That a trial was read, as it was then."""
        trial_id, state = row.trial_id, row.state
        self._noted.discard(trial_id)
        self._shown.pop(trial_id, None)
        self._read_paused.pop(trial_id, None)
        if row.paused is not None:
            self._read_paused[trial_id] = row.paused
        if state == TrialState.RUNNING:
            self._uncounted.add(trial_id)

    def _is_replaced(self, study_id: int, seen: _Seen, uid: str | None, rows: list[Any]) -> bool:
        """Whether an id stands for something else now: SQLite gives those of deleted studies and trials again."""
        if seen.last < 0:
            return False
        row = next((row for row in rows if row.trial_id == seen.last), None)
        return seen.uid != uid or row is None or self._known(study_id, row.trial_id) != row.number

    def _known(self, study_id: int, trial_id: int) -> int | None:
        """The number under which a trial of the study is remembered."""
        found = self._trial_id_to_study_id_and_number.get(trial_id)
        return found[1] if found is not None and found[0] == study_id else None

    def _is_stale(self, study_id: int, row: Any) -> bool:
        """Whether more of a trial must be read than its own row, be it in training or not."""
        known = self._studies[study_id].trials.get(row.number)
        if known is None or trial_id_of(known) != row.trial_id:
            return True
        if known.state != row.state or row.trial_id in self._noted:
            return True
        # Nothing happens to one that is paused.
        return row.paused is not None and self._read_paused.get(row.trial_id) != row.paused

    def _gone_on(self, session: Session, study_id: int, rows: list[Any]) -> list[Any]:
        """Those of them in training that may have gone on since they were read, or were not whole then."""
        seen = self._seen[study_id]
        judged = self._noting[0] if self._noting is not None else None
        running = [
            row for row in rows if row.state == TrialState.RUNNING and row.paused is None and row.trial_id != judged
        ]
        if self._backend.claimant is None or len(running) <= _FEW:
            return running
        news = fresh_rows.since(session, seen.marks) if time.monotonic() < seen.whole_at + _WHOLE_SECONDS else None
        if news is None:
            seen.marks, seen.whole_at = fresh_rows.marks(session), time.monotonic()
            return running
        trials, seen.marks = news
        trials.update(self._backend.leases)  # what this process trains it may have changed in place
        known = self._studies[study_id].trials
        return [row for row in running if row.trial_id in trials or not known[row.number].params]


def _changed(session: Session, study_id: int, seen: _Seen) -> tuple[str | None, list[Any]]:
    """Which study it is, and its trials that are new or may have changed, without what hangs on them.

    Raises KeyError: it is not there.
    """
    first, count = min(seen.unfinished, default=seen.last), len(seen.unfinished)
    dense = count > _FEW and seen.last - first < 2 * count  # drivers are slow with long lists
    named = 0 < count <= _MANY and not dense
    given = {"of_study": study_id, "first": seen.last if named else first}  # SQLite gives a deleted trial's id again
    ids = {"ids": [*seen.unfinished]} if named else {}
    rows = session.connection().execute(_news(named), given | ids).all()
    if not rows:
        raise KeyError(models.NOT_FOUND_MSG)
    return rows[0].uid, [row for row in rows if row.trial_id is not None]


@functools.cache
def _news(named: bool) -> Any:
    """The statement of `_changed`, made once: trials from the id `first` on and, `named`, those with `ids` too."""
    study, trial = models.StudyModel, models.TrialModel
    changed = trial.trial_id >= bindparam("first")
    if named:
        changed = or_(changed, trial.trial_id.in_(bindparam("ids", type_=Integer, expanding=True)))
    return (
        heads()
        .add_columns(TrialRow.paused, StudyRow.uid)
        .select_from(study)
        .outerjoin(StudyRow, StudyRow.study_id == study.study_id)
        .outerjoin(trial, and_(trial.study_id == study.study_id, changed))
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .where(study.study_id == bindparam("of_study"))
    )
