"""Which states are forgotten where they take more than they may, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import optuna
import pytest
from studies import engines_disposed, rows

from storage import studies
from storage.claims import Checkpoint, Claimant, Epoch, Lease, Settlement, new_uuid
from storage.outcomes import Outcome
from storage.retention import make_room
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec


@dataclass
class Bench:
    """A study with three trials in training, the second the most promising, the last without a value yet."""

    url: str
    storage: SharedStorage
    record: StudyRecord
    study: optuna.Study
    trials: list[optuna.Trial]

    def lease(self, number: int) -> Lease:
        return self.storage.lease_of(self.trials[number])

    def room(self, limit: int, last_too: bool = True) -> list[str]:
        return make_room(self.storage, self.record, limit, last_too)

    def left(self) -> set[str]:
        return {path for (path,) in rows(self.url, "SELECT path FROM dialin_checkpoints")}


@pytest.fixture(params=["maximize", "minimize"])
def bench(storage_url: str, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with engines_disposed():
        storage = open_storage(storage_url, Claimant(new_uuid()))
        record = studies.create(storage, StudySpec("o", "", "m", request.param, 9, 5, 0, "tpe", "none"), stem="room")
        study = optuna.load_study(study_name=record.name, storage=storage)
        made = Bench(storage_url, storage, record, study, [study.ask() for _ in range(3)])
        sign = 1 if request.param == "maximize" else -1
        for number, values in enumerate([(0.5, 0.1), (0.3, 0.7)]):
            for epoch, value in enumerate(values, start=1):
                storage.record_epoch(made.lease(number), Epoch(epoch, sign * value, {}, 0.1, 1, "cpu"))
        for number in range(3):
            for batch in (1, 2):
                path = f"trial-{number}/{batch}"
                storage.record_checkpoint(made.lease(number), Checkpoint(0, path, "0" * 64, batch, 100))
        yield made


def test_nothing_goes_while_all_fits(bench: Bench) -> None:
    assert bench.room(600) == []
    assert len(bench.left()) == 6


def test_what_the_least_promising_trial_can_spare_goes_first(bench: Bench) -> None:
    assert bench.room(599) == ["trial-2/1"]
    assert bench.room(401) == ["trial-0/1"]
    assert bench.left() == {"trial-0/2", "trial-1/1", "trial-1/2", "trial-2/2"}


def test_the_last_state_of_a_trial_goes_only_when_nothing_else_is_left(bench: Bench) -> None:
    assert {*bench.room(100, last_too=False)} == {"trial-0/1", "trial-1/1", "trial-2/1"}
    assert bench.room(299) == ["trial-2/2"]
    assert bench.room(100) == ["trial-0/2"]
    assert bench.room(100) == []
    assert bench.left() == {"trial-1/2"}


def test_weights_count_and_stay_and_so_do_other_studies(bench: Bench) -> None:
    weights = Checkpoint(2, "weights", "0" * 64, size=100)
    bench.storage.settle(bench.study, bench.trials[1], Settlement(Outcome.COMPLETE, "", 2, weights), 0.7)
    assert {*bench.room(1)} == {f"trial-{number}/{batch}" for number in (0, 2) for batch in (1, 2)}
    assert bench.left() == {"weights"}
    other = studies.create(bench.storage, StudySpec("o", "", "m", "maximize", 9, 5, 0, "tpe", "none"), stem="other")
    assert make_room(bench.storage, other, 1, True) == []
    assert bench.left() == {"weights"}
