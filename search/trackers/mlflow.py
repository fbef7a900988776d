"""MLflow: an experiment a study, a run a trial.

MLFLOW_TRACKING_URI names a server; without it the runs are in a SQLite file of the study's folder:

    mlflow ui --backend-store-uri sqlite:///dialin-files/STUDY/mlflow.db
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# MLflow reports how it is used to its makers unless told not to, and it is told before it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient  # see the line above
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from search.trackers.tracker import VALUE, Ending, Point, TrialInfo

STUDY, TRIAL, OUTCOME = "dialin.study", "dialin.trial", "dialin.outcome"
# What MLflow takes as a parameter's value, and metrics in one request.
LONGEST, MOST = 6000, 1000


class MLflow:
    """Talks to one store. The store gives runs their identity: a trial's is found by its tags."""

    def __init__(self, folder: Path) -> None:
        for name in ("mlflow", "alembic"):  # a trial's log is no place for what they say about their tables
            logging.getLogger(name).setLevel(logging.WARNING)
        uri, self._artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri:
            self._client = MlflowClient(tracking_uri=uri)
        else:
            self._artifacts = (folder / "mlflow-artifacts").as_uri()
            with _one_at_a_time(folder / "mlflow.lock"):  # the first worker makes the tables
                self._client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        self._run = ""
        self._info: TrialInfo | None = None
        self._known: set[int] = set()

    def start(self, info: TrialInfo) -> None:
        """A trial that goes on continues its run; the steps that are there already are the same and stay."""
        experiment = self._experiment(info)
        wanted = f"tags.`{STUDY}` = '{info.key}' AND tags.`{TRIAL}` = '{info.number}'"
        found = self._client.search_runs([experiment], wanted, ViewType.ACTIVE_ONLY, 1)
        if found:
            self._run = found[0].info.run_id
            history = self._client.get_metric_history(self._run, info.metric)
            self._known = {metric.step for metric in history}
        else:
            tags = {STUDY: info.key, TRIAL: str(info.number)}
            self._run = self._client.create_run(experiment, run_name=info.name, tags=tags).info.run_id
            self._known = set()
        self._info = info
        params = [Param(name, str(value)[:LONGEST]) for name, value in info.recipe.items()]
        self._client.log_batch(self._run, [], params)
        self._log(info.history)

    def epoch(self, point: Point) -> None:
        """One request an epoch."""
        self._log([point])

    def end(self, ending: Ending) -> None:
        """A run that is handed back stays open. A pruned trial's is FINISHED: it did what was asked of it."""
        if not ending.final:
            return
        metrics = []
        if ending.value is not None:
            metrics.append(Metric(VALUE, ending.value, int(time.time() * 1000), ending.best_epoch or 0))
        self._client.log_batch(self._run, metrics, [], [RunTag(OUTCOME, ending.outcome)])
        failed = ending.outcome in ("error", "out_of_memory", "lost")
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _log(self, points: Iterable[Point]) -> None:
        metrics = [
            Metric(name, value, int(point.at * 1000), point.epoch)
            for point in points
            if point.epoch not in self._known
            for name, value in point.metrics.items()
        ]
        for begin in range(0, len(metrics), MOST):
            self._client.log_batch(self._run, metrics[begin : begin + MOST])

    def _experiment(self, info: TrialInfo) -> str:
        found = self._client.get_experiment_by_name(info.study)
        if found is None:
            try:
                made: str = self._client.create_experiment(info.study, artifact_location=self._artifacts)
                return made
            except MlflowException:  # another worker was faster
                found = self._client.get_experiment_by_name(info.study)
                if found is None:
                    raise
        return str(found.experiment_id)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
