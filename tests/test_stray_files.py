"""Checkpoint files against their records, beside workers that write some."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from sqlalchemy import update
from storage_places import adopted_by, an_epoch, make_study, optuna_study, run_trial, worker_on

from storage import checking, workers
from storage.claims import Checkpoint, Lease, Settlement, new_uuid
from storage.outcomes import Outcome
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import WorkerRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")


@pytest.fixture
def worker(sqlite_url: str) -> SharedStorage:
    return worker_on(sqlite_url)


@pytest.fixture
def study(worker: SharedStorage) -> StudyRecord:
    return make_study(worker)


@pytest.fixture
def lease(worker: SharedStorage, study: StudyRecord) -> Lease:
    """Of trial 0, in training."""
    return worker.lease_of(optuna_study(worker, study).ask())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


def write(root: Path, study: StudyRecord, name: str, trial: int = 0) -> Checkpoint:
    path = root / study.folder / f"trial-{trial:05d}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
    checksum = hashlib.sha256(name.encode()).hexdigest()
    epoch = int(name.partition("-")[2][:4]) if "-" in name else 0
    return Checkpoint(epoch, str(path.relative_to(root / study.folder)), checksum)


def test_a_record_is_forgotten_whose_file_is_not_what_was_recorded(
    worker: SharedStorage, study: StudyRecord, lease: Lease, root: Path
) -> None:
    for epoch, name in enumerate(("state-0001.g1.pt", "state-0002.g1.pt"), start=1):
        worker.record_epoch(lease, an_epoch(epoch), write(root, study, name))
    folder = root / study.folder / "trial-00000"
    assert checking.check(worker, root).lines == []
    (folder / "state-0001.g1.pt").write_text("spoilt")
    found = checking.check(worker, root, mend=True).lines
    assert [line.what for line in found] == [
        f"{study.name}: checkpoint trial-00000/state-0001.g1.pt of trial 0 is not what was recorded: "
        "its SHA-256 is another",
    ]
    assert [checkpoint.epoch for checkpoint in worker.checkpoints(lease)] == [2]
    assert [path.name for path in folder.iterdir()] == ["state-0002.g1.pt"]
    assert checking.check(worker, root).lines == []


def settled_with_weights(worker: SharedStorage, study: StudyRecord, root: Path) -> Path:
    """A new trial's weights, on record."""
    optunas = optuna_study(worker, study)
    trial = optunas.ask()
    weights = write(root, study, "weights-0001.g1.pt", trial.number)
    worker.settle(optunas, trial, Settlement(Outcome.COMPLETE, weights=weights), 0.5)
    return root / study.folder / weights.path


def test_weights_are_forgotten_that_are_gone_from_the_folder_of_a_trial_that_has_ended(
    worker: SharedStorage, study: StudyRecord, root: Path
) -> None:
    gone, left = [settled_with_weights(worker, study, root) for _ in range(2)]
    gone.unlink()
    [found] = checking.check(worker, root, mend=True).lines
    assert found.what == f"{study.name}: weights trial-00000/{gone.name} of trial 0 is not there"
    assert checking.check(worker, root).lines == []
    assert left.exists()


def test_what_is_missing_of_a_trial_in_training_or_without_a_folder_is_not_forgotten(
    worker: SharedStorage, study: StudyRecord, lease: Lease, root: Path
) -> None:
    """Its worker has --files of its own: the study was gone on with from another place."""
    write(root, study, "log.txt")
    worker.record_epoch(lease, an_epoch(1), write(root.parent / "mounted", study, "state-0001.g1.pt"))
    settled_with_weights(worker, study, root)
    settled_with_weights(worker, study, root.parent / "mounted")
    found = checking.check(worker, root, mend=True)
    assert found.lines == []
    assert f"2 recorded checkpoints are not below {root}: in another place" in found.notes[0]
    assert len(worker.checkpoints(lease)) == 1


