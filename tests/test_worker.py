"""What a worker makes of a trial: every way it can end, what is on record then, and where a person's prints go."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command import Dialin
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from storage_places import optuna_study
from studies import OBJECTIVES, TINY, TINY_TEXT, Inside, engines_disposed, place_for_a_module, rows, trials, value

from search.assignment import Assignment
from search.devices import Slot
from search.interrupt import Interrupt
from search.keeper import LeaseKeeper
from search.reporting import Interrupted
from search.trainer import Trainer
from search.worker import Worker
from storage import studies
from storage.claims import Lease
from storage.queries import SettledTrial
from storage.shared import open_storage
from storage.studies import StudySpec

MOODY = OBJECTIVES / "moody.py"
BROKEN = TINY_TEXT.replace(
    "def model(trial: Trial) -> nn.Module:\n",
    "class Late(nn.Module):\n"
    "    calls = 0\n\n"
    "    def forward(self, points):\n"
    "        self.calls += 1\n"
    "        if self.calls > 5:\n"
    '            raise RuntimeError("the tide is out")\n'
    "        return points\n\n\n"
    "def model(trial: Trial) -> nn.Module:\n",
).replace("nn.Sequential(", "nn.Sequential(Late(), ")


@dataclass(frozen=True)
class Moody:
    """A study whose trials 0 to 4 each had an accident."""

    folder: Path
    url: str
    run: CompletedProcess[str]
    trials: list[FrozenTrial]

    def log(self, number: int) -> str:
        [log] = self.folder.glob(f"dialin-files/*/trial-{number:05d}/log.txt")
        return log.read_text()


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moody]:
    with place_for_a_module(tmp_path_factory) as folder:
        dialin = Dialin(folder)
        url = f"sqlite:///{folder / 'dialin.db'}"
        run = dialin("run", MOODY, "--workers", 1, "--pruner", "none", "--seed", 3, "--no-transfer")
        yield Moody(folder, url, run, trials(url, "moody-1"))


class TestEndings:
    def test_a_study_with_accidents_ends_with_its_budget(self, moody: Moody) -> None:
        assert moody.run.returncode == 0, moody.run.stderr
        assert [trial.number for trial in moody.trials] == [*range(7)], "six trials and one that did not count"
        assert value(moody.url, "SELECT taken FROM dialin_studies") == 6
        assert "6/6 trials, 3 complete, 1 diverged, 2 out of memory, 1 error; finished" in moody.run.stdout

    def test_an_error_returns_its_ticket_and_keeps_its_place(
        self, moody: Moody, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trial = moody.trials[1]
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["outcome"] == "error"
        line = 1 + MOODY.read_text().splitlines().index('    raise ValueError("no such colour")')
        assert trial.user_attrs["reason"] == f"{MOODY}:{line}: ValueError: no such colour"
        status = Inside(capsys, monkeypatch)("status", "--storage", moody.url)
        for told in (trial.user_attrs["traceback"], moody.log(1), status.out):
            assert "Traceback (most recent call last)" in told
            assert 'raise ValueError("no such colour")' in told
            assert "search/training.py" not in told
        assert f"trial 1 error: {MOODY}:{line}: ValueError: no such colour" in moody.run.stdout
        assert value(moody.url, "SELECT returned FROM dialin_studies") == 1

    def test_a_loss_that_is_no_number_is_a_bad_point_and_no_error(self, moody: Moody) -> None:
        trial = moody.trials[2]
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["outcome"] == "diverged"
        assert trial.user_attrs["reason"] == "train_loss is nan in epoch 3"
        assert [*trial.intermediate_values] == [1, 2, 3]
        assert math.isnan(trial.intermediate_values[3])
        assert math.isfinite(trial.intermediate_values[2])

    @pytest.mark.parametrize("number", [3, 4])
    def test_out_of_memory_ends_that_trial_only(self, moody: Moody, number: int) -> None:
        trial = moody.trials[number]
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["outcome"] == "out_of_memory"
        assert trial.user_attrs["reason"].startswith("out of memory at batch size 32: ")
        assert "traceback" not in trial.user_attrs

    def test_the_others_are_complete(self, moody: Moody) -> None:
        complete = [trial.number for trial in moody.trials if trial.state == TrialState.COMPLETE]
        assert complete == [0, 5, 6]


class TestOnRecord:
    def test_plain_optuna_sees_every_epoch_and_what_it_cost(self, moody: Moody) -> None:
        trial = moody.trials[0]
        assert [*trial.intermediate_values] == [1, 2, 3, 4]
        assert trial.value == max(trial.intermediate_values.values()), "the best epoch's"
        attrs = trial.user_attrs
        assert (attrs["outcome"], attrs["device"], attrs["epochs"]) == ("complete", "cpu", 4)
        assert attrs["seconds"] > 0
        assert trial.intermediate_values[attrs["best_epoch"]] == trial.value
        assert attrs["lr"] == attrs["settings"]["lr"] == 0.01
        assert attrs["model"] == {"width": trial.params["width"]}

    def test_every_metric_of_every_epoch_is_kept(self, moody: Moody) -> None:
        kept = rows(
            moody.url,
            "SELECT e.metrics, e.samples, e.device FROM dialin_epochs e JOIN trials t USING (trial_id) "
            "WHERE t.number = 0 ORDER BY e.epoch",
        )
        assert len(kept) == 4
        for metrics, samples, device in kept:
            assert {*json.loads(metrics)} == {"accuracy", "train_loss", "lr"}
            assert (samples, device) == (96, "cpu")

    def test_without_transfer_a_study_starts_from_momentum_adam_and_adamw_at_their_base_rates(
        self, moody: Moody
    ) -> None:
        first = [(trial.user_attrs["settings"]["optimizer"], trial.user_attrs["lr"]) for trial in moody.trials[:3]]
        assert first == [("momentum", 0.01), ("adam", 0.001), ("adamw", 0.001)]

    def test_no_state_checkpoint_is_left_of_a_settled_trial(self, moody: Moody) -> None:
        assert [*moody.folder.rglob("state-*.pt")] == []
        assert [*moody.folder.rglob("weights-*.pt")] != []

    def test_what_a_person_prints_goes_to_the_trials_log(self, moody: Moody) -> None:
        for way in ("print", "a descriptor", "a child", "C"):
            assert f"hello from {way}\n" in moody.log(0)
        assert "hello" not in moody.run.stdout + moody.run.stderr


class TestABrokenObjective:
    def test_three_errors_in_a_row_stop_the_study_and_say_why(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "broken.py").write_text(BROKEN)
        run = inside("run", "broken.py", "--workers", 1, "--pruner", "none")
        assert run.status == 1
        why = "3 trials in a row ended in an error, the last: broken.py:18: RuntimeError: the tide is out"
        assert why in run.out
        assert "  dialin logs broken-1 2\n" in run.out
        status = inside("status")
        assert status.status == 0
        assert why in status.out
        url = f"sqlite:///{tmp_path / 'dialin.db'}"
        outcomes = [trial.user_attrs["outcome"] for trial in trials(url, "broken-1") if trial.state.is_finished()]
        assert outcomes == ["error"] * 3
        assert value(url, "SELECT taken FROM dialin_studies") == 0

    def test_a_study_goes_on_once_it_is_mended(self, inside: Inside, tmp_path: Path) -> None:
        path = tmp_path / "broken.py"
        path.write_text(BROKEN)
        assert inside("run", "broken.py", "--workers", 1, "--pruner", "none", "--trials", 3).status == 1
        path.write_text(TINY_TEXT)
        assert inside("resume", "--objective", "broken.py", "--workers", 1).status == 0
        found = trials(f"sqlite:///{tmp_path / 'dialin.db'}", "broken-1")
        assert [trial.state for trial in found] == [TrialState.FAIL] * 3 + [TrialState.COMPLETE] * 3


def test_a_trial_told_elsewhere_is_let_go_also_where_its_checkpoints_writer_sees_it_first(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, folder = (Slot(("cpu",), 0, None),), tmp_path / "files"
    spec = StudySpec(str(TINY), "", "accuracy", "maximize", epochs=2, trials=1, seed=0, sampler="random", pruner="none")

    def train(trainer: Trainer, trial: Trial, _lease: Lease, own: Path, _keeper: LeaseKeeper) -> SettledTrial:
        own.mkdir(parents=True, exist_ok=True)
        (own / "state-0001.g1.pt").touch()
        optuna_study(RDBStorage(sqlite_url), record).tell(trial.number, 0.125)
        trainer.interrupt.lose("it was settled or deleted elsewhere")
        raise Interrupted

    monkeypatch.setattr(Trainer, "train", train)
    with engines_disposed():
        record = studies.create(open_storage(sqlite_url), spec, stem="told")
        Worker(Assignment(sqlite_url, record.name, str(TINY), place, 1, folder, tmp_path), Interrupt()).work()
    assert rows(sqlite_url, "SELECT * FROM dialin_leases") == []
    assert value(sqlite_url, "SELECT outcome FROM dialin_trials") == "complete"
    assert not [*folder.rglob("state-*.pt")]
    assert caplog.messages == ["trial 0: another program told it COMPLETE; going on with another"]
