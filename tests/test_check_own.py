"""What `dialin check` and `dialin objectives` say of an objective that trains itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from studies import OBJECTIVES, Inside

from search.check import check
from search.check_lines import CheckLine
from search.failures import RaisedError
from search.loading import resolve

LOOP = OBJECTIVES / "own_loop.py"
SCRIPTS = Path(__file__).resolve().parent / "optuna_scripts"


def lines(reference: object, trials: int = 10) -> dict[str, CheckLine]:
    found = check(resolve(str(reference)), Path("data"), torch.device("cpu"), trials, workers=2)
    return {line.what: line for line in found}


def test_an_own_loop_runs_up_to_its_first_report() -> None:
    said = lines(LOOP)
    assert all(line.ok for line in said.values())
    assert said["suggested"].detail.startswith("momentum lr 0.01 ")
    assert said["first report"].detail.startswith("accuracy 0.")
    assert "10 trials of 6 epochs on 2 workers" in said["study"].detail
    epoch = said["first report"].numbers["epoch_seconds"]
    assert said["study"].numbers["study_seconds"] == pytest.approx(epoch * 6 * 5)


def test_a_function_that_reports_runs_up_to_its_first_report() -> None:
    said = lines(SCRIPTS / "iris_pruning.py")
    assert said["suggested"].detail.startswith("alpha ")
    assert said["first report"].detail.startswith("value 0.")
    assert "study" not in said, "how many reports there will be is not known"


def test_a_function_that_reports_nothing_runs_to_its_end() -> None:
    said = lines(SCRIPTS / "iris_models.py")
    assert said["one trial"].detail.startswith("value 0.")
    trial = said["one trial"].numbers["trial_seconds"]
    assert said["study"].numbers["study_seconds"] == pytest.approx(trial * 5)


def test_a_loop_that_raises_shows_its_own_frames(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from search import Objective\ndef train(run):\n    run.report(acc=1.0)\nobjective = Objective(train=train)\n"
    )
    with pytest.raises(RaisedError, match=r"broken\.py:3: run\.report got acc, but no 'accuracy'") as caught:
        lines(tmp_path / "broken.py")
    assert "search/loop.py" not in caught.value.frames


@pytest.mark.parametrize("reference", [LOOP, SCRIPTS / "iris_models.py"])
def test_the_space_is_said_as_far_as_it_is_known(
    reference: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: Callable[..., object] = Inside(capsys, monkeypatch)
    said = str(inside("objectives", reference))
    assert "its own knobs are known when it trains" in said
    assert ("lr_multiple" in said) is (reference == LOOP)
    assert "0 epochs" not in said
