"""A database is copied to one of the other kind, and back, and nothing has changed; or nothing is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from old_databases import all_rows, put_version
from optuna.trial import create_trial
from postgres_server import PostgresServer
from sqlalchemy import Engine, event, text, update
from storage_places import adopted_by, an_epoch, fresh, make_study, optuna_study, run_trial, worker_on
from studies import Inside

from storage import copying, studies, workers
from storage.claims import new_uuid
from storage.copying import copy
from storage.engine import make_engine
from storage.errors import DialinError, UsageError
from storage.optuna_internals import models
from storage.schema import WrongVersion
from storage.shared import SharedStorage, open_storage
from storage.tables import StudyRow
from storage.urls import parse

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

# What a database, its driver or a careless copier may stumble over.
ODD = "naïve 'quoted' \"twice\" back\\slash %s %(x)s :bind {b} new\nline tab\t 🙂 \x01 Ω ́"
INFINITE = float("inf")


@pytest.fixture
def places(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Callable[[str], str]]:
    """URLs of new databases of a kind."""
    made: list[str] = []

    def place(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / new_uuid()}.db"
        made.append(postgres_server.create_database())
        return made[-1]

    yield place
    for url in made:
        postgres_server.drop_database(url)


def other(url: str) -> str:
    """The kind of database that this is not."""
    return "postgresql" if url.startswith("sqlite") else "sqlite"


def kind(url: str) -> str:
    return url.partition(":")[0]


def contents(url: str) -> dict[str, list[str]]:
    """Every row of every table in an order of its own."""
    engine = make_engine(parse(url))
    found = all_rows(engine)
    engine.dispose()
    return {table: sorted(map(str, rows)) for table, rows in found.items()}


def copied(source: str, target: str, **how: Any) -> copying.Copied:
    return copy(parse(source), parse(target), **how)


def fill(url: str) -> SharedStorage:
    """Studies in every state that there is, and values that are hard to copy; its worker has ended."""
    worker = worker_on(url)
    record = make_study(worker, first=2, seed=2**31 - 1, until=INFINITE, budget_seconds=1e300)
    mine = optuna_study(worker, record)
    worker.record_epoch(worker.lease_of(mine.ask()), an_epoch(1, float("nan"), device=ODD))
    run_trial(worker, record)
    held = mine.ask()
    for epoch, value in enumerate((float("nan"), INFINITE, -INFINITE, 5e-324, 0.1 + 0.2), start=1):
        worker.record_epoch(worker.lease_of(held), an_epoch(epoch, value))
    worker.hand_back(worker.lease_of(held))
    theirs = optuna.create_study(study_name=ODD, directions=["minimize", "maximize"], storage=worker)
    theirs.set_user_attr(ODD, {"text": ODD, "nul": "\0", "numbers": [float("nan"), 1e-300]})
    theirs.add_trial(create_trial(values=[INFINITE, -1.5], user_attrs={ODD: ODD}, system_attrs={"x": [1]}))
    theirs.add_trial(create_trial(state=optuna.trial.TrialState.FAIL))
    workers.register(worker, new_uuid(), record.study_id, [workers.Place(ODD, ODD)])
    workers.end(worker, worker.backend.claimant.worker_id if worker.backend.claimant else "")
    with worker.backend.write() as session:
        session.execute(text("UPDATE dialin_workers SET ended_at = last_seen"))
    worker.delete_study(make_study(worker).study_id)  # its number is free on SQLite, gone on PostgreSQL
    return worker


def test_everything_is_there_and_the_same_also_after_the_way_back(
    storage_url: str, places: Callable[[str], str]
) -> None:
    fill(storage_url)
    there, back = places(other(storage_url)), places(kind(storage_url))
    before = contents(storage_url)
    assert copied(storage_url, there).studies == 2
    assert contents(there) == before
    found = copied(there, back)
    assert contents(back) == before
    assert (found.trials, found.rows) == (len(before["trials"]), sum(map(len, before.values())))
    assert contents(storage_url) == before


def test_a_study_goes_on_where_it_was_copied_to(storage_url: str, places: Callable[[str], str]) -> None:
    name = next(name for name in studies.names(fill(storage_url)) if name != ODD)
    there = places(other(storage_url))
    copied(storage_url, there)
    worker = worker_on(there)
    study = studies.find(worker, name)
    adopted = adopted_by(worker, study)
    worker.record_epoch(adopted, an_epoch(9))
    run_trial(worker, study)  # the one that waits
    run_trial(worker, make_study(worker))
    assert fresh(worker, study).taken == 4
    assert len({row["trial_id"] for row in all_rows(worker.backend.engine)["trials"]}) == 7


def test_a_copy_goes_to_an_empty_database_only(storage_url: str, places: Callable[[str], str]) -> None:
    fill(storage_url)
    there = places(other(storage_url))
    open_storage(there)  # tables are no rows
    copied(storage_url, there)
    before = contents(there)
    with pytest.raises(UsageError, match="is not empty, it has rows in studies: copy to a new database"):
        copied(storage_url, there)
    with pytest.raises(UsageError, match="cannot be copied to itself"):
        copied(storage_url, storage_url)
    assert contents(there) == before


def test_nothing_is_copied_while_workers_are_alive_unless_it_is_said(
    storage_url: str, places: Callable[[str], str]
) -> None:
    worker = worker_on(storage_url)
    workers.register(worker, new_uuid(), make_study(worker).study_id, [workers.Place("cpu", None)])
    there = places(other(storage_url))
    with pytest.raises(UsageError, match=r"in use by 1 worker: end them by `dialin stop`, or .* --while-training"):
        copied(storage_url, there)
    assert copied(storage_url, there, while_training=True).studies == 1
    assert contents(there) == contents(storage_url)


def test_what_others_commit_meanwhile_is_in_the_copy_whole_or_not_at_all(
    storage_url: str, places: Callable[[str], str]
) -> None:
    worker = fill(storage_url)
    before, there = contents(storage_url), places(other(storage_url))

    trained: list[str] = []

    def train_on(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("INSERT INTO studies") and not trained:
            trained.append(sql)
            run_trial(worker, make_study(worker))

    event.listen(Engine, "after_cursor_execute", train_on)
    copied(storage_url, there)
    event.remove(Engine, "after_cursor_execute", train_on)
    assert contents(there) == before != contents(storage_url)


def test_a_row_that_does_not_fit_is_named_and_nothing_is_copied(sqlite_url: str, postgres_url: str) -> None:
    worker = worker_on(sqlite_url)
    record = make_study(worker)
    with worker.backend.write() as session:
        session.execute(update(StudyRow).values(reason="nul \0 in a text"))
    with pytest.raises(DialinError, match=r"does not take a row of dialin_studies: .*NUL.*; nothing was copied"):
        copied(sqlite_url, postgres_url)
    assert contents(postgres_url)["studies"] == []
    with worker.backend.write() as session:
        session.execute(update(StudyRow).values(reason=""))
    assert copied(sqlite_url, postgres_url).studies == 1
    assert studies.names(open_storage(postgres_url)) == [record.name]


@pytest.mark.new_database
def test_what_is_no_database_of_this_version_is_not_copied(sqlite_url: str, postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no tables of Dialin's"):
        copied(postgres_url, sqlite_url)
    put_version(1, f"sqlite:///{tmp_path / 'old.db'}")
    with pytest.raises(WrongVersion, match="`dialin storage upgrade"):
        copied(f"sqlite:///{tmp_path / 'old.db'}", postgres_url)
    worker = worker_on(sqlite_url)
    with worker.backend.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'v1'"))
    with pytest.raises(WrongVersion, match="another version of Optuna"):
        copied(sqlite_url, postgres_url)


def test_a_file_that_is_not_there_is_not_made_to_be_copied(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no database .*none\.db"):
        copied(f"sqlite:///{tmp_path / 'none.db'}", sqlite_url)
    assert not (tmp_path / "none.db").exists()


def test_the_command_says_what_it_copied_and_where_the_files_are(
    sqlite_url: str,
    postgres_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = Inside(capsys, monkeypatch)
    with fill(sqlite_url).backend.write() as session:
        session.execute(text("CREATE TABLE shopping (item INTEGER)"))
    copying_it = inside("storage", "copy", sqlite_url, postgres_url)
    said = copying_it.out
    assert "copied 2 studies, 5 trials (" in said
    assert "left out: table shopping" in said
    assert f"checkpoints and logs stay in {tmp_path / 'dialin-files'}: name that folder with --files" in said
    assert "train a study in one of the two only, or each overwrites the other's files\n" in copying_it.err
    assert len(inside("list", "--storage", postgres_url).out.splitlines()) > 2
    refused = inside("storage", "copy", f"sqlite:///{tmp_path / 'none.db'}", postgres_url)
    assert (refused.status, "there is no database" in refused.err) == (2, True)


def test_all_of_optunas_tables_and_ours_are_copied(storage_url: str) -> None:
    """A new Optuna may have more of them."""
    open_storage(storage_url)
    assert {*contents(storage_url)} == {table.name for table in copying._tables()}
    assert {table.name for table in models.BaseModel.metadata.sorted_tables} <= {*contents(storage_url)}
