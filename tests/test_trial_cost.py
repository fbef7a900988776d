"""What a trial costs the database, counted under a real worker: a budget of statements and of commits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from studies import OBJECTIVES, engines_disposed, trials

from search import keeper, outbox
from search.assignment import Assignment
from search.devices import Slot
from search.interrupt import Interrupt
from search.worker import Worker
from storage import studies
from storage.queries import SettledTrial
from storage.shared import open_storage
from storage.studies import StudySpec

OBJECTIVE = OBJECTIVES / "ten_knobs.py"
EPOCHS = 30
# Random draws at first, then what TPE models: ten trials by default.
TRIALS = 12
MOST_STATEMENTS, MOST_COMMITS = 150, 36
# Of a trial whose epochs come so fast that most share a transaction.
MOST_STATEMENTS_FAST, MOST_COMMITS_FAST = 60, 10


@dataclass
class Count:
    """What one trial asked of the database; BEGIN, which most drivers send unseen, and ROLLBACK are not counted."""

    statements: int = 0
    commits: int = 0


class Ledger:
    """Counts on the engines of this process. A trial's share ends when it is told to the command."""

    def __init__(self) -> None:
        self.settled: list[Count] = []
        self._open = Count()

    def statement(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self._open.statements += not statement.startswith("BEGIN")

    def commit(self, _connection: Any) -> None:
        self._open.commits += 1

    def tell(self, _settled: SettledTrial) -> None:
        self.settled.append(self._open)
        self._open = Count()


@pytest.fixture
def ledger() -> Any:
    ledger = Ledger()
    hands: dict[str, Any] = {"before_cursor_execute": ledger.statement, "commit": ledger.commit}
    for name, hand in hands.items():
        event.listen(Engine, name, hand)
    yield ledger
    for name, hand in hands.items():
        event.remove(Engine, name, hand)


@pytest.mark.parametrize(
    ("held", "statements", "commits"),
    [(0.0, MOST_STATEMENTS, MOST_COMMITS), (3600.0, MOST_STATEMENTS_FAST, MOST_COMMITS_FAST)],
    ids=["epochs that are long", "epochs that come fast"],
)
def test_a_trial_of_thirty_epochs_is_so_many_statements_and_commits_at_most(
    storage_url: str,
    tmp_path: Path,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    held: float,
    statements: int,
    commits: int,
) -> None:
    monkeypatch.setattr(outbox, "HELD_SECONDS", held)
    monkeypatch.setattr(keeper, "LISTEN_SECONDS", 3600.0)  # what is timed comes besides
    spec = StudySpec(str(OBJECTIVE), "", "accuracy", "maximize", EPOCHS, TRIALS, 0, "tpe", "hyperband")
    with engines_disposed():
        record = studies.create(open_storage(storage_url), spec, stem="ten")
        place = (Slot(("cpu",), 0, None),)
        work = Assignment(storage_url, record.name, str(OBJECTIVE), place, 1, tmp_path / "files", tmp_path)
        Worker(work, Interrupt(), ledger.tell).work()
    found = trials(storage_url, record.name)
    assert [len(trial.params) for trial in found] == [10] * TRIALS
    assert [len(trial.intermediate_values) for trial in found] == [EPOCHS] * TRIALS
    of_trials = ledger.settled[1:]  # the first one's are the worker's beginning too
    assert len(of_trials) == TRIALS - 1
    assert max(one.statements for one in of_trials) <= statements, of_trials
    assert max(one.commits for one in of_trials) <= commits, of_trials
