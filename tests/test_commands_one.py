"""`dialin train` and `dialin try`: one recipe, in the foreground or next in a study."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from command import DIALIN, Dialin
from studies import TINY, TINY_TEXT, Inside, assert_settled, trials

FUNCTION = """\
def objective(trial):
    x = trial.suggest_float("x", 0.0, 4.0)
    return (x - 1) ** 2
"""
OWN_LOOP = """\
from search import Objective


def train(run):
    print("rate", run.recipe.lr, "layers", run.trial.suggest_int("layers", 1, 5))
    for epoch in run.epochs:
        run.report(score=epoch / 10)


objective = Objective(train=train, metric="score", direction="maximize", epochs=3)
"""


class TestTrain:
    def test_one_recipe_is_trained_here_with_a_line_an_epoch(self, inside: Inside, tmp_path: Path) -> None:
        settings = ("lr=0.02", "optimizer=adam", "batch_size=10", "width=6")
        said = inside("train", TINY, *settings, "--epochs", 3, "--weights", "best.pt", "--device", "cpu")
        assert said.status == 0, said.err
        lines = said.out.splitlines()
        assert lines[0] == "adam lr 0.02 beta1 0.9 beta2 0.999 L2 1e-4 batch 10 onecycle"
        assert lines[1] == "the model's own: width 6"
        assert lines[2] == "96 training and 64 validation samples, 44 parameters, on cpu, seed 0"
        epochs = [re.match(r"epoch (\d)/3  accuracy (0\.\d{4})  loss ", line) for line in lines[3:6]]
        assert [match and match.group(1) for match in epochs] == ["1", "2", "3"]
        best = max(match.group(2) for match in epochs if match)
        assert lines[6].startswith(f"best: accuracy {best} in epoch ")
        weights = torch.load(tmp_path / "best.pt", weights_only=True)
        assert weights["0.weight"].shape == (6, 4)
        assert [path.name for path in tmp_path.iterdir()] == ["best.pt"], "no database, no files"

    def test_the_same_words_and_seed_train_the_same_and_another_seed_does_not(self, inside: Inside) -> None:
        def curve(*more: object) -> list[str]:
            said = inside("train", TINY, "--epochs", 2, "--device", "cpu", *more)
            return re.findall(r"train_loss (\S+)", said.out)

        assert curve() == curve("--seed", 0) != curve("--seed", 1)

    def test_what_nobody_gave_of_the_models_is_the_middle_and_said(self, inside: Inside) -> None:
        said = inside("train", TINY, "--epochs", 1, "--device", "cpu")
        assert said.out.splitlines()[1] == "the model's own: width 6 (each at the middle of its range)"

    def test_a_debugger_works_and_prints_are_seen(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(TINY_TEXT.replace("    width = trial", "    breakpoint()\n    width = trial"))
        ended = subprocess.run(
            [DIALIN, "train", "mine.py", "--epochs", "1", "--device", "cpu"],
            cwd=tmp_path,
            input="p 6 * 7\nc\n" * 20,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "TERM": "dumb"},
        )
        assert ended.returncode == 0, ended.stderr
        assert "(Pdb) 42" in ended.stdout
        assert "best: accuracy" in ended.stdout

    def test_a_mistake_shows_the_persons_frames_only(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(TINY_TEXT.replace("nn.Linear(width, 2)", "nn.Linear(width + 1, 2)"))
        said = inside("train", "mine.py", "--device", "cpu")
        assert said.status == 2
        assert said.err.splitlines()[-1].startswith("dialin: ")
        assert "mat1 and mat2 shapes cannot be multiplied" in said.err
        assert "search/" not in said.err

    def test_ctrl_c_ends_it_with_the_best_so_far(self, dialin: Dialin, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(TINY_TEXT)
        running = dialin.start("train", "mine.py", "--epochs", 200000, "--weights", "w.pt", "--device", "cpu")
        running.wait_for("epoch      2/200000")
        running.interrupt()
        assert running.wait() == 130
        assert "interrupted\nbest: accuracy 0." in running.stdout
        assert "weights are in w.pt" in running.stdout
        assert (running.stderr, (tmp_path / "w.pt").is_file()) == ("", True)

    def test_an_own_loop_gets_the_recipe_and_its_knobs(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "loop.py").write_text(OWN_LOOP)
        said = inside("train", "loop.py", "lr=0.5", "layers=2", "--device", "cpu")
        assert said.status == 0, said.err
        assert "rate 0.5 layers 2" in said.out
        assert "epoch 3/3  score 0.3000" in said.out
        assert "best: score 0.3000 in epoch 3" in said.out

    def test_a_bare_function_runs_once(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "old.py").write_text(FUNCTION)
        said = inside("train", "old.py:objective", "x=3", "--device", "cpu")
        assert said.status == 0, said.err
        assert "best: value 4.0000" in said.out

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("lr=fast",), "lr is a number, but got 'fast'"),
            (("lr",), "'lr' is not NAME=VALUE: write it as lr=0.05"),
            (("widht=5",), "did you mean width?"),
            (("beta1=0.9",), "beta1 is only for optimizer adam, adamw, nadam, radam: choose one too"),
            (("--device", "gpu"), "--device is cpu or the number of a GPU, but got 'gpu'"),
            (("--weights", "no/where.pt"), "cannot write no/where.pt: there is no such folder"),
        ],
    )
    def test_a_slip_is_one_line(self, inside: Inside, words: tuple[str, ...], said: str) -> None:
        ended = inside("train", TINY, *words)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert said in ended.err


class TestTry:
    def test_a_study_tries_what_a_person_asks_for_and_samples_the_rest(self, inside: Inside, either_url: str) -> None:
        at = ("--storage", either_url)
        assert inside("run", TINY, "--trials", 3, "--workers", 1, *at).status == 0
        tried = inside("try", "tiny-1", "lr=0.05", "optimizer=momentum", "width=7", "--objective", TINY, *at)
        assert tried.status == 0, tried.err
        resume = f"dialin resume tiny-1 --objective {TINY}"
        assert tried.out.splitlines() == [
            "trial 3 of tiny-1 waits with lr=0.05 optimizer=momentum width=7; the rest is sampled",
            f"the budget of 3 trials is spoken for: {resume} --trials +1 makes room for it",
        ]
        more = ("resume", "--objective", TINY, "--workers", 1, "--trials", "+1")
        assert inside(*more, *at).status == 0
        trial = assert_settled(either_url, "tiny-1", 4)[3]
        settings = trial.user_attrs["settings"]
        assert (settings["lr"], settings["optimizer"]) == (pytest.approx(0.05), "momentum")
        assert (trial.params["width"], settings["batch_size"] in (16, 32, 64, 128)) == (7, True)

    def test_a_study_that_was_narrowed_is_asked_in_its_own_terms(self, inside: Inside, sqlite_url: str) -> None:
        at = ("--storage", sqlite_url, "--objective", TINY)
        run = ("run", TINY, "--trials", 1, "--workers", 1, "--range", "lr=0.01:0.1", "--fix", "optimizer=sgd")
        assert inside(*run, *at[:2]).status == 0
        assert inside("try", "lr=0.02", "optimizer=sgd", *at).status == 0, "the newest study"
        assert trials(sqlite_url, "tiny-1")[1].system_attrs["fixed_params"] == {"lr": 0.02}
        refused = inside("try", "lr=0.5", *at)
        assert (refused.status, "lr=0.5 is outside what this study searches: 0.01 .. 0.1" in refused.err) == (2, True)
        unsaid = inside("try", "tiny-1", *at)
        assert (unsaid.status, "say what to try" in unsaid.err) == (2, True)
        assert len(trials(sqlite_url, "tiny-1")) == 2, "nothing was enqueued by a mistake"

    def test_the_rate_needs_its_optimizer(self, inside: Inside, sqlite_url: str) -> None:
        at = ("--storage", sqlite_url)
        assert inside("run", TINY, "--trials", 1, "--workers", 1, *at).status == 0
        refused = inside("try", "tiny-1", "lr=0.05", "--objective", TINY, *at)
        assert refused.status == 2
        assert "lr=0.05 depends on the optimizer: name it too, as in optimizer=momentum" in refused.err
        elsewhere = inside("try", "tiny-1", "lr=0.05", *at)
        assert "dialin try tiny-1 lr=0.05 --objective" in elsewhere.err


def test_the_version_is_printed(inside: Inside) -> None:
    said = inside("--version")
    assert said.status == 0
    assert re.fullmatch(r"dialin \d+\.\d+\S*\n", said.out)
