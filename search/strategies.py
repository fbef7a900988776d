"""The strategy that a study's name stands for: each worker makes its own, and all decide alike."""

from __future__ import annotations

from search.judge import MakeStrategy
from search.samplers import AUTO, OptunaStrategy
from storage.studies import StudyRecord


def of_study(record: StudyRecord, ordinal: int) -> MakeStrategy:
    """`ordinal`: the worker's in its study, which keeps two from drawing alike."""
    if record.sampler != AUTO:
        return OptunaStrategy
    from search.auto import Auto  # scipy takes a while to import

    return lambda _study, _own: Auto(epochs=record.length, seed=record.seed, worker=ordinal)
