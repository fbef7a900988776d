"""Optuna's SQL storage that waits for a database which went away; `storage.backend` builds on it.

What only reads, and what writes the same when it is done twice, runs again from its beginning. What does not (a claim,
a settlement) looks up first what had become of it, which is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from storage.engine import writing
from storage.patience import patient, patiently


def again(method: Callable[..., Any]) -> Any:
    """The same method, run again while the database is away; in an override's place whatever the base declares."""
    return patient(method)


class PatientStorage(RDBStorage):
    """Transactions whose beginning waits for the database, and Optuna's reads."""

    engine: Engine

    get_study_id_from_name = again(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = again(RDBStorage.get_study_name_from_id)
    get_study_directions = again(RDBStorage.get_study_directions)
    get_study_user_attrs = again(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = again(RDBStorage.get_study_system_attrs)
    get_all_studies = again(RDBStorage.get_all_studies)
    get_trial = again(RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = again(RDBStorage.get_trial_id_from_study_id_trial_number)
    _get_trials = again(RDBStorage._get_trials)
    _get_best_trial_id = again(RDBStorage._get_best_trial_id)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One writing transaction, committed at the end of the block."""
        with writing(), self._begun() as session:
            yield session
            session.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One reading transaction."""
        with self._begun() as session:
            yield session

    def _begun(self) -> Session:
        return patiently(self._begin)

    def _begin(self) -> Session:
        """A session whose connection was alive a moment ago and, where it writes to SQLite, that holds the lock."""
        session = Session(self.engine)
        try:
            session.connection()
        except BaseException:
            session.close()
            raise
        return session
