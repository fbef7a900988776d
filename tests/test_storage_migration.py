"""A database of an older Dialin: brought up to date once, whole, and only when nobody works with the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from old_databases import VERSIONS, all_rows, as_it_was, put_version, reflected
from optuna.trial import Trial
from sqlalchemy import Engine, delete, event, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, ProgrammingError
from storage_crew import Crew, upgrade_at_once
from storage_places import DONE, adopted_by, an_epoch, fresh, optuna_study, run_trial, worker_on
from studies import Inside

from storage import checking, migrations, pausing, queries, schema, steering, studies, workers
from storage.claims import BudgetSpent, new_uuid
from storage.engine import database_now, make_engine
from storage.schema import WrongVersion
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.tables import SCHEMA_VERSION, Base, WorkerRow
from storage.urls import parse

pytest_plugins = ["storage_fixtures"]
pytestmark = [pytest.mark.usefixtures("storage_test"), pytest.mark.new_database]


class PowerCut(Exception):
    """What ends the process in the middle."""


# What a row's column of an older version is called now.
RENAMED = {("dialin_leases", old): "mandate" for old in ("generation", "term", "tenure", "reign")}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    """An older version of the tables; a test that asks for it runs once with each."""
    return int(request.param)


@pytest.fixture
def any_url(version: int, storage_url: str) -> str:
    put_version(version, storage_url)
    return storage_url


@pytest.fixture
def old_url(storage_url: str) -> str:
    """The oldest there is: it takes every step."""
    put_version(1, storage_url)
    return storage_url


@pytest.fixture
def old(old_url: str) -> Engine:
    """The old database as a process of its own time has it open."""
    return make_engine(parse(old_url))


def upgraded(url: str) -> SharedStorage:
    """The old database, brought up to date and opened."""
    schema.upgrade(parse(url))
    return open_storage(url)


def as_now(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of an older version under today's names."""
    return {RENAMED.get((table, name), name): row[name] for name in row}


# -- What is there afterwards


def test_everything_in_the_old_database_is_still_there(any_url: str, version: int) -> None:
    before = all_rows(make_engine(parse(any_url)))
    assert {row["state"] for row in before["trials"]} == {"COMPLETE", "PRUNED", "RUNNING", "WAITING"}
    after = all_rows(upgraded(any_url).backend.engine)
    assert before.pop("dialin_schema") == [{"version": version}]
    assert after.pop("dialin_schema") == [{"version": SCHEMA_VERSION}]
    assert after.keys() >= before.keys()
    for table, rows in before.items():
        wanted = [as_now(table, row) for row in rows]
        found = [{name: row[name] for name in as_now(table, rows[0])} for row in after[table]]
        assert sorted(found, key=str) == sorted(wanted, key=str), table


def unlike_new_ones(storage: SharedStorage) -> list[Any]:
    """What is different about its tables."""

    def ours(_thing: object, name: str | None, kind: str, *_: object) -> bool:
        return kind != "table" or str(name).startswith("dialin_")

    with storage.backend.engine.connect() as connection:
        options = {"include_object": ours, "compare_server_default": True}
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    return found


def test_upgraded_tables_are_like_new_ones(any_url: str) -> None:
    assert unlike_new_ones(upgraded(any_url)) == []


def test_a_database_of_this_version_is_used_as_it_is(storage_url: str, tmp_path: Path) -> None:
    """Tables that change want a new version, a step to it, and a database of that version here."""
    put_version(SCHEMA_VERSION, storage_url)
    before = all_rows(make_engine(parse(storage_url)))
    storage = open_storage(storage_url)
    assert unlike_new_ones(storage) == []
    assert checking.check(storage, tmp_path / "none").lines == []
    assert all_rows(storage.backend.engine) == before
    assert before["dialin_schema"] == [{"version": SCHEMA_VERSION}]
    worker = worker_on(storage_url)
    study = studies.find(worker, "open")
    assert adopted_by(worker, study).generation == 3
    run_trial(worker, study)
    study = studies.find(worker, "paused")
    assert [(one.number, one.epoch) for one in queries.status(worker, study).paused] == [(0, 1)]
    steering.resume(worker, study.study_id, Wish(), "bo")
    lease = pausing.go_on(worker, study.study_id, 0, by=1)
    assert lease is not None
    assert (lease.generation, worker.cost(lease)[0]) == (2, 1)


