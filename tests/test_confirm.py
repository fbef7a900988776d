"""`dialin confirm` and `Search.confirm`: from a finished search to an answer that holds, with real workers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from optuna.trial import FixedTrial
from studies import (
    OBJECTIVES,
    TINY_TEXT,
    USUAL_IMPORTS,
    Inside,
    Said,
    assert_settled,
    engines_disposed,
    meanwhile,
    place_for_a_module,
    press_ctrl_c,
    rows,
    trials,
    value,
    wait_until,
)

import search
from search import children
from search.data import Data
from search.loading import resolve
from storage import studies, workers
from storage.claims import new_uuid
from storage.errors import UsageError
from storage.shared import open_storage

WITH_TEST = TINY_TEXT.replace("valid=0.4", "valid=0.3, test=0.2").replace("epochs=4", "epochs=3")
ONE = ("--workers", 1)
FUNCTION = """\
import torch


def objective(trial):
    trial.set_user_attr("confirms", "what I noted")
    return trial.suggest_float("x", 0.0, 4.0) + float(torch.rand(()))
"""


@pytest.fixture(autouse=True)
def connections() -> Iterator[None]:
    with engines_disposed():
        yield


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """An objective with a test split, in the working folder."""
    (path := tmp_path / "mine.py").write_text(WITH_TEST)
    return path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a search of that objective, three trials, on SQLite."""
    with place_for_a_module(tmp_path_factory) as folder:
        (folder / "mine.py").write_text(WITH_TEST)
        with chdir(OBJECTIVES):
            children.warm_up(USUAL_IMPORTS)
        url = f"sqlite:///{folder / 'study.db'}"
        with engines_disposed():
            found = search.run(folder / "mine.py", storage=url, trials=3, seed=7, pruner="none", workers=1, quiet=True)
            assert found.status.finished
        yield folder


