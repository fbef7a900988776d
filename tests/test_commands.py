"""What a person does with a real search of digits: run it, look at it, take its best parameters and weights."""

from __future__ import annotations

import ast
import csv
import io
import json
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import optuna
import pytest
import torch
import yaml
from command import Dialin, Running
from optuna.trial import TrialState
from studies import TINY, TINY_TEXT, Inside, Said, assert_settled, place_for_a_module, states

from objectives import digits
from search.loading import builtin_objectives
from search.optimizers import OPTIMIZERS
from search.schedules import SCHEDULES

# Far fewer trials and epochs than it is searched with where nothing is said; with this seed two reach 0.97.
TRIALS, EPOCHS, SEED = 12, 9, 1
ALL = f"unconfirmed: best of {TRIALS} noisy draws"


@dataclass(frozen=True)
class Searched:
    """A finished study of digits in an otherwise empty folder, and what the command printed."""

    folder: Path
    run: CompletedProcess[str]

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'dialin.db'}"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    with place_for_a_module(tmp_path_factory) as folder:
        size = ("--trials", TRIALS, "--epochs", EPOCHS, "--seed", SEED)
        yield Searched(folder, Dialin(folder)("run", "digits", *size, timeout=240))


@pytest.fixture
def there(searched: Searched, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Runs a command in the folder of the finished study."""
    monkeypatch.chdir(searched.folder)
    return inside


def parsed(said: Said) -> Any:
    """The JSON that a command printed."""
    assert (said.status, said.err) == (0, "")
    return json.loads(said.out)


class TestRun:
    def test_digits_from_an_empty_folder_reaches_97_percent(self, searched: Searched) -> None:
        assert searched.run.returncode == 0, searched.run.stderr
        found = assert_settled(searched.url, "digits-1", TRIALS)
        assert states(found)[TrialState.PRUNED] > 0
        assert max(trial.value or 0 for trial in found if trial.state == TrialState.COMPLETE) >= 0.97

    def test_it_leaves_a_database_and_a_folder_of_files(self, searched: Searched) -> None:
        left = {path.name for path in searched.folder.iterdir()}
        assert left - {"dialin.db-wal", "dialin.db-shm"} == {"dialin.db", "dialin-files"}

    def test_it_ends_with_the_best_recipe_and_what_to_do_next(self, searched: Searched) -> None:
        out = searched.run.stdout
        [best] = [line for line in out.splitlines() if line.startswith("best: ")]
        assert "accuracy 0.9" in best
        assert " lr " in best
        assert f"({ALL})" in best
        end = out[out.index(best) :]
        for command in ("dialin best digits-1", "dialin resume digits-1 --trials +20", "dialin dashboard"):
            assert command in end

    def test_in_a_pipe_there_is_a_line_a_trial_and_no_control_code(self, searched: Searched) -> None:
        out = searched.run.stdout + searched.run.stderr
        assert "\x1b" not in out
        assert "\r" not in out
        assert sum(line.startswith("[") for line in out.splitlines()) == TRIALS

    def test_one_file_of_weights_is_kept_for_each_of_the_best(self, searched: Searched) -> None:
        kept = [*searched.folder.rglob("*.pt")]
        assert 1 <= len(kept) <= 10
        assert all(path.name.startswith("weights-") for path in kept)


class TestBest:
    def test_every_format_gives_the_same_numbers(self, there: Inside) -> None:
        said = {form: there("best", "--top", 3, "--format", form) for form in ("json", "yaml", "csv")}
        records = json.loads(said["json"].out)
        assert len(records) == 3
        assert yaml.safe_load(said["yaml"].out) == records
        for row, record in zip(csv.DictReader(io.StringIO(said["csv"].out)), records, strict=True):
            assert float(row["value"]) == record["value"]
            assert {name: str(value) for name, value in record["model"].items()} == {
                name.removeprefix("model."): text for name, text in row.items() if name.startswith("model.")
            }
            assert float(row["recipe.lr"]) == record["recipe"]["lr"]
        python = ast.parse(there("best", "--format", "python").out)
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in python.body}  # type: ignore[attr-defined]
        assert values == {"recipe": records[0]["recipe"], "model": records[0]["model"]}
        values_in_order = [record["value"] for record in records]
        assert values_in_order == sorted(values_in_order, reverse=True)
        assert all(record["note"] == ALL for record in records)

    def test_the_table_is_for_people_and_says_what_it_is_worth(
        self, there: Inside, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        table = there("best", "--top", 2).out
        assert ALL in table
        [top] = parsed(there("best", "--format", "json"))
        assert f"{top['value']:.4f}" in table
        assert str(top["recipe"]["optimizer"]) in table

    def test_it_is_the_best_of_what_optuna_has(self, there: Inside, searched: Searched) -> None:
        [top] = parsed(there("best", "--format", "json"))
        complete = [t for t in assert_settled(searched.url, "digits-1", TRIALS) if t.state == TrialState.COMPLETE]
        assert top["value"] == max(trial.value or 0 for trial in complete)

    def test_its_weights_have_the_accuracy_that_was_reported(self, there: Inside) -> None:
        assert there("best", "--weights", "best.pt").status == 0
        [top] = parsed(there("best", "--format", "json"))
        weights = torch.load("best.pt", weights_only=True)
        net = digits.model(optuna.trial.FixedTrial(top["model"]))  # type: ignore[arg-type]
        net.load_state_dict(weights)
        net.eval()
        valid = digits.data(Path()).valid
        assert isinstance(valid, tuple)
        images, classes = valid
        with torch.inference_mode():
            accuracy = (net(images).argmax(1) == classes).float().mean()
        assert float(accuracy) == pytest.approx(top["value"], abs=1e-6)


class TestStatus:
    def test_for_people(self, there: Inside) -> None:
        said = there("status").out
        assert said.startswith(f"digits-1: finished, {TRIALS}/{TRIALS} trials\n")
        assert f"maximize accuracy, {EPOCHS} epochs, auto" in said
        assert "saved by pruning" in said
        assert ALL in said

    def test_for_programs(self, there: Inside, searched: Searched) -> None:
        said = parsed(there("status", "--json"))
        assert (said["study"]["name"], said["state"], said["settled"]) == ("digits-1", "finished", TRIALS)
        assert sum(said["counts"].values()) == TRIALS
        assert said["running"] == said["failures"] == []
        assert said["best"] == {
            key: value
            for key, value in parsed(there("best", "--format", "json"))[0].items()
            if key not in ("note", "confirmed")
        }
        assert said["confirmed"] is None
        found = assert_settled(searched.url, "digits-1", TRIALS)
        trained = sum(len(trial.intermediate_values) for trial in found)
        assert said["epochs_trained"] == trained
        assert said["epochs_saved"] == sum(
            EPOCHS - len(trial.intermediate_values) for trial in found if trial.user_attrs["outcome"] == "pruned"
        )


class TestConfirm:
    def test_the_best_two_are_trained_again_with_two_seeds(
        self, searched: Searched, inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(searched.folder, tmp_path, dirs_exist_ok=True)
        monkeypatch.setenv("COLUMNS", "160")
        said = inside("confirm", "--top", 2, "--seeds", 2)
        assert said.status == 0, said.err
        found = assert_settled(f"sqlite:///{tmp_path / 'dialin.db'}", "digits-1-confirm", 4)
        assert min(trial.value or 0 for trial in found) >= 0.9
        answer = parsed(inside("status", "digits-1", "--json"))["confirmed"]
        tested = [one["accuracy"] for one in answer["test"]["models"]]
        assert (len(tested), min(tested) >= 0.9) == (2, True)
        assert f"test split, opened once, for trial {answer['preferred']}: accuracy 0.9" in said.out
        assert "dialin best digits-1 --weights best.pt" in said.out


class TestDashboard:
    def dashboard(self, start: Callable[..., Running], url: str) -> str:
        """Start one on a free port; its address."""
        running = start("dashboard", "--port", 0, DIALIN_STORAGE=url)
        running.wait_for("http://")
        address = running.stdout[running.stdout.index("http://") :].split()[0]
        assert address.startswith("http://127.0.0.1:")
        return address

    def test_it_answers_on_this_machine_and_lists_the_studies(
        self, start_dialin: Callable[..., Running], inside: Inside, either_url: str
    ) -> None:
        assert inside("run", TINY, "--trials", 2, "--workers", 1, "--storage", either_url).status == 0
        address = self.dashboard(start_dialin, either_url)
        with urllib.request.urlopen(f"{address}/dashboard/", timeout=20) as page:
            assert page.status == 200
        with urllib.request.urlopen(f"{address}/api/studies", timeout=20) as answer:
            listed = json.load(answer)["study_summaries"]
        assert [study["study_name"] for study in listed] == ["tiny-1"]

    def test_a_port_in_use_is_one_line(self, there: Inside) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            second = there("dashboard", "--port", port)
        assert second.status == 2
        assert second.err.startswith(f"dialin: cannot listen on 127.0.0.1:{port} (Address already in use)")
        assert second.err.count("\n") == 1


class TestForAuthors:
    def test_objectives_are_listed_with_what_they_are(self, inside: Inside) -> None:
        said = inside("objectives")
        assert said.status == 0
        for name, text in builtin_objectives().items():
            assert name in said.out
            assert text in said.out
        assert json.loads(inside("objectives", "--json").out) == builtin_objectives()

    def test_the_space_that_is_searched_is_printed(self, inside: Inside) -> None:
        said = inside("objectives", "digits")
        assert said.status == 0
        knobs = {knob["knob"] for knob in json.loads(inside("objectives", "digits", "--json").out)}
        assert {"optimizer", "batch_size", "schedule", "width", "dropout"} <= knobs
        assert all(knob in said.out for knob in knobs)

    def test_check_tries_every_optimizer_and_every_schedule(self, inside: Inside) -> None:
        said = inside("check", "digits")
        assert said.status == 0, said.out
        assert "FAILED" not in said.out
        for name in OPTIMIZERS:
            assert f"optimizer {name}" in said.out
        for name in SCHEDULES:
            assert f"schedule {name}" in said.out
        for told in ("epoch at batch 16", "epoch at batch 128", "memory", "40 trials"):
            assert told in said.out

    def test_check_of_what_does_not_work_fails(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "wide.py").write_text(TINY_TEXT.replace("nn.Linear(width, 2)", "nn.Linear(width, 1)"))
        said = inside("check", "wide.py")
        assert said.status == 2
        assert said.err.startswith("dialin: ")

    def test_what_init_writes_is_a_search(self, inside: Inside, tmp_path: Path) -> None:
        wrote = inside("init", "my_model.py")
        assert wrote.status == 0
        assert "dialin run my_model.py" in wrote.out
        assert inside("run", "./my_model.py", "--trials", 3, "--workers", 2).status == 0
        assert_settled(f"sqlite:///{tmp_path / 'dialin.db'}", "my_model-1", 3)