def test_an_old_study_has_no_limits_one_fold_and_what_it_spent(old_url: str) -> None:
    study = studies.find(upgraded(old_url), "open")
    assert (study.folds, study.length, study.until, study.budget_seconds, study.space) == (1, 2, None, None, {})
    assert study.spent_seconds == 1.5
    finished = studies.find(open_storage(old_url), "finished")
    assert finished.spent_seconds == pytest.approx(queries.status(open_storage(old_url), finished).seconds)


def test_an_old_study_goes_on(old_url: str) -> None:
    schema.upgrade(parse(old_url))
    worker = worker_on(old_url)
    study = studies.find(worker, "open")
    lease = adopted_by(worker, study)
    assert (lease.generation, worker.cost(lease)) == (2, (1, 1.5))
    worker.record_epoch(lease, an_epoch(2))
    mine = optuna_study(worker, study)
    worker.settle(mine, Trial(mine, lease.trial_id), DONE, 0.5)
    for _ in range(3):
        run_trial(worker, study)
    with pytest.raises(BudgetSpent):
        optuna_study(worker, study).ask()
    assert queries.status(worker, fresh(worker, study)).counts == {"complete": 4}
    assert [trial.number for trial in queries.best(worker, studies.find(worker, "finished"), 9)] == [0, 1, 2]
    worker.delete_study(study.study_id)
    assert studies.names(worker) == ["finished"]


def test_an_old_database_names_the_command_that_upgrades_it_and_stays_as_it_is(any_url: str, version: int) -> None:
    before = all_rows(make_engine(parse(any_url)))
    with pytest.raises(
        WrongVersion, match=f"tables of version {version}, .*`dialin storage upgrade --storage "
    ) as said:
        open_storage(any_url)
    assert len(str(said.value).splitlines()) == 1
    assert all_rows(make_engine(parse(any_url))) == before


def test_a_password_is_not_part_of_the_way_out(postgres_url: str) -> None:
    put_version(1, postgres_url)
    secret = make_url(postgres_url).set(password="s3cret").render_as_string(hide_password=False)
    with pytest.raises(WrongVersion, match="`dialin storage upgrade` brings them up to date") as said:
        open_storage(secret)
    assert "s3cret" not in str(said.value)


