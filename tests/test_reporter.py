"""A trial's way to the database and the disk: epochs, checkpoints, verdicts, and what an adopter finds."""

from __future__ import annotations

import json
import math
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from halving import make
from optuna.pruners import SuccessiveHalvingPruner
from reporter_bench import EPOCHS, Bench, Loser, bench_on, report, result, state
from sqlalchemy.exc import OperationalError
from studies import engines_disposed, rows

from search import checkpoints, pace
from search.judge import Judge
from search.outbox import Outbox
from search.reporter import TrialReporter
from search.reporting import Verdict
from storage import pausing, steering
from storage.claims import Checkpoint, Lease, LeaseLost
from storage.shared import open_storage


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Iterator[Bench]:
    with engines_disposed():
        yield bench_on(sqlite_url, tmp_path / "files")


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is due after every epoch, however short."""
    monkeypatch.setattr(pace, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(pace, "TRAINING_SHARE", 0.0)


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

    @pytest.mark.usefixtures("every_epoch")
    def test_the_last_checkpoint_leaves_no_file_that_nothing_records(self, bench: Bench) -> None:
        to = bench.reporter()
        report(to, 1, 2, 3)
        bench.interrupt.request("Ctrl-C")
        report(to, 4)
        assert bench.files() == ["state-0003.g1.pt", "state-0004.g1.pt"]

    def test_a_study_that_was_stopped_gets_no_epoch_beyond_the_one_in_flight(self, bench: Bench) -> None:
        steering.stop(bench.storage, bench.record.study_id, "by a test", "bo")
        assert report(bench.reporter(), 1) == [Verdict.HAND_BACK]
        assert bench.interrupt.reason == "the study was stopped"
        assert bench.files() == ["state-0001.g1.pt"], "whoever resumes goes on after it"

    def test_a_trial_whose_last_epoch_the_stop_finds_in_flight_is_whole(self, bench: Bench) -> None:
        steering.stop(bench.storage, bench.record.study_id, "by a test", "bo")
        assert report(bench.reporter(), EPOCHS) == [Verdict.GO_ON]

    def test_the_pruner_decides_on_all_epochs_up_to_this_one(self, bench: Bench) -> None:
        pruner = Loser(at=3)
        assert report(bench.reporter(pruner), 1, 2, 3) == [Verdict.GO_ON, Verdict.GO_ON, Verdict.PRUNE]
        assert pruner.seen == [dict.fromkeys(range(1, n + 1), 0.5) for n in (1, 2, 3)]

    def test_what_was_not_judged_while_the_database_was_away_is_seen_later(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pruner = Loser(at=9)
        to = bench.reporter(pruner)
        report(to, 1, 2)
        with monkeypatch.context() as patch:
            patch.setattr(Outbox, "behind", True)
            report(to, 3)
        report(to, 4)
        assert [[*seen] for seen in pruner.seen] == [[1], [1, 2], [1, 2, 3, 4]]

    def test_what_another_program_told_stays_as_it_was(self, bench: Bench) -> None:
        optuna.load_study(study_name=bench.record.name, storage=open_storage(bench.url)).tell(bench.trial.number, 0.7)
        told = bench.storage.get_trial(bench.lease.trial_id)
        with pytest.raises(LeaseLost):
            report(bench.reporter(Loser(at=9)), 1)
        assert told.intermediate_values == {}

    def test_what_the_pruner_notes_is_on_record_with_its_epoch(self, bench: Bench) -> None:
        report(bench.reporter(SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)), 1, 2, 3)
        noted = rows(bench.url, "SELECT key, value_json FROM trial_system_attributes ORDER BY key")
        assert noted == [("completed_rung_0", "0.5"), ("completed_rung_1", "0.5")]

    def test_an_adopter_is_judged_by_the_epochs_up_to_its_own(self, bench: Bench) -> None:
        report(bench.reporter(), 1, 2, 3, 4)
        pruner = Loser(at=4)
        assert report(bench.adopted().reporter(pruner), 2) == [Verdict.GO_ON]
        assert pruner.seen == [{1: 0.5, 2: 0.5}]

    def test_an_adopter_that_starts_anew_is_not_paused_before_it_has_caught_up(self, bench: Bench) -> None:
        """A pause leaves what is in its checkpoint: what is on record beyond that would be lost."""
        report(bench.reporter(), 1, 2, 3)
        adopter = bench.adopted()
        judge = Judge(adopter.storage, adopter.trial.study, make_strategy=make)
        assert report(adopter.reporter(judge=judge), 1, 2, 3, 4) == [Verdict.GO_ON] * 3 + [Verdict.PAUSE]
        assert pausing.pause(adopter.storage, adopter.lease)

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
        assert bench.files() == ["state-0001.g1.pt", "state-0002.g2.pt"]

    def test_a_settled_trial_keeps_its_weights_and_no_state(self, bench: Bench) -> None:
        # Its owner dies before it settles the trial.
        bench.reporter().checkpointer.save_weights(1, {"weight": torch.zeros(2)})
        to = bench.adopted().reporter()
        report(to, 1, 2)
        kept = to.checkpointer.save_weights(2, {"weight": torch.zeros(2)})
        assert kept is not None
        assert kept.path == "trial-00000/weights-0002.g2.pt"
        to.checkpointer.discard(kept)
        assert bench.files() == ["weights-0002.g2.pt"]


@pytest.mark.usefixtures("every_epoch")
class TestWithinAnEpoch:
    def within(self, to: TrialReporter, batch: int) -> None:
        to.between_batches(batch, lambda: {"batch": batch})
        to.finish()

    def test_what_is_due_is_recorded_with_its_batch_and_size(self, bench: Bench) -> None:
        to = bench.reporter()
        self.within(to, 3)
        report(to, 1)
        self.within(to, 7)
        path = bench.folder / "state-0001-000007.g1.pt"
        recorded = rows(bench.url, "SELECT epoch, batch, size FROM dialin_checkpoints ORDER BY checkpoint_id")
        assert recorded == [(1, 0, len((bench.folder / "state-0001.g1.pt").read_bytes())), (1, 7, path.stat().st_size)]
        assert bench.files() == ["state-0001-000007.g1.pt", "state-0001.g1.pt"]
        assert bench.adopted().reporter().restore() == {"batch": 7}

    def test_training_goes_on_while_one_is_written(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        may_write, save = threading.Event(), checkpoints.save
        monkeypatch.setattr(checkpoints, "save", lambda *what: (may_write.wait(60), save(*what))[1])
        to = bench.reporter()
        to.between_batches(1, lambda: {"batch": 1})
        to.between_batches(2, lambda: pytest.fail("the one before is still being written"))
        assert to.report(result(1), None) is Verdict.GO_ON
        assert rows(bench.url, "SELECT path FROM dialin_checkpoints") == []
        may_write.set()
        to.finish()
        assert bench.files() == ["state-0000-000001.g1.pt"]

    def test_an_owner_that_must_stop_leaves_what_it_has(self, bench: Bench) -> None:
        to = bench.reporter()
        bench.interrupt.request("SIGTERM")
        bench.interrupt._since = -math.inf  # long ago
        to.between_batches(5, lambda: {"batch": 5})
        assert to.interrupted()
        assert bench.adopted().reporter().restore() == {"batch": 5}

    def test_an_owner_that_lost_its_lease_hears_of_it_and_leaves_nothing(self, bench: Bench) -> None:
        to = bench.reporter()
        bench.adopted()
        self.within(to, 5)
        assert to.interrupted()
        assert bench.interrupt.lost
        assert rows(bench.url, "SELECT path FROM dialin_checkpoints") == []
        assert bench.files() == []

    def test_an_adopter_removes_what_is_on_no_record(self, bench: Bench) -> None:
        self.within(bench.reporter(), 5)
        (bench.folder / "state-0000-000009.g1.pt.partial").write_bytes(b"half")
        (bench.folder / "state-0000-000001.g1.pt").write_bytes(b"superseded")
        bench.adopted().reporter().restore()
        assert bench.files() == ["state-0000-000005.g1.pt"]

    def test_an_adopter_that_was_frozen_leaves_the_next_ones_files(
        self, bench: Bench, every_epoch: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.reporter().report(result(1), lambda: state(1))
        second = bench.adopted()
        look = second.storage.checkpoints

        def frozen(lease: Lease) -> list[Checkpoint]:
            found = look(lease)
            third = second.adopted().reporter()
            third.report(result(2), lambda: state(2))
            third.finish()
            return found

        monkeypatch.setattr(second.storage, "checkpoints", frozen)
        second.reporter().restore()
        assert "state-0002.g3.pt" in bench.files()

    def test_while_the_database_is_away_one_is_kept_for_the_next_epoch(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        to = bench.reporter()
        with monkeypatch.context() as patch:
            patch.setattr(bench.storage, "record_checkpoint", away)
            self.within(to, 1)
            self.within(to, 2)
        assert to.report(result(1), None) is Verdict.GO_ON
        assert bench.adopted().reporter().restore() == {"batch": 2}

    def test_none_is_recorded_after_an_epoch_that_is_not(self, bench: Bench) -> None:
        checkpoint = Checkpoint(1, "state.pt", "0" * 64)
        assert bench.storage.record_checkpoint(bench.lease, checkpoint) is None
        report(bench.reporter(), 1)
        old = [path for (path,) in rows(bench.url, "SELECT path FROM dialin_checkpoints")]
        assert bench.storage.record_checkpoint(bench.lease, checkpoint) == old
        assert bench.storage.record_checkpoint(bench.lease, checkpoint) == []
        assert bench.storage.checkpoints(bench.lease) == [checkpoint]

    def test_what_cannot_be_written_at_all_is_the_objectives_mistake(self, bench: Bench) -> None:
        to = bench.reporter()
        to.between_batches(1, lambda: {"batch": lambda: 1})
        to.checkpointer.wait()
        with pytest.raises((AttributeError, pickle.PicklingError)):
            report(to, 1)


def away(*_: Any) -> None:
    raise OperationalError("INSERT", {}, Exception("the database is away"), connection_invalidated=True)


@pytest.mark.usefixtures("every_epoch")
class TestALimit:
    def test_what_others_can_spare_goes_before_more_is_written(self, bench: Bench) -> None:
        report(bench.reporter(), 1, 2)
        size = (bench.folder / "state-0001.g1.pt").stat().st_size
        bench.limit = 2 * size + size // 2
        report(bench.reporter(), 3)
        assert bench.files() == ["state-0002.g1.pt", "state-0003.g1.pt"]
        bench.limit = size + size // 2
        report(bench.reporter(), 4)
        assert bench.files() == ["state-0004.g1.pt"]
        restored = bench.adopted().reporter().restore()
        assert restored is not None
        assert restored["epoch"] == 4

    def test_where_none_fits_training_goes_on_without(self, bench: Bench) -> None:
        bench.limit = 10
        assert report(bench.reporter(), 1, 2, 3) == [Verdict.GO_ON] * 3
        assert bench.files() == []
