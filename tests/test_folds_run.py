"""A study of an objective with folds, with real workers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from optuna.trial import TrialState
from studies import Inside, assert_settled, rows

FOLD = "SELECT metrics FROM dialin_epochs WHERE trial_id = :id AND epoch > :last - 2 AND epoch <= :last"
FOLDED = '''"""Which side of a line, over three folds."""
import torch
from torch import nn

from search import Objective, split


def model(trial):
    return nn.Linear(2, trial.suggest_int("classes", 2, 3))


def data(root):
    points = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    return split(points, (points.sum(1) > 0).long(), folds=3, stratify=True)


objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), epochs=2, trials=3)
'''


def test_a_study_of_folds_has_one_value_for_each_fold(inside: Inside, tmp_path: Path, either_url: str) -> None:
    objective = tmp_path / "folded.py"
    objective.write_text(FOLDED)
    run = inside("run", objective, "--workers", 2, "--pruner", "none", "--storage", either_url)
    assert run.status == 0, run.err
    found = assert_settled(either_url, "folded-1", 3)
    assert {trial.state for trial in found} == {TrialState.COMPLETE}
    assert rows(either_url, "SELECT epochs, folds FROM dialin_studies") == [(2, 3)]
    for trial in found:
        assert [*trial.intermediate_values] == [2, 4, 6]
        assert trial.value == trial.intermediate_values[6]
        assert trial.user_attrs["epochs"] == 6
    best = max(found, key=lambda trial: trial.value or 0.0)
    epochs = rows(either_url, "SELECT epoch FROM dialin_epochs WHERE trial_id = :id ORDER BY 1", id=best._trial_id)
    assert [epoch for (epoch,) in epochs] == [1, 2, 3, 4, 5, 6]
    kept = inside("best", "folded-1", "--weights", tmp_path / "best.pt", "--storage", either_url)
    assert kept.status == 0
    weights = torch.load(tmp_path / "best.pt", weights_only=True)
    assert {*weights} == {"fold-1", "fold-2", "fold-3"}

    page = inside("show", "folded-1", best.number, "--storage", either_url).out
    folds, mean = re.findall(r"^folds: (.*); mean (.*)$", page, re.MULTILINE)[0]
    of_each = [
        max(json.loads(metrics)["accuracy"] for (metrics,) in rows(either_url, FOLD, id=best._trial_id, last=last))
        for last in (2, 4, 6)
    ]
    assert folds == ", ".join(f"{value:.4f}" for value in of_each)
    assert mean == f"{best.value:.4f}"

    objective.write_text(FOLDED.replace("folds=3", "folds=2"))
    again = inside("resume", "folded-1", "--trials", "+1", "--objective", objective, "--storage", either_url)
    assert again.status == 2
    assert "data() returns 2 folds, but study 'folded-1' was made with 3" in again.err
    assert rows(either_url, "SELECT trials FROM dialin_studies") == [(3,)], "the study is as it was"


def test_a_check_counts_the_folds(inside: Inside, tmp_path: Path) -> None:
    objective = tmp_path / "folded.py"
    objective.write_text(FOLDED)
    said = inside("check", objective)
    assert "3 folds, each with 60 samples to train, 30 to validate" in said.out
    assert "3 folds of 2 epochs" in said.out
