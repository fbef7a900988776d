"""On PostgreSQL rows are locked in one order, so that no two workers wait for each other (storage/leases.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, text
from storage_places import an_epoch, make_study, optuna_study, rows, worker_on
from studies import optuna_url

from storage.claims import Checkpoint, Settlement
from storage.outcomes import Outcome
from storage.tables import LeaseRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def impatient_url(postgres_url: str) -> str:
    """A database in which waiting for a lock is an error after a moment."""
    with create_engine(optuna_url(postgres_url)).connect() as connection:
        connection.execute(
            text("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET lock_timeout = 500'; END $$")
        )
        connection.commit()
    return postgres_url


@pytest.fixture
def creator(impatient_url: str) -> Iterator[Connection]:
    """Somebody in the middle of creating a trial: Optuna locks its study's row for that, and the claim ours then."""
    with create_engine(optuna_url(impatient_url)).connect() as connection:
        yield connection


def test_nothing_that_an_owner_writes_waits_for_a_creator_of_trials(impatient_url: str, creator: Connection) -> None:
    worker = worker_on(impatient_url)
    study = make_study(worker, first=1)
    searched = optuna_study(worker, study)
    trial = searched.ask()
    creator.execute(text("SELECT study_id FROM studies FOR UPDATE"))
    with worker.sampling(trial):
        trial.suggest_float("x", 0, 10)
    worker.record_epoch(worker.lease_of(trial), an_epoch(1), Checkpoint(1, "state-1", "0" * 64))
    weights = Checkpoint(1, "weights-1", "0" * 64)
    attrs = {"outcome": "complete"}
    worker.settle(searched, trial, Settlement(Outcome.COMPLETE, weights=weights, attrs=attrs, seconds=1.0), 0.5)
    assert rows(worker, LeaseRow) == []
