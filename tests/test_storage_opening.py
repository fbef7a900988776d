"""Opening a database: made once by whoever comes first, set up as SQLite needs it, or refused in one line."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import create_trial
from postgres_server import PostgresServer
from sqlalchemy import text, update
from sqlalchemy.engine import make_url
from storage_crew import PROCESSES, Crew, open_at_once
from storage_places import make_study, optuna_study, rows, run_trial, worker_on

from storage import engine, queries, studies
from storage.errors import DialinError, UsageError
from storage.schema import StorageUnavailable, WrongVersion
from storage.shared import SharedStorage, open_storage
from storage.tables import SCHEMA_VERSION, SchemaRow
from storage.urls import parse, shown

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

SECRET = "s3cret"


def refusal(url: str, kind: type[DialinError]) -> str:
    """What opening says; one line, with no password in it."""
    with pytest.raises(kind) as caught:
        open_storage(url)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert SECRET not in message
    return message


# -- Making it


@pytest.mark.new_database
def test_processes_that_open_a_new_database_at_once_all_find_it_made(storage_url: str, crew: Crew) -> None:
    assert crew(open_at_once, storage_url) == ["opened"] * PROCESSES
    assert [row.version for row in rows(open_storage(storage_url), SchemaRow)] == [SCHEMA_VERSION]


@pytest.mark.new_database
def test_a_plain_optuna_database_becomes_one_of_dialins(storage_url: str) -> None:
    plain = RDBStorage(parse(storage_url).render_as_string(hide_password=False))
    plain.create_new_study([], "theirs")
    plain.engine.dispose()
    worker = worker_on(storage_url)
    run_trial(worker, make_study(worker))
    assert plain.get_all_studies()[0].study_name == "theirs"


# -- SQLite


@pytest.fixture
def sqlite(sqlite_url: str) -> SharedStorage:
    return worker_on(sqlite_url)


def test_sqlite_runs_with_a_write_ahead_log_and_foreign_keys(sqlite: SharedStorage) -> None:
    with sqlite.backend.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_reader_does_not_wait_for_a_writer(sqlite: SharedStorage, sqlite_url: str, tmp_path: Path) -> None:
    study = make_study(sqlite)
    writer = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE dialin_studies SET taken = 3")
    # Each of these would wait for a minute, and fail.
    assert sqlite.get_all_trials(study.study_id) == []
    assert sqlite.study_state(study.study_id) == "running"
    assert sqlite.adopt(study.study_id) is None
    assert queries.status(sqlite, studies.find(sqlite, study.name)).study.taken == 0
    open_storage(sqlite_url)
    writer.close()


def test_only_transactions_that_write_take_the_write_lock(sqlite: SharedStorage, tmp_path: Path) -> None:
    study = make_study(sqlite)
    outsider = sqlite3.connect(tmp_path / "study.db", timeout=0, isolation_level=None)

    def another_may_write() -> bool:
        try:
            outsider.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        outsider.execute("ROLLBACK")
        return True

    with sqlite.backend.read() as session:
        session.execute(text("SELECT * FROM trials")).all()
        assert another_may_write()
    with sqlite.backend.write() as session:
        session.execute(text("SELECT * FROM trials")).all()
        assert not another_may_write()
    run_trial(sqlite, study)
    assert another_may_write()
    outsider.close()


# -- PostgreSQL


@pytest.mark.parametrize(
    "write",
    [
        lambda _study, storage: optuna.create_study(storage=storage, study_name="theirs"),
        lambda study, _storage: study.add_trial(create_trial(value=0.5)),
        lambda study, _storage: study.enqueue_trial({"x": 0.5}),
    ],
)
def test_what_cannot_run_again_finds_a_connection_that_was_cut_a_moment_ago(
    postgres_url: str,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[optuna.Study, SharedStorage], object],
) -> None:
    monkeypatch.setattr(engine, "FRESH_SECONDS", 3600.0)
    worker = worker_on(postgres_url)
    study = optuna_study(worker, make_study(worker))
    worker.get_all_studies()
    cut = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'dialin'"
    postgres_server.execute(cut)
    write(study, worker)
    assert len(worker.get_all_studies()) + len(study.trials) == 2


# -- URLs


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("study.db", "'study.db' is not a database URL: write sqlite:///FILE.db or postgresql://"),
        ("", "is not a database URL"),
        (f"postgresql//me:{SECRET}@host/base", "is not a database URL"),
        (f"postgresql://me:{SECRET}@host:port/base", "is not a database URL"),
        ("sqlite://", "in-memory SQLite database cannot be shared"),
        ("sqlite:///:memory:", "in-memory SQLite database cannot be shared"),
        (f"mysql://me:{SECRET}@host/base", "mysql is not a supported database"),
        (f"oracle+oracledb://me:{SECRET}@host/base", "oracle is not a supported database"),
        (f"postgresql://me:{SECRET}@host", "names no database"),
        (f"postgresql://host/?user=me&password={SECRET}", "names no database"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, says: str) -> None:
    assert says in refusal(url, UsageError)


def test_a_url_is_shown_without_its_password() -> None:
    assert shown(f"postgresql://me:{SECRET}@host:5433/base") == "postgresql://me:***@host:5433/base"
    assert shown(f"postgresql+psycopg://host/base?password={SECRET}&user=me") == ("postgresql://host/base?user=me")
    assert shown("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_postgresql_is_taken_as_psycopg(scheme: str) -> None:
    assert parse(f"{scheme}://me@host/base").drivername == "postgresql+psycopg"


def test_a_sqlite_path_is_the_same_file_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("sqlite:///a.db").database == str(tmp_path / "a.db")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("sqlite:///~/a.db").database == str(tmp_path / "a.db")


# -- SQLite files that cannot be used


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path / 'nowhere'}" in refusal(
        f"sqlite:///{tmp_path}/nowhere/a.db", StorageUnavailable
    )
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    assert "that is a folder" in refusal(f"sqlite:///{tmp_path}", StorageUnavailable)


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"there is no folder {tmp_path / 'file'}" in refusal(f"sqlite:///{tmp_path}/file/a.db", StorageUnavailable)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("these are my notes, more than a hundred bytes of them, so that SQLite reads a header" * 3)
    before = file.read_text()
    assert f"{file} is some other file" in refusal(f"sqlite:///{file}", StorageUnavailable)
    assert file.read_text() == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc here")
def test_a_place_where_nothing_can_be_written_is_refused() -> None:
    assert "is /proc writable for you?" in refusal("sqlite:////proc/a.db", StorageUnavailable)


# -- PostgreSQL servers that cannot be used


def test_a_server_that_is_not_running_is_said_with_its_address() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        message = refusal(f"postgresql://me:{SECRET}@127.0.0.1:{port}/base", StorageUnavailable)
    assert f"cannot use storage postgresql://me:***@127.0.0.1:{port}/base" in message
    assert "server running" in message


def test_a_database_that_does_not_exist_is_named(postgres_url: str) -> None:
    url = make_url(postgres_url).set(database="nowhere", password=SECRET).render_as_string(hide_password=False)
    assert 'database "nowhere" does not exist' in refusal(url, StorageUnavailable)


@pytest.fixture
def stranger(postgres_server: PostgresServer) -> Iterator[str]:
    """A role that may connect and no more."""
    postgres_server.execute(f"CREATE ROLE stranger LOGIN PASSWORD '{SECRET}'")
    yield "stranger"
    postgres_server.execute("DROP ROLE stranger")


@pytest.mark.parametrize("made", [False, True], ids=["new", "made"])
@pytest.mark.new_database
def test_a_role_without_rights_is_refused(postgres_url: str, stranger: str, made: bool) -> None:
    if made:
        open_storage(postgres_url).backend.engine.dispose()
    url = make_url(postgres_url).set(username=stranger, password=SECRET).render_as_string(hide_password=False)
    assert "permission denied" in refusal(url, StorageUnavailable)


def test_a_role_that_does_not_exist_is_named(postgres_url: str) -> None:
    url = make_url(postgres_url).set(username="nobody", password=SECRET).render_as_string(hide_password=False)
    assert '"nobody" does not exist' in refusal(url, StorageUnavailable)


# -- Versions


@pytest.mark.parametrize(
    ("version", "way_out"),
    [(SCHEMA_VERSION + 1, "upgrade dialin"), (0, "use the dialin that made it, or a new database")],
)
def test_another_versions_database_is_refused_with_the_way_out(storage_url: str, version: int, way_out: str) -> None:
    storage = open_storage(storage_url)
    with storage.backend.write() as session:
        session.execute(update(SchemaRow).values(version=version))
    message = refusal(storage_url, WrongVersion)
    assert f"Dialin's tables of version {version}, but this dialin reads version {SCHEMA_VERSION}" in message
    assert message.endswith(way_out)


@pytest.mark.parametrize("revision", ["v9.9.9.a", "v3.0.0.a"])
def test_another_optunas_database_is_refused(storage_url: str, revision: str) -> None:
    storage = open_storage(storage_url)
    with storage.backend.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    assert "made by another version of Optuna" in refusal(storage_url, WrongVersion)
