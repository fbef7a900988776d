"""Optuna's SQL storage that waits for a database which went away; `storage.backend` builds on it.

What only reads, and what writes the same when it is done twice, runs again from its beginning. What does not (a claim,
a settlement) looks up first what had become of it, which is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from optuna.storages import RDBStorage
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.engine import writing
from storage.patience import Patience, patient, patiently

_Answer = TypeVar("_Answer")

NOTHING: Mapping[str, Any] = {}


def as_patient(method: Callable[..., Any]) -> Any:
    """The same method, run again while the database is away; in an override's place whatever the base declares."""
    return patient(method)


class PatientStorage(RDBStorage):
    """Transactions whose beginning waits for the database, and Optuna's reads."""

    engine: Engine

    get_study_id_from_name = as_patient(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = as_patient(RDBStorage.get_study_name_from_id)
    get_study_directions = as_patient(RDBStorage.get_study_directions)
    get_study_user_attrs = as_patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = as_patient(RDBStorage.get_study_system_attrs)
    get_all_studies = as_patient(RDBStorage.get_all_studies)
    get_trial = as_patient(RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = as_patient(RDBStorage.get_trial_id_from_study_id_trial_number)
    _get_best_trial_id = as_patient(RDBStorage._get_best_trial_id)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One writing transaction, committed at the end of the block."""
        with writing(), self._begun() as session:
            try:
                yield session
                session.commit()
            except BaseException:  # a failed COMMIT too leaves SQLite's lock with the connection until it is told
                session.rollback()
                raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A reading transaction on SQLite; on PostgreSQL, where each statement sees what is committed by then, none.

        That spares the server a BEGIN and a ROLLBACK. `storage.engine.one_moment` is for what must see one state.
        """
        options = {"isolation_level": "AUTOCOMMIT"} if self.engine.name == "postgresql" else {}
        with self._begun(options) as session:
            yield session

    def write_once(self, attempt: Callable[[Session, bool], _Answer]) -> _Answer:
        """One writing transaction, run again while the database is away, that does its work exactly once.

        `attempt(session, again)`: `again` says that an earlier attempt was cut off, and that its COMMIT may have
        arrived, or may arrive yet. It takes its locks, for which it waits for that one, and then looks what is there.
        """
        patience, cut_off, collided = Patience(), False, False
        while True:
            try:
                with self.write() as session:
                    return attempt(session, cut_off)
            except IntegrityError:  # after what it looked up, the earlier one's UUID has arrived after all
                if not cut_off or collided:
                    raise
                collided = True
            except Exception as error:
                patience.wait(error)
                cut_off = True

    def _begun(self, options: Mapping[str, Any] = NOTHING) -> Session:
        """`options` of the connection; see SQLAlchemy's `Session.connection`."""
        return patiently(partial(self._begin, options))

    def _begin(self, options: Mapping[str, Any]) -> Session:
        """A session whose connection was alive a moment ago and, where it writes to SQLite, that holds the lock."""
        session = Session(self.engine)
        try:
            session.connection(execution_options=options)
        except BaseException:
            session.close()
            raise
        return session