def test_the_commands_upgrade_an_old_database_and_resume_its_study(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Inside(capsys, monkeypatch)
    monkeypatch.setenv("DIALIN_STORAGE", sqlite_url)
    put_version(1, sqlite_url)
    refused = inside("resume", "open", "--workers", "1")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "has the tables of version 5 now" in inside("storage", "upgrade").out
    assert "has the tables of version 5: there is nothing to upgrade" in inside("storage", "upgrade").out
    assert inside("resume", "open", "--workers", "1").status == 0
    status = json.loads(inside("status", "open", "--json").out)
    assert (status["state"], status["settled"]) == ("finished", 4)


def test_what_is_not_there_is_not_upgraded(
    sqlite_url: str, postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Inside(capsys, monkeypatch)
    assert "there is no database" in inside("storage", "upgrade", "--storage", sqlite_url).err
    assert "has no tables of Dialin's" in inside("storage", "upgrade", "--storage", postgres_url).err
    assert all_rows(make_engine(parse(postgres_url))) == {}


# -- Others at the same time


def test_of_processes_that_upgrade_a_database_at_once_one_does(old_url: str, crew: Crew) -> None:
    assert {1} <= {*crew(upgrade_at_once, old_url)} <= {1, SCHEMA_VERSION}
    assert all_rows(upgraded(old_url).backend.engine)["dialin_schema"] == [{"version": SCHEMA_VERSION}]


def test_a_process_that_comes_to_the_upgrade_too_late_leaves_what_it_finds(
    old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the version and the lock, another has upgraded and its workers are at work."""

    def others_were_faster(*versions: int) -> Any:
        monkeypatch.undo()
        schema.upgrade(parse(old_url))
        worker = worker_on(old_url)
        workers.register(worker, new_uuid(), studies.find(worker).study_id, [workers.Place("cpu", None)])
        return migrations.steps_from(*versions)

    monkeypatch.setattr(migrations, "steps_from", others_were_faster)
    assert studies.names(upgraded(old_url)) == ["finished", "open"]


def test_an_upgrade_waits_for_the_workers_of_the_old_version(old_url: str, old: Engine) -> None:
    with old.begin() as connection:
        last = select(WorkerRow.worker_id).order_by(WorkerRow.started_at.desc()).limit(1).scalar_subquery()
        connection.execute(update(WorkerRow).where(WorkerRow.worker_id == last).values(last_seen=database_now()))
    before = all_rows(old)
    with pytest.raises(WrongVersion, match="in use by 1 worker of an older dialin: end them by its `dialin stop`"):
        upgraded(old_url)
    assert all_rows(old) == before
    with old.begin() as connection:
        connection.execute(update(WorkerRow).values(ended_at=database_now()))
    upgraded(old_url)


def test_who_goes_on_with_the_old_tables_can_neither_claim_record_nor_settle(any_url: str, version: int) -> None:
    old, leases = make_engine(parse(any_url)), reflected(as_it_was(version)).tables["dialin_leases"]
    number = {1: "generation", 2: "term", 3: "tenure", 4: "reign"}[version]
    mine = (leases.c.trial_id == 5) & (leases.c[number] == 1)
    lease = {"trial_id": 6, "study_id": 2, "worker_id": "0", number: 1, "claim": "0", "expires_at": 0.0}
    statements = (insert(leases).values(lease), update(leases).where(mine).values(lease), delete(leases).where(mine))
    for statement in statements:  # they are what that version executes
        with old.connect() as connection:
            connection.execute(statement)
    after = all_rows(upgraded(any_url).backend.engine)
    for statement in statements:
        with old.connect() as connection, pytest.raises((OperationalError, ProgrammingError), match=number):
            connection.execute(statement)
    assert all_rows(old) == after


@pytest.mark.parametrize("version", [1, 2])
def test_whoever_held_a_lease_is_its_first_owner_on_record(any_url: str) -> None:
    epochs = len(all_rows(make_engine(parse(any_url)))["dialin_epochs"])
    storage = upgraded(any_url)
    after = all_rows(storage.backend.engine)
    [lease], [owner] = after["dialin_leases"], after["dialin_owners"]
    assert (owner["trial_id"], owner["generation"], owner["claim"]) == (5, 1, lease["claim"])
    mine = [row for row in after["dialin_epochs"] if row["trial_id"] == 5]
    assert owner["recorded"] == len(mine) > 0
    assert sum(row["spent_epochs"] for row in after["dialin_studies"]) == epochs
    storage.delete_study(studies.find(storage, "open").study_id)
    assert all_rows(storage.backend.engine)["dialin_owners"] == []


@pytest.mark.parametrize("version", [1, 2, 3])
def test_no_trial_of_an_older_version_is_paused(any_url: str) -> None:
    storage = upgraded(any_url)
    assert {row["paused"] for row in all_rows(storage.backend.engine)["dialin_trials"]} == {None}
    study = studies.find(storage, "open")
    assert queries.status(storage, study).paused == ()


def test_an_upgrade_that_is_cut_off_has_changed_nothing(old_url: str, old: Engine) -> None:
    before = all_rows(old)

    def power_cut(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("UPDATE dialin_schema"):
            raise PowerCut

    event.listen(Engine, "after_cursor_execute", power_cut)
    with pytest.raises(PowerCut):
        upgraded(old_url)
    event.remove(Engine, "after_cursor_execute", power_cut)
    assert all_rows(old) == before
    assert all_rows(upgraded(old_url).backend.engine)["dialin_schema"] == [{"version": SCHEMA_VERSION}]


def test_a_study_of_an_older_version_has_an_ordinary_place_in_the_queue(any_url: str) -> None:
    studies_then = all_rows(upgraded(any_url).backend.engine)["dialin_studies"]
    places = {(row["priority"], row["concurrency"], row["virtual_time"]) for row in studies_then}
    assert places == {(1, None, 0.0)}
