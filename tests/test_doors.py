"""The doors of a person's own loop and of bare Optuna functions, through the command with real workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from studies import OBJECTIVES, Inside, assert_settled, meanwhile, rows, states, trials, value, wait_until
from torchvision.datasets import FashionMNIST

from search.portfolio import shipped

LOOP = OBJECTIVES / "own_loop.py"
SCRIPTS = Path(__file__).resolve().parent / "optuna_scripts"

NOTING = """
def objective(trial):
    trial.set_user_attr("model", "resnet18")
    trial.set_user_attr("epochs", 7)
    trial.set_user_attr("note", "mine")
    assert trial.user_attrs == {"model": "resnet18", "epochs": 7, "note": "mine"}
    x = trial.suggest_float("betas", 0, 1)
    trial.report(x, 0)
    return x + ["Adam", "SGD"].index(trial.suggest_categorical("optimizer", ["Adam", "SGD"]))
"""
OWN_OPTIMIZER = """
from search import Objective

def train(run):
    name = run.trial.suggest_categorical("optimizer", ["Adam", "RMSprop"])
    run.trial.suggest_float("rate", 0, 1)
    for epoch in run.epochs:
        run.report(accuracy=len(name) / 10)

objective = Objective(train=train, metric="accuracy", epochs=1, trials=4)
"""


class TestBareFunctions:
    """Three scripts of Optuna's kind, as they are."""

    def test_a_script_that_reports_is_pruned_through_its_reports(self, inside: Inside, either_url: str) -> None:
        script = SCRIPTS / "iris_pruning.py"
        said = inside("run", script, "--workers", 1, "--pruner", "median", "--seed", 1, "--storage", either_url)
        assert said.status == 0, said.err
        assert "12 trials unless --trials says otherwise, as iris_pruning.py says" in said.out
        found = assert_settled(either_url, "iris_pruning-1", 12)
        assert set(states(found)) == {TrialState.COMPLETE, TrialState.PRUNED}
        for trial in found:
            assert sorted(trial.intermediate_values) == [*range(len(trial.intermediate_values))]
            if trial.state == TrialState.COMPLETE:
                assert trial.last_step == 19
                assert trial.value == trial.intermediate_values[19]
        epochs = value(either_url, "SELECT count(*) FROM dialin_epochs")
        assert epochs == sum(len(trial.intermediate_values) for trial in found)

        assert inside("resume", "--objective", script, "--trials", "+1", "--storage", either_url).status == 0
        assert_settled(either_url, "iris_pruning-1", 13)

    def test_a_script_that_reports_nothing_has_exact_budgets_too(self, inside: Inside, either_url: str) -> None:
        script = SCRIPTS / "iris_models.py"
        said = inside("run", f"{script}:objective", "--trials", 7, "--workers", 2, "--storage", either_url)
        assert said.status == 0, said.err
        found = assert_settled(either_url, "iris_models-1", 7)
        assert states(found) == {TrialState.COMPLETE: 7}
        assert "--weights" not in said.out, "there are none"
        assert "epochs," not in inside("status", "--storage", either_url).out.splitlines()[1]
        [best] = json.loads(inside("best", "--format", "json", "--storage", either_url).out)
        assert best["value"] == max(trial.value or 0.0 for trial in found) > 0.9
        assert best["recipe"] == found[best["trial"]].params
        assert value(either_url, "SELECT count(*) FROM dialin_epochs WHERE seconds > 0") == 7

    def test_a_torch_script_trains_on_its_data_in_the_working_folder(
        self, inside: Inside, shared_data: Path, tmp_path: Path, postgres_url: str
    ) -> None:
        shutil.copytree(shared_data / "FashionMNIST", tmp_path / "FashionMNIST", copy_function=os.symlink)
        FashionMNIST(tmp_path, download=True)  # unpacked once: two trials that do it at a time read half a file
        ended = inside("run", SCRIPTS / "fashion_torch.py", "--trials", 2, "--workers", 2, "--storage", postgres_url)
        assert ended.status == 0, ended.err
        found = assert_settled(postgres_url, "fashion_torch-1", 2)
        assert all(0.0 < accuracy < 1.0 for trial in found for accuracy in trial.intermediate_values.values())
        assert {"n_layers", "lr", "optimizer", "n_units_l0"} <= set(found[0].params)

    def test_optuna_itself_runs_the_same_function(self) -> None:
        namespace: dict[str, object] = {"__name__": "imported"}
        exec((SCRIPTS / "iris_pruning.py").read_text(), namespace)
        study = optuna.create_study()
        study.optimize(namespace["objective"], n_trials=2)  # type: ignore[arg-type]  # a script's own names
        assert len(study.trials) == 2

    def test_the_other_direction_can_be_asked_for(self, inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
        (tmp_path / "plain.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
        said = inside("run", "plain.py", "--direction", "maximize", "--trials", 3, "--storage", sqlite_url)
        assert said.status == 0, said.err
        found = assert_settled(sqlite_url, "plain-1", 3)
        [best] = json.loads(inside("best", "--format", "json", "--storage", sqlite_url).out)
        assert best["value"] == max(trial.value or 0.0 for trial in found)
        assert inside("run", "plain.py", "--epochs", 3, "--storage", sqlite_url).err == (
            f"dialin: {tmp_path / 'plain.py'} is a function, which trains as long as it will: leave --epochs out\n"
        )

    def test_a_function_that_raises_stops_the_study_and_shows_its_own_frames(
        self, inside: Inside, sqlite_url: str, tmp_path: Path
    ) -> None:
        (tmp_path / "broken.py").write_text("def objective(trial):\n    return 1 / 0\n")
        said = inside("run", "broken.py", "--workers", 1, "--storage", sqlite_url)
        assert said.status == 1
        assert "broken.py:2: ZeroDivisionError: division by zero" in said.out
        found = trials(sqlite_url, "broken-1")
        assert states(found) == {TrialState.FAIL: 3}
        assert "search/" not in found[0].user_attrs["traceback"]

    def test_it_may_note_and_suggest_whatever_dialin_does(
        self, inside: Inside, sqlite_url: str, tmp_path: Path
    ) -> None:
        (tmp_path / "noting.py").write_text(NOTING)
        arguments = ("noting.py", "--workers", 1, "--pruner", "none", "--storage", sqlite_url)
        assert inside("run", *arguments, "--trials", 2).status == 0
        wrong = ("--objective", "noting.py", "--storage", sqlite_url)
        assert "no trial of noting-1 suggested 'bettas'" in inside("try", "bettas=0.5", *wrong).err
        assert "optimizer cannot be AdamW: trials of noting-1 suggest it among Adam, SGD" in (
            inside("try", "optimizer=AdamW", *wrong).err
        )
        resumed = inside("resume", "--objective", "noting.py", "--trials", "+1", "--storage", sqlite_url)
        assert resumed.status == 0, resumed.err
        found = assert_settled(sqlite_url, "noting-1", 3)
        assert states(found) == {TrialState.COMPLETE: 3}
        assert found[0].user_attrs["own_model"] == "resnet18"
        assert found[0].user_attrs["settings"] == found[0].params

    @pytest.mark.parametrize("raised", ["ValueError('no file \\udcff')", "ValueError('a \\0 byte')", "THEIRS"])
    def test_whatever_it_raises_is_one_trials(
        self, inside: Inside, either_url: str, tmp_path: Path, raised: str
    ) -> None:
        error = "sqlalchemy.exc.OperationalError('SELECT 1', {}, Exception('theirs'))" if raised == "THEIRS" else raised
        (tmp_path / "raising.py").write_text(f"import sqlalchemy.exc\ndef objective(trial):\n    raise {error}\n")
        said = inside("run", "raising.py", "--workers", 1, "--storage", either_url)
        assert "worker cpu/0 failed" not in said.out
        assert "3 trials in a row ended in an error" in said.out
        assert states(trials(either_url, "raising-1")) == {TrialState.FAIL: 3}

    def test_its_time_counts_whether_it_reports_or_not(self, inside: Inside, either_url: str, tmp_path: Path) -> None:
        (tmp_path / "long.py").write_text(
            "import time\nimport optuna\ndef objective(trial):\n    time.sleep(0.5)\n    raise optuna.TrialPruned\n"
        )
        options = ("--trials", 9, "--workers", 1, "--budget", "1s", "--storage", either_url)
        assert inside("run", "long.py", *options).status == 0
        assert len(trials(either_url, "long-1")) <= 2, "on a machine that stalls a single one may take a second"
        assert value(either_url, "SELECT spent_seconds FROM dialin_studies") >= 1.0


class TestOwnLoops:
    def test_a_loop_may_have_an_optimizer_of_its_own(self, inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(OWN_OPTIMIZER)
        assert inside("run", "mine.py", "--workers", 1, "--storage", sqlite_url).status == 0
        resumed = inside("resume", "--objective", "mine.py", "--trials", "+1", "--storage", sqlite_url)
        assert resumed.status == 0, resumed.err
        assert states(assert_settled(sqlite_url, "mine-1", 5)) == {TrialState.COMPLETE: 5}

    def test_a_loop_is_searched_as_anything_else(self, inside: Inside, either_url: str, tmp_path: Path) -> None:
        said = inside("run", LOOP, "--workers", 2, "--pruner", "none", "--storage", either_url)
        assert said.status == 0, said.err
        found = assert_settled(either_url, "own_loop-1", 4)
        assert states(found) == {TrialState.COMPLETE: 4}
        assert [trial.params["optimizer"] for trial in found] == [one.settings["optimizer"] for one in shipped()[:4]]
        for trial in found:
            assert sorted(trial.intermediate_values) == [*range(1, 7)]
            assert trial.value == max(trial.intermediate_values.values())
            assert trial.user_attrs["model"] == {"width": trial.params["width"]}
            assert trial.user_attrs["settings"]["batch_size"] == trial.params["batch_size"]
        assert inside("best", "--weights", "best.pt", "--storage", either_url).status == 0
        weights = torch.load(tmp_path / "best.pt", weights_only=True)
        assert [*weights] == ["0.weight", "0.bias", "3.weight", "3.bias"]
        [log] = [*tmp_path.glob("**/trial-00000/log.txt")] or [*Path.home().glob("**/trial-00000/log.txt")]
        assert log.read_text().count("has ended") == 6

    def test_a_killed_workers_loop_goes_on_from_its_checkpoint(
        self, inside: Inside, either_url: str, tmp_path: Path
    ) -> None:
        (tmp_path / "slow").touch()
        files = tmp_path / "files"
        options = ("--trials", 1, "--epochs", 30, "--workers", 2, "--files", files, "--storage", either_url)
        left_at: list[int] = []

        def kept() -> int:
            return max((epoch for (epoch,) in rows(either_url, "SELECT epoch FROM dialin_checkpoints")), default=0)

        def kill() -> None:
            wait_until(kept, "a checkpoint", 60)
            holder = "SELECT pid FROM dialin_workers JOIN dialin_leases USING (worker_id)"
            os.kill(value(either_url, holder), signal.SIGKILL)
            left_at.append(kept())
            (tmp_path / "slow").unlink()

        with meanwhile(kill):
            run = inside("run", LOOP, *options)
        assert run.status == 0, run.err
        [checkpoint] = left_at
        [trial] = assert_settled(either_url, "own_loop-1", 1)
        assert sorted(trial.intermediate_values) == [*range(1, 31)]
        again = "SELECT min(epoch) FROM dialin_epochs WHERE generation = 2"
        assert value(either_url, again) == checkpoint + 1, "it began again, or left an epoch out"
        [left] = files.glob("*/trial-00000/own.g*/epochs.txt")
        lines = [int(line) for line in left.read_text().split()]
        assert left.parent.name == "own.g2"
        assert lines[0] == 1, "what the owner before left in run.dir was lost"
        assert lines[-1] == 30
