"""A worker that must go in the middle of an epoch leaves it to the next one as it is: no batch is trained twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import TINY, engines_disposed, rows

from search.assignment import Assignment
from search.devices import Slot
from search.interrupt import Interrupt
from search.worker import Worker
from storage import studies
from storage.shared import open_storage
from storage.studies import StudySpec

BATCHES, EPOCHS = 12, 3
COUNTED = f"""
import sys
from dataclasses import replace
sys.path.append({str(TINY.parent)!r})
from tiny import data, model, nn
from search import Objective, supervised


def task(trial):
    plain = supervised(model(trial), nn.CrossEntropyLoss())

    def step(net, batch):
        with open("batches", "a") as file:
            print(net.training, file=file)
        return plain.step(net, batch)

    return replace(plain, step=step)


objective = Objective(model=task, data=data, metric="accuracy", batch_sizes=(8,), epochs={EPOCHS}, trials=1)
"""


class After(Interrupt):
    """Asks for the trial, at once, when so many batches are trained."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._batches = batches

    @property
    def requested(self) -> bool:
        if trained() >= self._batches:
            self.request("SIGTERM")
        return super().requested


def trained() -> int:
    """How many batches were trained, by all workers."""
    return Path("batches").read_text().count("True") if Path("batches").exists() else 0


def test_no_batch_is_trained_twice_and_the_curve_is_the_same(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.interrupt.GRACE_SECONDS", -1.0)
    Path("counted.py").write_text(COUNTED)
    spec = StudySpec("counted.py", "", "accuracy", "maximize", EPOCHS, 1, 0, "random", "none")
    with engines_disposed():
        storage = open_storage(sqlite_url)
        names = [studies.create(storage, spec, stem=stem).name for stem in ("whole", "broken")]

        def work(study: str, interrupt: Interrupt) -> None:
            place = (Slot(("cpu",), 0, None),)
            Worker(Assignment(sqlite_url, study, "counted.py", place, 1, tmp_path, tmp_path), interrupt).work()

        work(names[0], Interrupt())
        assert trained() == BATCHES * EPOCHS
        Path("batches").unlink()
        for batches in (5, 9, 17, 36):
            work(names[1], After(batches))
            assert trained() == batches
            assert rows(
                sqlite_url,
                "SELECT epoch * 12 + batch FROM dialin_checkpoints WHERE kind = 'state' "
                "ORDER BY checkpoint_id DESC LIMIT 1",
            ) == [(batches,)]
        work(names[1], Interrupt())
        assert trained() == BATCHES * EPOCHS
        curves = (
            "SELECT epoch, metrics FROM dialin_epochs e JOIN trials t ON t.trial_id = e.trial_id "
            "JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = :name ORDER BY epoch"
        )
        whole, broken = (rows(sqlite_url, curves, name=name) for name in names)
        assert len(whole) == EPOCHS
        assert broken == whole
