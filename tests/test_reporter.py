"""A trial's way to the database and the disk: epochs, checkpoints, verdicts, and what an adopter finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import Trial
from studies import engines_disposed, rows

from search import reporter
from search.interrupt import Interrupt
from search.reporter import CHECKPOINTS_KEPT, TrialReporter
from search.reporting import EpochResult, Verdict
from storage import studies
from storage.claims import Claimant, Lease, LeaseLost, new_uuid
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec

EPOCHS = 10
SPEC = StudySpec("tiny", "", "accuracy", "maximize", EPOCHS, 5, 0, "tpe", "none")


class Loser(BasePruner):
    """Prunes at one epoch, and keeps what it was shown."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen: list[dict[int, float]] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        self.seen.append(dict(trial.intermediate_values))
        return trial.last_step == self.at


@dataclass
class Bench:
    """One study, its trial 0 under training, and whoever owns it."""

    url: str
    root: Path
    storage: SharedStorage
    record: StudyRecord
    trial: Trial
    lease: Lease
    interrupt: Interrupt

    @property
    def folder(self) -> Path:
        return self.root / "trial-00000"

    def reporter(self, pruner: BasePruner | None = None) -> TrialReporter:
        self.trial.study.pruner = pruner or NopPruner()
        return TrialReporter(
            self.storage,
            self.trial,
            self.lease,
            epochs=EPOCHS,
            folder=self.folder,
            root=self.root,
            device="cpu",
            interrupt=self.interrupt,
        )

    def adopted(self) -> Bench:
        """The same trial, handed back and taken over by another worker."""
        self.storage.hand_back(self.lease)
        return bench_on(self.url, self.root, self.record)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))

    def recorded(self) -> list[Any]:
        return rows(self.url, "SELECT epoch, metrics, generation FROM dialin_epochs ORDER BY epoch")


