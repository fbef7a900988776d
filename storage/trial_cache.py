"""What a process remembers of a study's trials, so that a read of all of them reads only what is new.

`storage.shared.SharedStorage` is built on it. Optuna's own cache reads every unfinished trial again each time, and all
of them as objects of its ORM.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import and_, or_
from sqlalchemy.orm import Session

from storage.backend import Backend
from storage.optuna_internals import CachedStorage, CachedStudy, forget_study, forget_trial, models, trial_id_of
from storage.patience import patient
from storage.tables import StudyRow
from storage.trial_rows import frozen, heads

# The most trials that are looked for by their ids in one statement.
_MANY = 10_000


@dataclass
class _Seen:
    """How far a study has been read: which one it was, its last trial, and the numbers, by id, of those unfinished."""

    uid: str | None = None
    last: int = -1
    unfinished: dict[int, int] = field(default_factory=dict)


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
            trials = self._studies[study_id].trials
            found = [trials[number] for number in sorted(trials)]
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
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
        with self._backend.read() as session:
            seen = self._seen.setdefault(study_id, _Seen())
            uid, rows = _changed(session, study_id, seen)
            if self._is_replaced(study_id, seen, uid, rows):
                forget_study(self, study_id)
                seen = self._seen[study_id] = _Seen()
                uid, rows = _changed(session, study_id, seen)
            self._studies.setdefault(study_id, CachedStudy())
            stale = [row for row in rows if self._is_stale(study_id, row, running_too)]
            for trial in frozen(session, stale):
                self._add_trials_to_cache(study_id, [trial])
                self._noted.discard(trial_id_of(trial))
        unfinished = {row.trial_id: row.number for row in rows if not row.state.is_finished()}
        there = {row.trial_id for row in rows}
        for trial_id, number in seen.unfinished.items():
            if trial_id not in there:
                forget_trial(self, study_id, number)
        seen.uid, seen.unfinished = uid, unfinished
        seen.last = max([seen.last, *there])

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

    def _is_stale(self, study_id: int, row: Any, running_too: bool) -> bool:
        """Whether more of a trial must be read than its own row."""
        known = self._studies[study_id].trials.get(row.number)
        if known is None or trial_id_of(known) != row.trial_id:
            return True
        if known.state != row.state or row.trial_id in self._noted:
            return True
        return running_too and row.state == TrialState.RUNNING


def _changed(session: Session, study_id: int, seen: _Seen) -> tuple[str | None, list[Any]]:
    """Which study it is, and its trials that are new or may have changed, without what hangs on them.

    Raises KeyError: it is not there.
    """
    study, trial = models.StudyModel, models.TrialModel
    changed = trial.trial_id >= seen.last  # SQLite gives the id of a trial that was deleted to the next
    if len(seen.unfinished) > _MANY:
        changed = trial.trial_id >= min(seen.unfinished)
    elif seen.unfinished:
        changed = or_(changed, trial.trial_id.in_(list(seen.unfinished)))
    query = (
        heads()
        .add_columns(StudyRow.uid)
        .select_from(study)
        .outerjoin(StudyRow, StudyRow.study_id == study.study_id)
        .outerjoin(trial, and_(trial.study_id == study.study_id, changed))
        .where(study.study_id == study_id)
    )
    rows = session.execute(query).all()
    if not rows:
        raise KeyError(models.NOT_FOUND_MSG)
    return rows[0].uid, [row for row in rows if row.trial_id is not None]
