"""What does not fit together in a database is found, said in a line each, and put right; what fits is left alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState
from sqlalchemy import delete, event, text, update
from storage_crew import PROCESSES, Crew, claim_beside_mending
from storage_places import adopted_by, an_epoch, fresh, make_study, optuna_study, rows, run_trial, wait_until, worker_on
from studies import Inside

from storage import checking, leases, pausing, workers
from storage.claims import Checkpoint, new_uuid
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import LeaseRow, OwnerRow, StudyRow, TrialRow, WorkerRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(storage_url: str) -> SharedStorage:
    return worker_on(storage_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker, trials=9)


def held(worker: SharedStorage, study: StudyRecord) -> Trial:
    """A trial with an epoch on record that is in training."""
    trial: Trial = optuna_study(worker, study).ask()
    worker.record_epoch(worker.lease_of(trial), an_epoch(1))
    return trial


def wrong(worker: SharedStorage, root: Path, **how: Any) -> list[str]:
    return [line.what for line in checking.check(worker, root, **how).lines]


def mended(worker: SharedStorage, root: Path) -> list[str]:
    """What it says when it mends; afterwards nothing is wrong."""
    found = checking.check(worker, root, mend=True)
    assert all(line.mended for line in found.lines), found.lines
    assert wrong(worker, root) == []
    return [f"{line.what}; {line.mending}" for line in found.lines]


def execute(worker: SharedStorage, *statements: Any) -> None:
    with worker.backend.write() as session:
        for statement in statements:
            session.execute(statement)


def test_nothing_is_wrong_with_trials_in_every_state(worker: SharedStorage, study: StudyRecord, tmp_path: Path) -> None:
    run_trial(worker, study)
    worker.hand_back(worker.lease_of(held(worker, study)))
    adopted_by(worker, study)
    worker.hand_back(worker.lease_of(held(worker, study)))
    held(worker, study)
    optuna_study(worker, study).enqueue_trial({"x": 1.0})
    assert wrong(worker, tmp_path) == []


def paused(worker: SharedStorage, study: StudyRecord) -> Trial:
    trial = held(worker, study)
    lease = worker.lease_of(trial)
    worker.record_checkpoint(lease, Checkpoint(1, "trial-00000/state-0001.g1.pt", "0" * 64))
    assert pausing.pause(worker, lease)
    return trial


def test_nothing_is_wrong_with_a_paused_trial(worker: SharedStorage, study: StudyRecord, tmp_path: Path) -> None:
    paused(worker, study)
    assert wrong(worker, tmp_path) == []
    assert pausing.go_on(worker, study.study_id, 0, by=1) is not None
    assert wrong(worker, tmp_path) == []


def test_a_paused_trial_that_is_leased_belongs_to_who_has_its_lease(
    worker: SharedStorage, study: StudyRecord, tmp_path: Path
) -> None:
    lease = worker.lease_of(held(worker, study))
    execute(worker, update(TrialRow).values(paused=1))
    said = "trial 0 is paused and still leased; whoever has its lease goes on with it"
    assert mended(worker, tmp_path) == [f"{study.name}: {said}"]
    worker.record_epoch(lease, an_epoch(2))


def test_a_paused_trial_that_somebody_else_told_is_settled(
    worker: SharedStorage, study: StudyRecord, tmp_path: Path
) -> None:
    trial = paused(worker, study)
    optuna_study(RDBStorage(worker.backend.url), study).tell(trial.number, 0.75)
    said = "trial 0 is COMPLETE and was never settled: somebody else told it; settled as complete"
    assert mended(worker, tmp_path) == [f"{study.name}: {said}"]
    [row] = rows(worker, TrialRow)
    assert (row.outcome, row.paused) == ("complete", None)


def test_a_file_that_who_paused_a_trial_did_not_record_is_removed(
    worker: SharedStorage, study: StudyRecord, tmp_path: Path
) -> None:
    paused(worker, study)
    folder = tmp_path / study.folder / "trial-00000"
    folder.mkdir(parents=True)
    (folder / "state-0002.g1.pt").write_text("of the owner before the pause")
    (folder / "state-0002.g2.pt").write_text("of the one to come")
    assert len(mended(worker, tmp_path)) == 1
    assert [path.name for path in folder.iterdir()] == ["state-0002.g2.pt"]


def test_a_running_trial_without_a_lease_is_left_to_any_worker(
    worker: SharedStorage, study: StudyRecord, tmp_path: Path
) -> None:
    trial = held(worker, study)
    worker.hand_back(worker.lease_of(trial))
    lost = adopted_by(worker, study)
    worker.record_epoch(lost, an_epoch(2))
    execute(worker, delete(LeaseRow))
    said = "trial 0 is RUNNING and nobody has its lease, so that nobody can take it over; any worker takes it over"
    assert f"{study.name}: {said}" in mended(worker, tmp_path)
    with pytest.raises(Exception, match="no longer this worker's"):
        worker.record_epoch(lost, an_epoch(3))
    lease = adopted_by(worker, study)
    assert (lease.trial_id, lease.generation) == (lost.trial_id, 3)
    worker.record_epoch(lease, an_epoch(3))


def test_a_trial_that_somebody_else_told_is_settled(worker: SharedStorage, study: StudyRecord, tmp_path: Path) -> None:
    trial = held(worker, study)
    optuna_study(RDBStorage(worker.backend.url), study).tell(trial.number, 0.75)
    said = "trial 0 is COMPLETE and was never settled: somebody else told it; settled as complete"
    assert f"{study.name}: {said}" in mended(worker, tmp_path)
    [row] = rows(worker, TrialRow)
    assert (row.outcome, row.reason, rows(worker, LeaseRow)) == ("complete", leases.TOLD_ELSEWHERE, [])


@pytest.mark.parametrize(
    ("outcome", "state"), [(Outcome.OUT_OF_MEMORY, TrialState.FAIL), (Outcome.COMPLETE, TrialState.RUNNING)]
)
def test_a_settled_trial_that_still_runs_ends_or_where_its_value_is_unknown_goes_on(
    worker: SharedStorage, study: StudyRecord, tmp_path: Path, outcome: Outcome, state: TrialState
) -> None:
    held(worker, study)
    execute(worker, update(TrialRow).values(outcome=outcome, settlement=new_uuid()))
    assert f"{study.name}: trial 0 is settled as {outcome.text} and still RUNNING" in mended(worker, tmp_path)[0]
    assert worker.get_all_trials(study.study_id)[0].state == state
    if state == TrialState.RUNNING:
        assert adopted_by(worker, study).generation == 2


def test_a_lease_without_a_ticket_or_of_a_settled_trial(
    worker: SharedStorage, study: StudyRecord, tmp_path: Path
) -> None:
    held(worker, study)
    held(worker, study)
    with worker.backend.write() as session:
        session.execute(delete(TrialRow).where(TrialRow.trial_id == 1))
        session.execute(update(TrialRow).values(outcome=Outcome.PRUNED))
        session.execute(update(models.TrialModel).where(models.TrialModel.trial_id == 2).values(state="PRUNED"))
    assert wrong(worker, tmp_path) == [
        f"{study.name}: trial 0 is leased and has no ticket",
        f"{study.name}: trial 1 is settled and still leased",
        f"{study.name}: taken is 2, spent_epochs is 2",
    ]
    # The ticket makes the counter right, and the lease that ends leaves an owner to end.
    assert mended(worker, tmp_path)[2:] == [
        f"{study.name}: owner 1 of trial 1 has no lease and never ended; its ending is settled"
    ]
    assert fresh(worker, study).taken == 2


def test_counters_are_what_the_rows_say(worker: SharedStorage, study: StudyRecord, tmp_path: Path) -> None:
    run_trial(worker, study)
    held(worker, study)
    execute(worker, update(StudyRow).values(taken=7, returned=3, spent_epochs=1, spent_seconds=0.1))
    [said] = mended(worker, tmp_path)
    assert said == (
        f"{study.name}: returned is 3, taken is 7, spent_epochs is 1, spent_seconds is 0.1; "
        "returned is 0, taken is 2, spent_epochs is 2, spent_seconds is 0.5"
    )
    now = fresh(worker, study)
    assert (now.taken, now.returned, now.spent_seconds) == (2, 0, 0.5)


def test_owners_that_never_ended(worker: SharedStorage, study: StudyRecord, tmp_path: Path) -> None:
    run_trial(worker, study)
    worker.hand_back(worker.lease_of(held(worker, study)))
    worker.hand_back(adopted_by(worker, study))
    held(worker, study)
    before = [(row.trial_id, row.generation, row.ending) for row in rows(worker, OwnerRow)]
    execute(worker, update(OwnerRow).values(ending=None, ended_at=None))
    assert len(mended(worker, tmp_path)) == 3
    after = [(row.trial_id, row.generation, row.ending) for row in rows(worker, OwnerRow)]
    assert [ending for *_, ending in sorted(after)] == ["settled", "died", "handed_back", None]
    assert [key[:2] for key in sorted(after)] == [key[:2] for key in sorted(before)]


def test_a_worker_that_was_killed_leaves_nothing_to_be_mended(
    worker: SharedStorage, study: StudyRecord, tmp_path: Path
) -> None:
    """Its row says when it was seen last, and its place is free."""
    workers.register(worker, new_uuid(), study.study_id, [workers.Place("gpu", "GPU-1/0")])
    execute(worker, update(WorkerRow).values(last_seen=WorkerRow.last_seen - 1000))
    assert wrong(worker, tmp_path) == []


def test_rows_of_what_is_gone_are_deleted(sqlite_url: str, tmp_path: Path) -> None:
    """As a client leaves them that heeds neither foreign keys nor triggers, or a hand that deletes rows."""
    worker = worker_on(sqlite_url)
    gone, stays = make_study(worker), make_study(worker)
    run_trial(worker, gone)
    run_trial(worker, stays)
    engine = worker.backend.engine
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        triggers = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all()
        for trigger in triggers:
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.exec_driver_sql("DELETE FROM studies WHERE study_id = ?", (gone.study_id,))
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    found = wrong(worker, tmp_path)
    assert {what for what in found if "trials" in what} >= {"1 row of trials of studies or trials that are gone"}
    assert all("that are gone" in what for what in found)
    mended(worker, tmp_path)
    assert [row.study_id for row in rows(worker, StudyRow)] == [stays.study_id]
    assert [row.study_id for row in rows(worker, models.TrialModel)] == [stays.study_id]
    assert len(rows(worker, models.TrialIntermediateValueModel)) == 1


def test_a_damaged_file_is_said_to_be(sqlite_url: str, tmp_path: Path) -> None:
    worker = worker_on(sqlite_url)
    file = tmp_path / "study.db"
    with worker.backend.read() as session:
        page = session.connection().exec_driver_sql(
            "SELECT rootpage FROM sqlite_master WHERE name = 'trial_heartbeats'"
        )
        root, size = page.scalar_one(), session.connection().exec_driver_sql("PRAGMA page_size").scalar_one()
    with worker.backend.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    worker.backend.engine.dispose()
    with open(file, "r+b") as database:
        database.seek((root - 1) * size)
        database.write(b"\xff" * size)
    found = checking.check(worker_on(sqlite_url), tmp_path, mend=True)
    assert [("the file is damaged" in line.what, line.mended) for line in found.lines] == [(True, False)]
    assert found.notes == ["nothing else was looked at: a damaged file answers wrongly"]


# -- Beside workers


def test_what_is_right_again_by_then_is_not_mended(worker: SharedStorage, study: StudyRecord) -> None:
    """Between the look and the lock its owner has settled it."""
    trial = held(worker, study)
    execute(worker, update(TrialRow).values(outcome=Outcome.LOST), update(StudyRow).values(taken=5))
    [torn, counter] = checking.look(worker, checking.FINDERS)
    execute(worker, update(TrialRow).values(outcome=None), update(StudyRow).values(taken=1))
    assert [checking.mend(worker, fault) for fault in (torn, counter)] == [False, False]
    worker.record_epoch(worker.lease_of(trial), an_epoch(2))


def test_a_claim_in_the_middle_of_mending_waits_for_it(postgres_url: str) -> None:
    """The counter is set to what was counted a moment before."""
    worker, other = worker_on(postgres_url), worker_on(postgres_url)
    study = make_study(worker)
    run_trial(worker, study)
    execute(worker, update(StudyRow).values(taken=3))
    [fault] = checking.look(worker, checking.FINDERS)
    claim = threading.Thread(target=lambda: optuna_study(other, study).ask())
    waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

    def waiting() -> bool:
        with worker.backend.read() as session:
            return bool(session.scalar(waits))

    def meanwhile(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("UPDATE dialin_studies") and threading.current_thread() is not claim and not claim.ident:
            claim.start()
            wait_until(lambda: waiting() or not claim.is_alive())

    event.listen(worker.backend.engine, "before_cursor_execute", meanwhile)
    assert checking.mend(worker, fault)
    claim.join()
    assert fresh(worker, study).taken == 2


def test_mending_beside_workers_finds_nothing_and_breaks_nothing(
    storage_url: str, worker: SharedStorage, crew: Crew, tmp_path: Path
) -> None:
    study = make_study(worker, trials=12, first=4)
    said = crew(claim_beside_mending, storage_url, study.name, str(tmp_path))
    assert sum(ran for ran, _ in said) == 12
    assert [line for _, found in said for line in found] == []
    assert len(said) == PROCESSES
    assert wrong(worker, tmp_path) == []


# -- The command


def test_the_command_says_what_is_wrong_and_mends_it(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, inside = worker_on(sqlite_url), Inside(capsys, monkeypatch)
    study = make_study(worker)
    held(worker, study)
    monkeypatch.setenv("DIALIN_STORAGE", sqlite_url)
    assert inside("storage", "check").out.endswith(f"nothing is wrong with {sqlite_url}\n")
    execute(worker, update(StudyRow).values(taken=3))
    said = inside("storage", "check")
    assert said.status == 1
    assert f"{study.name}: taken is 3; mending: taken is 1" in said.out
    assert f"1 thing is wrong in {sqlite_url}; --mend puts 1 of them right" in said.out
    said = inside("storage", "check", "--json")
    assert (said.status, json.loads(said.out)[0]["mended"]) == (1, False)
    said = inside("storage", "check", "--mend")
    assert (said.status, said.out.splitlines()[0]) == (0, f"{study.name}: taken is 3; mended: taken is 1")
    assert inside("storage", "check").status == 0