def bench_on(url: str, root: Path, record: StudyRecord | None = None) -> Bench:
    """A worker's view: a trial of a new study, or one to adopt in this study."""
    storage = open_storage(url, Claimant(new_uuid()))
    if record is None:
        record = studies.create(storage, SPEC, stem="tiny")
        study = optuna.load_study(study_name=record.name, storage=storage)
        trial = study.ask()
        return Bench(url, root, storage, record, trial, storage.lease_of(trial), Interrupt())
    study = optuna.load_study(study_name=record.name, storage=storage)
    lease = storage.adopt(record.study_id)
    assert lease is not None
    return Bench(url, root, storage, record, Trial(study, lease.trial_id), lease, Interrupt())


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Iterator[Bench]:
    with engines_disposed():
        yield bench_on(sqlite_url, tmp_path / "files")


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is due after every epoch, however short."""
    monkeypatch.setattr(reporter, "CHECKPOINT_SECONDS", 0.0)


def result(epoch: int, value: float = 0.5) -> EpochResult:
    return EpochResult(epoch, value, {"accuracy": value, "lr": 0.1}, 0.01, 96)


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "weights": torch.full((3,), float(epoch))}


def report(to: TrialReporter, *epochs: int) -> list[Verdict]:
    return [to.report(result(epoch), lambda epoch=epoch: state(epoch)) for epoch in epochs]  # type: ignore[misc]


class TestEpochs:
    def test_every_epoch_is_recorded_with_its_metrics(self, bench: Bench) -> None:
        assert report(bench.reporter(), 1, 2) == [Verdict.GO_ON] * 2
        assert [(epoch, json.loads(metrics)) for epoch, metrics, _ in bench.recorded()] == [
            (1, {"accuracy": 0.5, "lr": 0.1}),
            (2, {"accuracy": 0.5, "lr": 0.1}),
        ]

    def test_short_epochs_do_not_each_write_a_checkpoint(self, bench: Bench) -> None:
        report(bench.reporter(), 1, 2, 3)
        assert bench.files() == []

    @pytest.mark.usefixtures("every_epoch")
    def test_the_newest_two_checkpoints_are_kept(self, bench: Bench) -> None:
        report(bench.reporter(), 1, 2, 3, 4)
        assert CHECKPOINTS_KEPT == 2
        assert bench.files() == ["state-0003.g1.pt", "state-0004.g1.pt"]

    @pytest.mark.usefixtures("every_epoch")
    def test_after_the_last_epoch_there_is_nothing_to_go_on_with(self, bench: Bench) -> None:
        report(bench.reporter(), EPOCHS)
        assert bench.files() == []

    @pytest.mark.usefixtures("every_epoch")
    def test_a_disk_that_takes_nothing_costs_the_checkpoint_and_not_the_epoch(self, bench: Bench) -> None:
        bench.root.mkdir()
        bench.folder.write_text("a file in the place of the folder")
        assert report(bench.reporter(), 1) == [Verdict.GO_ON]
        assert [epoch for epoch, *_ in bench.recorded()] == [1]
        assert rows(bench.url, "SELECT path FROM dialin_checkpoints") == []


class TestVerdicts:
    def test_a_request_to_end_hands_back_with_a_checkpoint_of_this_epoch(self, bench: Bench) -> None:
        to = bench.reporter()
        report(to, 1)
        bench.interrupt.request("Ctrl-C")
        assert report(to, 2) == [Verdict.HAND_BACK]
        assert bench.files() == ["state-0002.g1.pt"]

    def test_a_study_that_was_stopped_is_noticed_with_the_next_epoch(self, bench: Bench) -> None:
        to = bench.reporter()
        studies.stop(bench.storage, bench.record.study_id, "by a test")
        assert report(to, 1, 2) == [Verdict.GO_ON, Verdict.HAND_BACK]
        assert bench.interrupt.reason == "the study was stopped"

    def test_the_pruner_decides_on_what_is_recorded(self, bench: Bench) -> None:
        pruner = Loser(at=3)
        assert report(bench.reporter(pruner), 1, 2, 3) == [Verdict.GO_ON, Verdict.GO_ON, Verdict.PRUNE]
        assert pruner.seen == [dict.fromkeys(range(1, n + 1), 0.5) for n in (1, 2, 3)]

    def test_an_adopter_is_judged_by_the_epochs_up_to_its_own(self, bench: Bench) -> None:
        report(bench.reporter(), 1, 2, 3, 4)
        pruner = Loser(at=4)
        assert report(bench.adopted().reporter(pruner), 2) == [Verdict.GO_ON]
        assert pruner.seen == [{1: 0.5, 2: 0.5}]

    def test_an_owner_that_lost_its_lease_records_nothing(self, bench: Bench) -> None:
        to = bench.reporter()
        report(to, 1)
        other = bench.adopted()
        with pytest.raises(LeaseLost):
            report(to, 2)
        assert [epoch for epoch, *_ in bench.recorded()] == [1]
        assert report(other.reporter(), 2) == [Verdict.GO_ON]
        assert [generation for *_, generation in bench.recorded()] == [1, 2]


@pytest.mark.usefixtures("every_epoch")
class TestAnAdopter:
    def test_it_goes_on_from_the_newest_checkpoint(self, bench: Bench) -> None:
        report(bench.reporter(), 1, 2)
        restored = bench.adopted().reporter().restore()
        assert restored is not None
        assert restored["epoch"] == 2
        assert torch.equal(restored["weights"], torch.full((3,), 2.0))

    @pytest.mark.parametrize("damage", ["torn", "gone"])
    def test_a_checkpoint_that_cannot_be_read_costs_one_epoch(self, bench: Bench, damage: str) -> None:
        report(bench.reporter(), 1, 2)
        newest = bench.folder / "state-0002.g1.pt"
        newest.write_bytes(newest.read_bytes()[:-1]) if damage == "torn" else newest.unlink()
        restored = bench.adopted().reporter().restore()
        assert restored is not None
        assert restored["epoch"] == 1

    def test_without_any_it_starts_anew(self, bench: Bench) -> None:
        report(bench.reporter(), 1)
        (bench.folder / "state-0001.g1.pt").unlink()
        assert bench.adopted().reporter().restore() is None

    def test_a_file_that_is_not_recorded_is_not_opened(self, bench: Bench) -> None:
        report(bench.reporter(), 1)
        (bench.folder / "state-0009.g1.pt").write_bytes((bench.folder / "state-0001.g1.pt").read_bytes())
        restored = bench.adopted().reporter().restore()
        assert restored is not None
        assert restored["epoch"] == 1

    def test_its_checkpoints_have_names_of_their_own(self, bench: Bench) -> None:
        report(bench.reporter(), 1, 2)
        after = bench.adopted().reporter()
        after.restore()
        report(after, 2)
        assert {"state-0002.g1.pt", "state-0002.g2.pt"} <= {*bench.files()}

    def test_a_settled_trial_keeps_its_weights_and_no_state(self, bench: Bench) -> None:
        to = bench.reporter()
        report(to, 1, 2)
        kept = to.save_weights(2, {"weight": torch.zeros(2)})
        assert kept is not None
        assert kept.path == "trial-00000/weights-0002.g1.pt"
        to.discard()
        assert bench.files() == ["weights-0002.g1.pt"]
