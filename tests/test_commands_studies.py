"""`dialin list`, `show`, `logs`, `watch` and `delete`: what a person does with studies that exist."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from command import Dialin, Running
from storage_places import an_epoch, make_study, optuna_study, worker_on
from studies import (
    OBJECTIVES,
    SLOW,
    TINY,
    Inside,
    engines_disposed,
    meanwhile,
    optuna_url,
    press_ctrl_c,
    rows,
    wait_until,
)

from storage.claims import Settlement
from storage.outcomes import Outcome

MOODY = OBJECTIVES / "moody.py"


def wait_until_it_trains(folder: Path) -> None:
    """Return when some trial of the only study has finished an epoch."""

    def trains() -> bool:
        return any("epoch " in log.read_text() for log in folder.glob("dialin-files/*/trial-*/log.txt"))

    wait_until(trains, "an epoch", 60)


RUN = ("run", TINY, "--workers", 1, "--seed", 1, "--pruner", "none")


class TestList:
    def test_every_study_is_there_the_newest_first_plain_optunas_too(self, inside: Inside, either_url: str) -> None:
        at = ("--storage", either_url)
        assert inside(*RUN, "--trials", 2, *at).status == 0
        theirs = optuna.storages.RDBStorage(optuna_url(either_url))
        plain = optuna.create_study(study_name="plain", storage=theirs)
        plain.tell(plain.ask(), 0.25)
        theirs.remove_session()
        theirs.engine.dispose()
        assert inside(*RUN, "--trials", 3, "--until", 0.01, *at).status == 0
        said = inside("list", *at)
        assert said.status == 0
        heading, *lines = [line.split() for line in said.out.splitlines()]
        assert heading == ["study", "objective", "state", "trials", "best", "started"]
        assert [line[0] for line in lines] == ["tiny-2", "plain", "tiny-1"]
        assert lines[0][1:5] == ["tiny.py", "stopped", "1/3", "accuracy"]
        assert lines[1] == ["plain", "-", "plain", "Optuna", "1", "value", "0.2500", "-"]
        assert lines[2][1:5] == ["tiny.py", "finished", "2/2", "accuracy"]
        assert lines[2][-1] == "ago"
        listed = json.loads(inside("list", "--json", *at).out)
        assert [(one["name"], one["state"]) for one in listed] == [
            ("tiny-2", "stopped"),
            ("plain", "plain Optuna"),
            ("tiny-1", "finished"),
        ]

    def test_a_database_without_studies_says_what_to_type(self, inside: Inside, sqlite_url: str) -> None:
        assert inside(*RUN, "--trials", 1, "--storage", sqlite_url).status == 0
        assert inside("delete", "tiny-1", "--yes", "--storage", sqlite_url).status == 0
        said = inside("list", "--storage", sqlite_url)
        assert (said.status, said.out) == (0, "there is no study yet: start one with `dialin run digits`\n")
        assert json.loads(inside("list", "--json", "--storage", sqlite_url).out) == []


def test_what_is_not_finite_is_null_in_json(
    inside: Inside, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nan.py").write_text(
        "from search import Objective\n"
        "def train(run):\n    for _ in run.epochs:\n        run.report(loss=0.5, other=float('inf'))\n"
        "objective = Objective(train=train, metric='loss', epochs=1)\n"
    )
    at = ("--storage", sqlite_url)
    assert inside("run", "nan.py", "--trials", 1, "--workers", 1, *at).status == 0
    said = inside("show", "--json", *at).out
    assert not {"NaN", "Infinity"} & {*said.replace(",", " ").split()}
    assert json.loads(said)["epochs"][0]["metrics"] == {"loss": 0.5, "other": None}


class TestShow:
    def test_a_trial_on_a_page(self, inside: Inside, either_url: str) -> None:
        at = ("--storage", either_url)
        assert inside(*RUN, "--trials", 2, "--no-transfer", *at).status == 0
        best = json.loads(inside("best", "--json", *at).out)[0]
        assert [best] == json.loads(inside("best", "--format", "json", *at).out)
        page = inside("show", *at)
        assert page.status == 0, page.err
        lines = page.out.splitlines()
        at_epoch = f"in epoch {best['best_epoch']}"
        assert lines[0] == f"tiny-1 trial {best['trial']}: complete, accuracy {best['value']:.4f} {at_epoch}"
        assert " lr " in lines[1]
        assert lines[2] == f"model: width {best['model']['width']}"
        assert "accuracy" in lines
        assert any(line.startswith("train_loss") for line in lines)
        assert any(line.startswith("cost: 4 epochs in 0:0") and "96 samples an epoch, cpu" in line for line in lines)
        assert any("(4 epochs)" in line for line in lines if line.startswith("trained by "))
        assert f"log, its end (all of it: dialin logs tiny-1 {best['trial']}):" in lines
        assert lines[-1].startswith("  ")
        assert max(map(len, lines)) <= 120

        told = json.loads(inside("show", "tiny-1", "1", "--json", *at).out)
        assert (told["trial"], told["state"], len(told["epochs"]), told["owners"][0]["epochs"]) == (1, "complete", 4, 4)
        assert told["recipe"]["optimizer"] == "adam"
        assert Path(told["log"]).is_file()

    def test_a_number_alone_is_a_trial_of_the_newest_study(self, inside: Inside, sqlite_url: str) -> None:
        at = ("--storage", sqlite_url)
        assert inside(*RUN, "--trials", 2, *at).status == 0
        assert inside("show", "1", *at).out.startswith("tiny-1 trial 1: complete")
        assert inside("try", "optimizer=adam", "--objective", TINY, *at).status == 0
        assert inside("show", "2", *at).out.splitlines() == [
            "tiny-1 trial 2: waiting for a worker, which starts it with the values below",
            "optimizer adam",
            "from: asked for",
        ]
        missing = inside("show", "tiny-1", "7", *at)
        assert (missing.status, missing.err.count("\n")) == (2, 1)
        assert "has no trial 7" in missing.err

    def test_a_trial_that_failed_shows_why(self, inside: Inside, sqlite_url: str) -> None:
        at = ("--storage", sqlite_url)
        assert inside("run", MOODY, "--workers", 1, "--pruner", "none", "--seed", 3, *at).status == 0
        page = inside("show", "moody-1", "1", *at).out
        assert page.startswith("moody-1 trial 1: error: ")
        assert "ValueError: no such colour" in page.splitlines()[0]
        log = inside("logs", "moody-1", "1", *at).out
        assert "Traceback (most recent call last)" in log
        diverged = inside("show", "moody-1", "2", *at).out
        assert diverged.startswith("moody-1 trial 2: diverged: train_loss is nan in epoch 3")

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ((0.961, 0.9526), "pruned, accuracy 0.9526 in epoch 2, at best 0.9610 in epoch 1: too slow"),
            ((0.9526, 0.961), "pruned, accuracy 0.9610 in epoch 2: too slow"),
        ],
    )
    def test_a_pruned_trials_value_is_said_with_its_own_epoch(
        self, inside: Inside, sqlite_url: str, values: tuple[float, float], said: str
    ) -> None:
        with engines_disposed():
            worker = worker_on(sqlite_url)
            study = optuna_study(worker, record := make_study(worker))
            trial = study.ask()
            for epoch, value in enumerate(values, start=1):
                worker.record_epoch(worker.lease_of(trial), an_epoch(epoch, value))
            best = 1 + values.index(max(values))
            worker.settle(study, trial, Settlement(Outcome.PRUNED, "too slow", best_epoch=best), max(values))
        page = inside("show", record.name, 0, "--storage", sqlite_url).out
        assert page.splitlines()[0] == f"{record.name} trial 0: {said}"


class TestLogs:
    def test_of_one_trial_and_of_the_last_few(self, inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
        at = ("--storage", sqlite_url)
        assert inside(*RUN, "--trials", 4, *at).status == 0
        whole = inside("logs", "tiny-1", "2", *at)
        assert whole.status == 0
        lines = whole.out.splitlines()
        assert sum(line.startswith("epoch ") for line in lines) == 4
        assert inside("logs", "2", "--tail", 2, *at).out.splitlines() == lines[-2:]
        assert inside("logs", "2", "--follow", *at).out == whole.out, "it has ended: there is nothing to wait for"
        several = inside("logs", *at).out.splitlines()
        assert {line.partition(" | ")[0] for line in several} == {"trial 1", "trial 2", "trial 3"}
        elsewhere = inside("logs", "tiny-1", "2", "--files", tmp_path / "other", *at)
        assert (elsewhere.status, elsewhere.err.count("\n")) == (1, 1)
        assert "trial 2 of tiny-1 has no log: there is no " in elsewhere.err
        assert inside("logs", "tiny-1", "--workers", *at).status == 0

    def test_following_a_study_prints_each_trial_until_all_have_ended(
        self, dialin: Dialin, inside: Inside, tmp_path: Path
    ) -> None:
        begun: list[Running] = []

        def follow() -> None:
            wait_until_it_trains(tmp_path)
            begun.append(dialin.start("logs", "--follow"))
            begun[0].wait_for("trial 0 | epoch ")
            (tmp_path / "hurry").touch()

        with meanwhile(follow):
            assert inside("run", SLOW, "--trials", 3, "--workers", 2).status == 0
        [following] = begun
        assert following.wait() == 0, following.stderr
        lines = following.stdout.splitlines()
        assert lines[-1] == "slow-1: finished"
        assert "\x1b" not in following.stdout
        assert {line.partition(" | ")[0] for line in lines[:-1]} >= {"trial 0", "trial 1"}


class TestWatch:
    def test_a_study_is_watched_from_elsewhere_until_its_end(
        self, dialin: Dialin, inside: Inside, tmp_path: Path
    ) -> None:
        begun: list[Running] = []

        def watch() -> None:
            wait_until_it_trains(tmp_path)
            begun.append(dialin.start("watch"))
            begun[0].wait_for("slow-1: running, 0/3 trials")
            (tmp_path / "hurry").touch()

        with meanwhile(watch):
            assert inside("run", SLOW, "--trials", 3, "--workers", 2).status == 0
        [watching] = begun
        assert watching.wait() == 0, watching.stderr
        lines = watching.stdout.splitlines()
        assert sum(line.startswith("[") for line in lines) == 3, "a line for each trial that ended"
        assert lines[-2] == "slow-1: finished, 3/3 trials"
        assert lines[-1].startswith("best: accuracy ")
        assert "\x1b" not in watching.stdout

    def test_ctrl_c_ends_the_watching_and_nothing_else(self, dialin: Dialin, inside: Inside, tmp_path: Path) -> None:
        def watch() -> None:
            wait_until_it_trains(tmp_path)
            watching = dialin.start("watch")
            watching.wait_for("slow-1: ")
            watching.interrupt()
            assert watching.wait() == 130
            assert "Traceback" not in watching.stderr
            (tmp_path / "watched").touch()
            press_ctrl_c()

        with meanwhile(watch):
            assert inside("run", SLOW, "--workers", 1, "--trials", 50).status == 130
        assert (tmp_path / "watched").exists(), "it ended before"
        assert inside("stop").status == 0
        stopped = inside("watch")
        assert (stopped.status, stopped.out.startswith("slow-1: stopped: by `dialin stop`")) == (0, True)


class TestDelete:
    def test_rows_and_files_go_and_nothing_else(self, inside: Inside, either_url: str, tmp_path: Path) -> None:
        files = tmp_path / "files"
        at = ("--storage", either_url, "--files", files)
        for _ in range(2):
            assert inside(*RUN, "--trials", 2, *at).status == 0
        [first, second] = sorted(path for path in files.iterdir() if path.is_dir())
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_text("kept")
        (first / "link").symlink_to(outside)
        asked = inside("delete", "tiny-1", *at)
        assert (asked.status, asked.err.count("\n")) == (2, 1)
        assert f"--yes deletes tiny-1 with 2 trials and the files in {first}" in asked.err
        assert first.is_dir()
        said = inside("delete", "tiny-1", "--yes", *at)
        assert (said.status, said.out) == (0, "deleted tiny-1\n")
        assert not first.exists()
        assert second.is_dir()
        assert (outside / "precious").read_text() == "kept"
        assert [row[0] for row in rows(either_url, "SELECT study_name FROM studies")] == ["tiny-2"]
        assert len(rows(either_url, "SELECT trial_id FROM dialin_trials")) == 2
        again = inside("delete", "tiny-1", "--yes", *at)
        assert (again.status, "there is no study 'tiny-1': did you mean 'tiny-2'?" in again.err) == (2, True)

    def test_a_folder_that_is_a_link_is_not_followed(self, inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
        assert inside(*RUN, "--trials", 1, "--storage", sqlite_url).status == 0
        [folder] = [path for path in (tmp_path / "dialin-files").iterdir() if path.is_dir()]
        moved = folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(moved)
        assert inside("delete", "tiny-1", "--yes", "--storage", sqlite_url).status == 0
        assert (folder.is_symlink(), any(moved.iterdir())) == (False, True)

    def test_workers_of_a_deleted_study_stop_and_leave_nothing(
        self, dialin: Dialin, inside: Inside, tmp_path: Path
    ) -> None:
        def delete() -> None:
            wait_until_it_trains(tmp_path)
            said = dialin("delete", "slow-1", "--yes")
            assert (said.returncode, said.stdout) == (0, "deleted slow-1\n"), said.stderr

        with meanwhile(delete):
            run = inside("run", SLOW, "--workers", 2, "--trials", 50)
        assert run.status == 1
        assert "was deleted or renamed while it ran" in run.err
        assert [path for path in (tmp_path / "dialin-files").iterdir() if path.is_dir()] == []
