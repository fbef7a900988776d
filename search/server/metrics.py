"""What Prometheus scrapes: where all studies stand, read from the database at that moment, and how this server does.

Counts are of the whole database, so that it does not matter which of several servers is asked, or when it was started.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import Connection, Engine, event

from storage import activity
from storage.activity import Totals
from storage.shared import SharedStorage

# From a tenth of a millisecond (SQLite, a row) to ten seconds (a sum over everything).
BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """The registry of one server."""

    def __init__(self, storage: SharedStorage) -> None:
        """Counts the time of every statement that the storage's engine runs from now on."""
        self._storage = storage
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._sql = Histogram(
            "dialin_sql_seconds", "Time of an SQL statement of this server.", registry=self._registry, buckets=BUCKETS
        )
        _time_statements(storage.backend.engine, self._sql)

    def scrape(self) -> bytes:
        """All of it as text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for every scrape."""
        yield from families(activity.totals(self._storage))


def families(totals: Totals) -> Iterator[Metric]:
    """The totals under the names that are documented in docs/serving.md."""
    outcomes = CounterMetricFamily("dialin_trials", "Trials that have ended, by outcome.", labels=["outcome"])
    for outcome, count in totals.outcomes.items():
        outcomes.add_metric([outcome], count)
    yield outcomes
    yield CounterMetricFamily("dialin_epochs", "Epochs on record.", totals.epochs)
    yield CounterMetricFamily("dialin_device_seconds", "Seconds of training, times devices.", totals.device_seconds)
    studies = GaugeMetricFamily("dialin_studies", "Studies, by whether workers are wanted.", labels=["state"])
    studies.add_metric(["open"], totals.open_studies)
    studies.add_metric(["closed"], totals.studies - totals.open_studies)
    yield studies
    yield GaugeMetricFamily("dialin_queue_trials", "Trials of open studies that nobody has started.", totals.queue)
    yield GaugeMetricFamily("dialin_running_trials", "Trials that a worker holds.", totals.running)
    workers = GaugeMetricFamily("dialin_workers", "Workers that have not ended.", labels=["state"])
    workers.add_metric(["training"], totals.busy_workers)
    workers.add_metric(["idle"], totals.workers - totals.busy_workers)
    workers.add_metric(["silent"], totals.silent_workers)
    yield workers
    text = "Seconds since the lease of a trial was renewed that has waited longest; 0 without one."
    yield GaugeMetricFamily("dialin_lease_age_seconds", text, totals.lease_age or 0.0)


def _time_statements(engine: Engine, histogram: Histogram) -> None:
    def before(
        _connection: Connection, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        context.dialin_began = time.perf_counter()

    def after(
        _connection: Connection, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        histogram.observe(time.perf_counter() - context.dialin_began)

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