@pytest.fixture
def searched_url(once: Path, tmp_path: Path) -> str:
    """The database of that search, of the test's own, in the working folder with all files."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return f"sqlite:///{tmp_path / 'study.db'}"


def searched(inside: Inside, objective: object, url: str, count: int = 3, *more: object) -> None:
    options = ("--trials", count, "--pruner", "none", "--seed", 7, "--storage", url)
    said = inside("run", objective, *options, *more, *ONE)
    assert said.status == 0, said.err


def refused(said: Said) -> str:
    assert (said.status, said.err.count("\n")) == (2, 1), said.err + said.out
    return said.err


class TestTheAnswer:
    def test_the_best_are_trained_again_ranked_and_the_winner_tested(
        self, inside: Inside, mine: Path, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("DIALIN_FILES", str(tmp_path / "files"))
        searched(inside, mine, postgres_url, 4)
        where = ("--storage", postgres_url)
        said = inside("confirm", "mine-1", "--top", 2, "--seeds", 2, "--objective", mine, *where, *ONE)
        assert said.status == 0, said.err
        assert "mine-1-confirm trains 2 recipes of mine-1, 2 fresh seeds each: 4 trials of 3 epochs" in said.out
        assert "mine-1-confirm: 4/4 trials, 4 complete; finished" in said.out
        assert "intervals: of means Student's t over seeds, of differences Welch's t" in said.out
        assert re.search(r"test split, opened once, for trial \d: accuracy 0\.\d{4}.* \(2 models, 32 samples", said.out)
        self.trained_as_the_search_did(postgres_url)
        answer = json.loads(inside("status", "mine-1", "--json", *where).out)["confirmed"]
        self.as_anybody_would_test_it(mine, postgres_url, tmp_path / "files", answer)
        self.shown_first(inside, where, answer)

        mine.unlink()
        again = inside("confirm", "mine-1", *where)
        assert (again.status, again.err) == (0, ""), "nothing is trained, loaded or opened again"
        assert again.out == said.out[said.out.index("mine-1: accuracy with fresh seeds") :]
        assert value(postgres_url, "SELECT count(*) FROM dialin_epochs") == (4 + 4) * 3

    def trained_as_the_search_did(self, url: str) -> None:
        before, again = assert_settled(url, "mine-1", 4), assert_settled(url, "mine-1-confirm", 4)
        best = sorted(before, key=lambda trial: (-(trial.value or 0), trial.number))[:2]
        assert [trial.params for trial in again] == [trial.params for trial in best] * 2
        told = [(trial.user_attrs["confirms"], trial.user_attrs["settings"]) for trial in again]
        assert told == [(trial.number, trial.user_attrs["settings"]) for trial in best] * 2
        curves = [tuple(trial.intermediate_values.values()) for trial in (*best, *again)]
        assert len({*curves}) > 2, "seeds make a difference"

    def as_anybody_would_test_it(self, mine: Path, url: str, files: Path, answer: dict[str, Any]) -> None:
        seeds = trials(url, "mine-1-confirm")
        winners = [one for one in seeds if one.user_attrs["confirms"] == answer["preferred"]]
        stay = {answer["preferred"], answer["best"], *answer["ties"]}
        kept = {path.parent.name: path for path in files.glob("mine-1-confirm-*/**/weights-*.pt")}
        assert {*kept} == {f"trial-{one.number:05d}" for one in seeds if one.user_attrs["confirms"] in stay}
        objective = resolve(str(mine)).objective
        data = objective.data(files)
        assert isinstance(data, Data)
        assert isinstance(data.test, tuple)
        inputs, classes = data.test
        for one, said in zip(winners, answer["test"]["models"], strict=True):
            net = objective.model(FixedTrial(one.params))  # type: ignore[arg-type]  # it suggests as one does
            assert isinstance(net, torch.nn.Module)
            net.load_state_dict(torch.load(kept[f"trial-{one.number:05d}"], weights_only=True))
            with torch.inference_mode():
                accuracy = (net(inputs).argmax(1) == classes).float().mean()
            assert said["accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
            assert "loss" in said, "every metric of the objective"

    def shown_first(self, inside: Inside, where: tuple[object, ...], answer: dict[str, Any]) -> None:
        for name in ("mine-1", "mine-1-confirm"):
            records = json.loads(inside("best", name, "--top", 3, "--format", "json", *where).out)
            assert [one["note"] for one in records] == ["confirmed: mean of 2 fresh seeds"] * 2 + [
                "unconfirmed: best of 4 noisy draws"
            ]
        assert records[0]["trial"] == answer["preferred"]
        assert records[0]["confirmed"] == {key: one for key, one in answer["recipes"][0].items() if key != "trial"}
        assert records[2]["confirmed"] is None
        assert "confirmed.mean" in inside("best", "mine-1", "--format", "csv", *where).out
        table = inside("best", "mine-1", "--top", 3, *where).out
        assert f"{records[0]['confirmed']['mean']:.4f} (" in table
        assert table.count("unconfirmed: best of 4 noisy draws") == 1
        weights = inside("best", "mine-1", "--weights", "best.pt", *where)
        assert re.match(r"weights of trial \d of mine-1-confirm are in best.pt\n", weights.err)
        assert "confirmed: accuracy 0." in inside("status", "mine-1", *where).out
        assert "confirms mine-1" in inside("status", "mine-1-confirm", *where).out

    def test_more_may_be_asked_for_and_less_may_not(self, inside: Inside, searched_url: str, tmp_path: Path) -> None:
        mine = tmp_path / "mine.py"
        confirm = ("confirm", "mine-1", "--objective", mine, "--storage", searched_url, *ONE)
        first = inside(*confirm, "--top", 1, "--seeds", 2, "--no-test")
        assert first.status == 0, first.err
        assert re.search(
            r"the test split is closed: dialin confirm mine-1 --objective \S+ opens it for trial", first.out
        )
        more = inside(*confirm, "--top", 2, "--seeds", 3)
        assert more.status == 0, more.err
        assert (
            "goes on with 2 recipes of mine-1, 3 fresh seeds each: 4 trials left; 1 recipe more than before" in more.out
        )
        assert "test split, opened once" in more.out
        assert_settled(searched_url, "mine-1-confirm", 6)
        assert "the best 2 with 3 seeds each already" in refused(inside(*confirm, "--seeds", 2))
        resumed = inside("resume", "mine-1-confirm", "--trials", "+1", "--storage", searched_url, "--objective", mine)
        assert "mine-1-confirm confirms mine-1: dialin confirm mine-1 --objective " in refused(resumed)

    def test_folds_are_tested_by_all_their_models(self, inside: Inside, tmp_path: Path, sqlite_url: str) -> None:
        folds = WITH_TEST.replace("valid=0.3", "folds=2").replace("-> Data", "").replace("epochs=3", "epochs=1")
        (tmp_path / "folds.py").write_text(folds)
        searched(inside, "folds.py", sqlite_url, 1)
        said = inside("confirm", "--seeds", 2, "--objective", "folds.py", "--storage", sqlite_url, *ONE)
        assert said.status == 0, said.err
        assert "(2 models, 32 samples)" in said.out

    @pytest.mark.parametrize("objective", ["own_loop", "function"])
    def test_what_has_no_test_split_is_confirmed_all_the_same(
        self, inside: Inside, objective: str, tmp_path: Path, sqlite_url: str
    ) -> None:
        (tmp_path / "function.py").write_text(FUNCTION)
        path = {"own_loop": OBJECTIVES / "own_loop.py", "function": "function.py:objective"}[objective]
        searched(inside, path, sqlite_url, 1, *(() if objective == "function" else ("--epochs", 1)))
        said = inside("confirm", "--seeds", 2, "--objective", path, "--storage", sqlite_url, *ONE)
        assert said.status == 0, said.err
        assert "no test split to open: " in said.out
        one, other = trials(sqlite_url, f"{objective}-1-confirm")
        assert one.params == other.params
        assert one.value != other.value or objective != "function"


class TestWhatDies:
    def test_a_killed_worker_and_an_interrupted_command_cost_what_they_cost_any_study(
        self, inside: Inside, sqlite_url: str, tmp_path: Path
    ) -> None:
        slow = OBJECTIVES / "slow.py"
        (tmp_path / "hurry").touch()
        searched(inside, slow, sqlite_url, 1, "--epochs", 8)
        (tmp_path / "hurry").unlink()
        confirm = ("confirm", "slow-1", "--seeds", 2, "--objective", slow, "--storage", sqlite_url, *ONE)
        with meanwhile(lambda: kill_then_interrupt(sqlite_url)):
            said = inside(*confirm)
        assert said.status == 130, said.err
        assert "killed by SIGKILL; its trial goes on elsewhere" in said.out
        assert f"go on with:\n  dialin confirm slow-1 --objective {slow}\n" in said.out
        (tmp_path / "hurry").touch()
        said = inside(*confirm)
        assert said.status == 0, said.err
        assert "slow-1-confirm goes on with 1 recipe of slow-1, 2 fresh seeds each: 2 trials left" in said.out
        assert "no test split to open: what data() returns has none" in said.out
        assert_settled(sqlite_url, "slow-1-confirm", 2)
        assert value(sqlite_url, EPOCHS) == 2 * 8, "none is trained twice on record"


EPOCHS = (
    "SELECT count(*) FROM dialin_epochs e JOIN dialin_trials t ON t.trial_id = e.trial_id WHERE t.study_id = "
    "(SELECT study_id FROM studies WHERE study_name = 'slow-1-confirm')"
)


def kill_then_interrupt(url: str) -> None:
    """Kill the worker after an epoch, and press Ctrl-C when another has gone on after that."""
    wait_until(lambda: epochs(url) >= 1, "the first epoch")
    [pid] = [row[0] for row in rows(url, "SELECT pid FROM dialin_workers WHERE ended_at IS NULL")]
    psutil.Process(pid).kill()
    wait_until(lambda: len(rows(url, "SELECT 1 FROM dialin_owners WHERE generation > 1")) > 0, "an adoption")
    seen = epochs(url)
    wait_until(lambda: epochs(url) > seen, "an epoch after it")
    press_ctrl_c()


def epochs(url: str) -> int:
    found = rows(url, EPOCHS)
    return int(found[0][0]) if found else 0


class TestWhatCannotBe:
    def test_nothing_to_confirm(self, inside: Inside, sqlite_url: str) -> None:
        assert "there is no database" in refused(inside("confirm", "--storage", sqlite_url))
        open_storage(sqlite_url)
        assert "there is no study yet" in refused(inside("confirm", "--storage", sqlite_url))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--top", 0), "top must be an integer of at least 1, but got 0"),
            (("--seeds", 1), "seeds must be at least 2, but got 1: one value says nothing of how far seeds differ"),
            (("--seeds", -3), "seeds must be an integer of at least 2, but got -3"),
            (("--seeds", 2**31), "seeds must be at most 2147483647"),
            (("--top", 2**20, "--seeds", 2**20), "top times seeds must be at most 2147483647"),
            (("--seeds", "many"), "Invalid value for '--seeds': Input should be a valid integer"),
        ],
    )
    def test_numbers_that_make_no_sense(
        self, inside: Inside, sqlite_url: str, options: tuple[object, ...], said: str
    ) -> None:
        open_storage(sqlite_url)
        assert said in refused(inside("confirm", *options, "--storage", sqlite_url))

    def test_a_study_that_is_being_trained_or_has_no_complete_trial(self, inside: Inside, storage_url: str) -> None:
        from storage_places import SPEC

        storage = open_storage(storage_url)
        record = studies.create(storage, SPEC, name="open-1", stem="")
        said = inside("confirm", "--storage", storage_url)
        assert (said.status, said.err) == (
            1,
            "dialin: open-1 has no complete trial yet: see `dialin status open-1`\n",
        )
        worker = new_uuid()
        workers.register(storage, worker, record.study_id, [workers.Place("cpu/0", None)])
        still = refused(inside("confirm", "open-1", "--storage", storage_url))
        assert "open-1 is still running (1 worker), and may find better recipes" in still
        assert "`dialin stop open-1`" in still

    def test_an_objective_that_has_changed_is_refused_unless_that_is_wanted(
        self, inside: Inside, searched_url: str, tmp_path: Path
    ) -> None:
        mine, more = tmp_path / "mine.py", ("--top", 1, "--seeds", 2)
        confirm = ("confirm", "mine-1", *more, "--objective", mine, "--storage", searched_url, *ONE)
        assert "mine-1" in refused(inside("confirm", "--storage", searched_url)), "code never comes from the database"
        mine.write_text(WITH_TEST.replace("nn.ReLU()", "nn.Tanh()"))
        assert "has changed since mine-1 was trained" in refused(inside(*confirm))
        assert rows(searched_url, "SELECT 1 FROM studies WHERE study_name = 'mine-1-confirm'") == []
        said = inside(*confirm, "--changed")
        assert said.status == 0, said.err
        assert "has changed since mine-1 was trained: this trains what it is now" in said.out

    def test_a_recipe_that_a_changed_objective_does_not_draw_any_more_is_said(
        self, inside: Inside, searched_url: str, tmp_path: Path
    ) -> None:
        mine = tmp_path / "mine.py"
        mine.write_text(WITH_TEST.replace("return nn.Seq", 'trial.suggest_int("depth", 1, 9)\n    return nn.Seq'))
        options = ("--top", 1, "--seeds", 2, "--changed", "--objective", mine, "--storage", searched_url)
        said = inside("confirm", "mine-1", *options, *ONE)
        assert said.status == 1
        assert re.search(r"trial \d has failed: of 2 seeds 2 pruned\n", said.out)
        assert "nothing can be said of any" in said.out
        page = inside("show", "mine-1-confirm", 0, "--storage", searched_url).out
        assert "depth was not there when it was sampled" in page
        assert re.search(r"from: trial \d of mine-1\n", page)

    def test_a_test_split_whose_models_are_elsewhere_stays_closed(
        self, inside: Inside, searched_url: str, tmp_path: Path
    ) -> None:
        confirm = ("confirm", "mine-1", "--objective", tmp_path / "mine.py", "--storage", searched_url, *ONE)
        assert inside(*confirm, "--top", 1, "--seeds", 2, "--no-test").status == 0
        said = inside(*confirm, "--files", tmp_path / "empty")
        assert said.status == 1
        assert "the test split stays closed: cannot read the checkpoint" in said.err
        assert "--files or --checkpoints" in said.err
        assert "test split, opened once" in inside(*confirm).out


class TestFromPython:
    def test_the_handle_confirms_and_hands_out_the_winner(self, searched_url: str, tmp_path: Path) -> None:
        found = search.load("mine-1", storage=searched_url)
        before = found.confirmation
        assert before is None
        with pytest.raises(UsageError, match="seeds must be at least 2"):
            found.confirm(seeds=1)
        with pytest.raises(UsageError, match=r"the objective of mine-1 is in .*mine.py: pass it, as in confirm\("):
            found.confirm(2, 2)
        answer = found.confirm(2, 2, objective=tmp_path / "mine.py", workers=1, quiet=True)
        winner, best = answer.winner, found.best
        assert winner is not None
        assert best is not None
        assert (best.trial, best.confirmed) == (winner.trial, winner)
        assert best.recipe == winner.recipe
        assert [one.confirmed is not None for one in found.top(5)] == [True, True, False]
        assert found.confirmation == answer == search.load("mine-1-confirm", storage=searched_url).confirmation
        assert answer.test is not None
        assert answer.test.models is not None
        assert [*answer.test.models] == [*winner.values]
        assert found.weights()["0.weight"].shape == (best.model["width"], 4)
        assert found.confirm(quiet=True) == answer