def test_files_that_nothing_can_record_any_more_are_removed_and_no_others(
    worker: SharedStorage, study: StudyRecord, lease: Lease, root: Path
) -> None:
    worker.record_epoch(lease, an_epoch(1), write(root, study, "state-0001.g1.pt"))
    for name in ("state-0002.g1.pt", "state-0003.g1.pt.partial", "weights-0001.g1.pt", "log.txt", "own.g1"):
        write(root, study, name)
    assert checking.check(worker, root).lines == []  # its owner may record them this moment
    worker.hand_back(lease)
    new = adopted_by(worker, study)
    write(root, study, "state-0002.g2.pt")
    settled = run_trial(worker, study).number
    write(root, study, "state-0001.g1.pt", settled)
    found = checking.check(worker, root, mend=True).lines
    assert [line.what.partition(",")[0] for line in found] == [
        f"{study.name}: trial 0 has 3 files that nothing records",
        f"{study.name}: trial 1 has 1 file that nothing records",
    ]
    left = {path.name for path in (root / study.folder).glob("trial-*/*")}
    assert left == {"state-0001.g1.pt", "state-0002.g2.pt", "log.txt", "own.g1"}
    worker.record_epoch(new, an_epoch(2), Checkpoint(2, "trial-00000/state-0002.g2.pt", "0" * 64))


def test_what_a_copy_of_the_database_has_trained_since_is_left_alone(
    worker: SharedStorage, study: StudyRecord, lease: Lease, root: Path
) -> None:
    """Both have the same folder, and the copy may be the one that people go on with."""
    optuna_study(worker, study).enqueue_trial({"x": 1.0})
    write(root, study, "state-0009.g2.pt")
    write(root, study, "weights-0001.g1.pt", trial=1)
    write(root, study, "weights-0001.g1.pt", trial=2)
    worker.hand_back(lease)
    assert checking.check(worker, root, mend=True).lines == []


def test_nothing_is_forgotten_when_all_that_is_recorded_is_in_another_place(
    worker: SharedStorage, study: StudyRecord, lease: Lease, root: Path
) -> None:
    """The wrong --files were named, or a disk is not mounted."""
    for epoch in (1, 2):
        worker.record_epoch(lease, an_epoch(epoch), write(root, study, f"state-000{epoch}.g1.pt"))
    for file in (root / study.folder / "trial-00000").iterdir():
        file.unlink()
    found = checking.check(worker, root, mend=True)
    assert found.lines == []
    assert f"2 recorded checkpoints are not below {root}: in another place (as --files says)" in found.notes[0]
    assert len(worker.checkpoints(lease)) == 2


def test_files_of_other_machines_and_other_databases_are_left_alone(
    worker: SharedStorage, study: StudyRecord, lease: Lease, root: Path
) -> None:
    worker.record_epoch(lease, an_epoch(1), Checkpoint(1, "trial-00000/state-0001.g1.pt", "0" * 64))
    assert checking.check(worker, root).notes == [
        f"there is no folder {root}: no files were looked at (--files names another)"
    ]
    (root / "theirs-0123abcd" / "trial-00000").mkdir(parents=True)
    mine = worker.lease_of(optuna_study(worker, study).ask())
    worker.record_epoch(mine, an_epoch(1), write(root, study, "state-0001.g1.pt", trial=1))
    workers.register(worker, new_uuid(), study.study_id, [workers.Place("cpu", None)])
    with worker.backend.write() as session:
        session.execute(update(WorkerRow).values(host="another"))
    found = checking.check(worker, root, mend=True)
    assert found.lines == []
    assert found.notes == [
        f"{study.name}: 1 recorded checkpoint is not below {root}: in another place (as --files says), on another "
        "machine, or gone",
        f"{root / 'theirs-0123abcd'}: of no study of this database, but of another one or of a study deleted",
    ]
    assert len(worker.checkpoints(lease)) == 1
    assert (root / "theirs-0123abcd").is_dir()
