"""The strategy that a study's name stands for: each worker makes its own, and all decide alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from search.judge import MakeStrategy
from search.samplers import AUTO, OptunaStrategy
from search.strategy import GoOn, Left, Seen, Start
from storage.studies import StudyRecord


class OnlyEnqueued(OptunaStrategy):
    """No trial but those that are enqueued: what a confirmation trains was decided when it was asked for."""

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        """A trial that was paused."""
        return super().next(seen, replace(left, trials=0))


def of_study(record: StudyRecord, ordinal: int) -> MakeStrategy:
    """`ordinal`: the worker's in its study, which keeps two from drawing alike."""
    if record.confirms:
        return OnlyEnqueued
    if record.sampler != AUTO:
        return OptunaStrategy
    from search.auto import Auto  # scipy takes a while to import

    return lambda _study, _own: Auto(epochs=record.length, seed=record.seed, worker=ordinal)
