"""`search.run` and `search.load` from Python: the handle, what is refused, scripts as a person writes them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_objectives import made
from storage_places import SPEC
from studies import TINY, assert_settled, engines_disposed, trials

import search
from objectives.digits import objective as digits
from search.by_value import by_value
from search.failures import RaisedError
from search.loading import resolve
from storage import studies
from storage.errors import DialinError, UsageError
from storage.first_trials import FirstTrial
from storage.shared import open_storage

FAST: dict[str, Any] = {"workers": 1, "pruner": "none", "quiet": True}


@pytest.fixture(autouse=True)
def connections() -> Iterator[None]:
    with engines_disposed():
        yield


class TestTheHandle:
    def test_it_gives_what_was_found(self, either_url: str, tmp_path: Path) -> None:
        found = search.run(TINY, storage=either_url, trials=3, files=tmp_path / "files", seed=1, **FAST)
        assert found.name == "tiny-1"
        best = found.best
        assert best is not None
        assert found.top(9)[0].trial == best.trial
        assert best.value == max(trial.value or 0 for trial in assert_settled(either_url, "tiny-1", 3))
        assert best.recipe["lr"] > 0
        assert 4 <= best.model["width"] <= 8
        assert found.weights()["0.weight"].shape == (best.model["width"], 4)
        assert found.status.finished
        assert repr(found) == (
            f"<Search tiny-1: finished, 3/3 trials, best accuracy {best.value:.4f} in trial {best.trial}>"
        )
        assert "tiny-1" in found._repr_html_()
        assert found.study.best_trial.number == best.trial
        assert isinstance(found.study, optuna.Study)

    def test_trials_are_a_frame_with_a_column_for_each_knob(self, either_url: str) -> None:
        found = search.run(str(TINY), storage=either_url, trials=4, fix={"optimizer": "adam"}, **FAST)
        frame = found.trials()
        assert [*frame.columns[:6]] == ["number", "outcome", "value", "best_epoch", "epochs", "seconds"]
        assert [*frame.number] == [0, 1, 2, 3]
        assert {*frame.outcome} == {"complete"}
        assert {*frame.optimizer} == {"adam"}
        assert {*frame.epochs} == {4}
        assert (frame.seconds > 0).all()
        assert frame.width.between(4, 8).all()
        one = frame.iloc[0]
        stored = trials(either_url, "tiny-1")[0]
        assert one.value == stored.value
        assert one.lr == stored.user_attrs["settings"]["lr"]
        assert [one.beta1, one.beta2] == stored.user_attrs["settings"]["betas"]

    def test_epochs_of_all_trials_together_and_a_deadline_are_limits_too(self, sqlite_url: str) -> None:
        at = datetime.now() + timedelta(days=1)
        found = search.run(TINY, storage=sqlite_url, trials=2, total_epochs=3, deadline=at, **FAST)
        assert (found.status.study.spent_epochs, found.status.settled) == (3, 0)
        assert found.status.study.deadline == at.timestamp()
        found.resume(total_epochs="+100", deadline="none", workers=1, quiet=True)
        after = found.status
        assert after.finished
        assert (after.study.spent_epochs, after.study.deadline) == (8, None)

    @pytest.mark.parametrize("waiting", [0, 2])
    def test_before_the_first_trial_has_ended_nothing_fails(self, either_url: str, waiting: int) -> None:
        first = [FirstTrial({"optimizer": "adam"}, "default of adam")] * waiting
        studies.create(open_storage(either_url), SPEC, name="none", stem="", first=first)
        found = search.load("none", storage=either_url)
        frame = found.trials()
        assert len(frame) == waiting
        assert [*frame.outcome] == ["waiting"] * waiting
        assert frame.value.isna().all()
        assert (found.best, found.top(3)) == (None, [])
        assert repr(found) == "<Search none: waiting for a worker, 0/4 trials>"
        assert "none yet" in found._repr_html_()
        with pytest.raises(DialinError, match="no complete trial yet"):
            found.weights()

    def test_it_goes_on(self, either_url: str) -> None:
        found = search.run(TINY, storage=either_url, trials=1, **FAST)
        with pytest.raises(UsageError, match="is finished"):
            found.resume()
        assert found.resume("+1", workers=1, quiet=True) is found
        assert_settled(either_url, "tiny-1", 2)
        again = search.load(storage=either_url)
        assert again.name == "tiny-1"
        with pytest.raises(UsageError, match=r"the objective of tiny-1 is in .*tiny.py: pass it, as in resume"):
            again.resume(3)
        again.resume(3, objective=TINY, workers=1, quiet=True)
        assert_settled(either_url, "tiny-1", 3)

    def test_a_study_that_is_not_there_is_said_as_the_commands_say_it(self, either_url: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no database"):
            search.load(storage=f"sqlite:///{tmp_path / 'other.db'}")
        found = search.run(TINY, storage=either_url, trials=1, **FAST)
        studies.delete(found._storage, found.status.study)
        assert "there is no study 'tiny-1'" in repr(found)


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"trials": 0}, "trials must be an integer of at least 1, but got 0"),
            ({"trials": True}, "trials must be an integer of at least 1, but got True"),
            ({"trials": 2**31}, "trials must be at most 2147483647, but got 2147483648"),
            ({"epochs": 2.0}, r"epochs must be an integer of at least 1, but got 2\.0"),
            ({"seed": -1}, "seed must be an integer of at least 0, but got -1"),
            ({"seed": 2**31}, "seed must be at most 2147483647, but got 2147483648"),
            ({"fix": {"lr": (1, 2)}}, "more than one value: put it into ranges"),
            ({"ranges": {"lr": 0.1}}, r"write \(low, high\), a list of choices, or around"),
            ({"fix": {"lr": 0.1}, "ranges": {"lr": (0.1, 0.2)}}, "lr is in fix and in ranges"),
            ({"budget": "long"}, "must be a time such as"),
            ({"log": ["paper"]}, "must be one of tensorboard"),
            ({"sampler": "best"}, "sampler"),
            ({"objective": 3}, "run takes an Objective, a function of a trial, or the name of one"),
        ],
    )
    def test_it_is_refused_before_anything_is_made(
        self, arguments: dict[str, Any], said: str, sqlite_url: str, tmp_path: Path
    ) -> None:
        with pytest.raises(DialinError, match=said):
            search.run(**{"objective": TINY, "storage": sqlite_url, **arguments})
        assert [*tmp_path.iterdir()] == []

    def test_what_their_code_raises_comes_with_their_frames(self, sqlite_url: str, tmp_path: Path) -> None:
        with pytest.raises(RaisedError, match=r"test_api.py:\d+: data\(\): ValueError: no rows") as raised:
            search.run(replace(made().objective, data=no_rows), storage=sqlite_url, **FAST)
        [note] = raised.value.__notes__
        assert 'raise ValueError("no rows")' in note
        assert "search/" not in note
        assert [*tmp_path.iterdir()] == []

    def test_what_belongs_to_one_process_cannot_be_sent(self) -> None:
        lock: Any = threading.Lock()
        with pytest.raises(UsageError, match=r"cannot be sent to workers \(cannot pickle .*lock.*make in model\(\)"):
            search.run(replace(made().objective, data=lambda root: lock), quiet=True)


def no_rows(root: Path) -> search.Data:
    raise ValueError("no rows")


class TestWhereAnObjectiveIs:
    def test_a_built_in_one_keeps_its_name(self) -> None:
        sent = by_value(digits)
        assert (sent.reference, sent.name) == ("digits", "digits")
        assert sent.source_sha256 == resolve("digits").source_sha256

    def test_one_without_a_name_is_its_scripts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (script := tmp_path / "my tune.py").write_text("")
        monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
        sent = by_value(made().objective)
        assert (sent.reference, sent.name) == (str(script), "my_tune")

    def test_without_a_file_it_is_a_notebooks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        main = sys.modules["__main__"]
        monkeypatch.delattr(main, "__file__", raising=False)
        monkeypatch.setattr(main, "net", made().objective, raising=False)
        sent = by_value(main.net)
        assert (sent.reference, sent.name) == ("notebook:net", "net")
