"""Fixtures of the storage tests, loaded by each of them as a plugin: a shared database and real processes."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from postgres_server import PostgresServer
from sqlalchemy import delete
from storage_crew import Crew
from storage_places import connections_closed, worker_on

from storage.shared import SharedStorage
from storage.tables import QueueWorkerRow, WorkerRow


@pytest.fixture
def storage_test() -> Iterator[None]:
    """Whatever a test opens to a database is closed when it ends; Optuna says nothing but warnings."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with connections_closed():
        yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def common_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database, of each kind, that a module's tests share: for those that look at their own study only."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('common') / 'common.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Real processes, started once: `crew(function, *arguments)` runs it in all of them at the same moment."""
    with Crew() as crew:
        yield crew


@pytest.fixture
def storage(common_url: str) -> Iterator[SharedStorage]:
    """Of a database in which nothing is open, and nobody works: the queue is all that there is."""
    yield (worker := worker_on(common_url))
    for study_id in [study._study_id for study in worker.get_all_studies()]:
        worker.delete_study(study_id)
    with worker.backend.write() as session:
        for row in (QueueWorkerRow, WorkerRow):
            session.execute(delete(row))
