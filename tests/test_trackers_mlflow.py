"""What MLflow's own client reads of a trial, from a store of its own, as the worker leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import engines_disposed
from told import COMPLETE, HAND_BACK, INFO, going_on_after, made, point, tell

from search.trackers import Ending

# MLflow uses a strategy of SQLAlchemy's that SQLAlchemy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study's folder, whose store all tests use: it takes MLflow a second to make its tables."""
    with pytest.MonkeyPatch.context() as patch, engines_disposed():
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield tmp_path_factory.mktemp("mlflow")


def runs(folder: Path, study: str) -> list[Any]:
    """The runs of a study, as whoever has MLflow's URI finds them."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    return [*client.search_runs([experiment.experiment_id])]


def curve(folder: Path, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_a_trial_is_a_run_with_its_recipe_its_curve_and_its_value(folder: Path) -> None:
    tell(made("mlflow", folder), INFO, [1, 2, 3, 4], COMPLETE)
    (run,) = runs(folder, "digits-1")
    assert run.info.run_name == "trial-00012"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optimizer": "adam", "lr": "0.01", "width": "8"}
    assert run.data.metrics["trial_value"] == 0.8
    assert run.data.tags["dialin.outcome"] == "complete"
    assert curve(folder, run, "accuracy") == [(epoch, point(epoch).metrics["accuracy"]) for epoch in (1, 2, 3, 4)]
    assert {*run.data.metrics} == {"accuracy", "train_loss", "lr", "trial_value"}


def test_an_adopter_continues_the_run_without_gap_or_double_step(folder: Path) -> None:
    """The owner before got to epoch 3, but was killed before it told of 2; its last checkpoint was of epoch 2."""
    tell(made("mlflow", folder), replace(INFO, study="left-1"), [1, 3], HAND_BACK)
    (run,) = runs(folder, "left-1")
    assert run.info.status == "RUNNING"
    tell(made("mlflow", folder), replace(going_on_after(2), study="left-1"), [3, 4], COMPLETE)
    (run,) = runs(folder, "left-1")
    assert run.info.status == "FINISHED"
    for name in ("accuracy", "train_loss"):
        assert sorted(step for step, _ in curve(folder, run, name)) == [1, 2, 3, 4]


def test_two_workers_and_two_studies_have_their_own_runs(folder: Path) -> None:
    first, second = made("mlflow", folder), made("mlflow", folder)
    first.start(replace(INFO, study="two-1"))
    second.start(replace(INFO, study="two-1", number=13))
    first.epoch(point(1))
    second.epoch(point(1))
    second.end(Ending("error", reason="ValueError"))
    first.end(COMPLETE)
    assert {run.info.run_name: run.info.status for run in runs(folder, "two-1")} == {
        "trial-00012": "FINISHED",
        "trial-00013": "FAILED",
    }
    # A server may have seen a study of this name from another database.
    tell(made("mlflow", folder), replace(INFO, study="two-1", key="two-1-ffffffff"), [1], COMPLETE)
    assert len(runs(folder, "two-1")) == 3


def test_a_long_history_is_told_in_pieces(folder: Path) -> None:
    tell(made("mlflow", folder), replace(going_on_after(500), study="long-1"), [501], HAND_BACK)
    (run,) = runs(folder, "long-1")
    assert len(curve(folder, run, "lr")) == 501
