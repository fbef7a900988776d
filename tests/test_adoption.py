"""A trial that another worker left is told as wholly as one that a single worker trained."""

from __future__ import annotations

import json

import optuna
import pytest
from studies import Inside

from objectives.digits import objective
from search import space
from storage import studies
from storage.claims import Claimant
from storage.shared import open_storage
from storage.studies import StudySpec

SPEC = StudySpec("digits", "", "accuracy", "maximize", epochs=1, trials=1, seed=0, sampler="random", pruner="none")


def test_an_adopted_trial_keeps_the_knobs_of_its_model(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Inside(capsys, monkeypatch)
    storage = open_storage(sqlite_url, Claimant("gone"))
    record = studies.create(storage, SPEC, stem="digits")
    trial = optuna.load_study(study_name=record.name, storage=storage).ask()
    with storage.sampling(trial):
        space.sample(trial, objective)
        objective.task(trial)
    storage.hand_back(storage.lease_of(trial))

    assert inside("resume", "--storage", sqlite_url, "--workers", "1").status == 0
    (best,) = json.loads(inside("best", "--format", "json", "--storage", sqlite_url).out)

    assert best["trial"] == trial.number == 0
    assert best["model"] == {name: trial.params[name] for name in ("width", "dropout")}
