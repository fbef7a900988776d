"""Who trains a study, and which trials went from one worker to another: in `status` and in a search's view."""

from __future__ import annotations

import io
import json
import socket

import pytest
from rich.console import Console
from sqlalchemy import update
from storage_places import an_epoch, fresh, make_study, optuna_study, run_trial, worker_on
from studies import Inside

from search import printing
from search.feed import Feed
from search.live import PlainView
from storage import queries, workers
from storage.claims import LEASE_SECONDS, Lease, Settlement
from storage.engine import database_now
from storage.outcomes import Outcome
from storage.queries import StudyStatus
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import LeaseRow, OwnerEnding, WorkerRow

pytest_plugins = ["storage_fixtures"]
pytestmark = pytest.mark.usefixtures("storage_test")

HERE = socket.gethostname()


def hired(url: str, study: StudyRecord, slot: str) -> SharedStorage:
    """A worker of the study that has said so."""
    storage = worker_on(url)
    workers.register(storage, id_of(storage), study.study_id, [workers.Place(slot, None)])
    return storage


def id_of(storage: SharedStorage) -> str:
    assert storage.backend.claimant is not None
    return storage.backend.claimant.worker_id


def begin(storage: SharedStorage, study: StudyRecord, epochs: int = 0) -> Lease:
    """Claim a trial and train so many epochs of it."""
    lease = storage.lease_of(optuna_study(storage, study).ask())
    for number in range(1, epochs + 1):
        storage.record_epoch(lease, an_epoch(number))
    return lease


def fall_silent(storage: SharedStorage) -> None:
    """As if the worker had been killed unseen, a lease's length ago."""
    past = database_now() - LEASE_SECONDS - 1
    with storage.backend.write() as session:
        session.execute(update(WorkerRow).where(WorkerRow.worker_id == id_of(storage)).values(last_seen=past))
        session.execute(update(LeaseRow).where(LeaseRow.worker_id == id_of(storage)).values(expires_at=past))


def status_of(storage: SharedStorage, study: StudyRecord) -> StudyStatus:
    return queries.status(storage, fresh(storage, study))


def test_a_worker_is_named_with_what_it_holds_until_it_ends(common_url: str) -> None:
    looking = worker_on(common_url)
    study = make_study(looking)
    first, second = (hired(common_url, study, f"cpu/{n}") for n in range(2))
    begin(second, study)
    lines = status_of(looking, study).workers
    assert [(line.slot, line.trial, line.host, line.silent) for line in lines] == [
        ("cpu/0", None, HERE, False),
        ("cpu/1", 0, HERE, False),
    ]
    assert all(0 <= line.seen_ago < LEASE_SECONDS for line in lines)
    workers.end(first, id_of(first))
    assert [line.slot for line in status_of(looking, study).workers] == ["cpu/1"]


def test_a_worker_without_a_sign_is_named_while_its_trial_waits_for_another(common_url: str) -> None:
    looking = worker_on(common_url)
    study = make_study(looking)
    lost, idle, other = (hired(common_url, study, f"cpu/{n}") for n in range(3))
    begin(lost, study)
    fall_silent(lost)
    fall_silent(idle)
    status = status_of(looking, study)
    assert [(line.slot, line.trial, line.silent) for line in status.workers] == [
        ("cpu/0", 0, True),
        ("cpu/2", None, False),
    ]
    assert printing.worker_line(status.workers[0]).partition(", ")[2].startswith("no sign for ")
    assert printing.handovers_line(status) == "1 trial to adopt"
    assert other.adopt(study.study_id) is not None
    status = status_of(looking, study)
    assert [(line.slot, line.trial) for line in status.workers] == [("cpu/2", 0)]
    assert printing.handovers_line(status) == "1 worker died, 1 adoption"


def test_a_view_tells_each_adoption_once_and_whether_its_worker_died(common_url: str) -> None:
    looking = worker_on(common_url)
    study = make_study(looking)
    first, second = (hired(common_url, study, f"cpu/{n}") for n in range(2))
    first.hand_back(begin(first, study))
    assert first.adopt(study.study_id) is not None
    file = io.StringIO()
    feed, view = Feed(looking, study), PlainView(Console(file=file, width=200))
    feed.show(view)
    assert file.getvalue() == "", "what was before is not told"
    begin(second, study, epochs=2)
    workers.end(looking, id_of(first))
    assert second.adopt(study.study_id) is not None
    feed.show(view)
    workers.end(looking, id_of(second), OwnerEnding.OUT_OF_MEMORY)
    third = hired(common_url, study, "cpu/3")
    assert [third.adopt(study.study_id) is not None for _ in range(2)] == [True, True]
    for _ in range(2):
        feed.show(view)
    assert file.getvalue().splitlines() == [
        "cpu/1 takes over trial 0 (0 epochs on record), whose worker died",
        "cpu/3 takes over trial 0 (0 epochs on record), whose worker died",
        "cpu/3 takes over trial 1 (2 epochs on record), whose worker died",
    ]


def test_a_trial_that_was_handed_back_goes_on_without_a_death(common_url: str) -> None:
    looking = worker_on(common_url)
    study = make_study(looking)
    first = hired(common_url, study, "cpu/0")
    first.hand_back(begin(first, study, epochs=1))
    file = io.StringIO()
    feed = Feed(looking, study)
    assert first.adopt(study.study_id) is not None
    feed.show(PlainView(Console(file=file, width=200)))
    assert file.getvalue() == "cpu/0 goes on with trial 0 (1 epoch on record)\n"
    assert printing.handovers_line(status_of(looking, study)) == "1 adoption"


def test_trials_that_were_lost_are_named(common_url: str) -> None:
    looking = worker_on(common_url)
    study = make_study(looking)
    for outcome in (Outcome.LOST, Outcome.COMPLETE, Outcome.LOST):
        run_trial(looking, study, Settlement(outcome))
    status = status_of(looking, study)
    assert status.handovers.lost == (0, 2)
    assert printing.handovers_line(status) == "lost: trials 0, 2"


def test_status_prints_workers_and_what_went_between_them(
    common_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = worker_on(common_url)
    study = make_study(looking)
    first, second, third = (hired(common_url, study, f"cpu/{n}") for n in range(3))
    begin(first, study)
    workers.end(looking, id_of(first), OwnerEnding.OUT_OF_MEMORY)
    second.adopt(study.study_id)
    begin(third, study)
    fall_silent(third)
    idle = hired(common_url, study, "cpu/7")
    inside = Inside(capsys, monkeypatch)
    said = inside("status", study.name, "--storage", common_url).out
    assert "handed on: 1 worker died, 1 adoption, 1 trial to adopt\n" in said
    assert said.count("gone: waiting for another") == 1
    assert [line.split()[:2] for line in said.splitlines() if "seen" in line] == [["cpu/1", "0"], ["cpu/7", "-"]]
    answer = json.loads(inside("status", study.name, "--json", "--storage", common_url).out)
    assert (answer["deaths"], answer["adoptions"], answer["adoptable"], answer["lost"]) == (1, 1, [1], [])
    assert [(line["slot"], line["trial"]) for line in answer["workers"]] == [
        ("cpu/1", 0),
        ("cpu/2", 1),
        ("cpu/7", None),
    ]
    workers.end(looking, id_of(idle))
    line = printing.there_already(status_of(looking, study).workers)
    assert line.startswith("1 worker trains it already, beside the new ones: cpu/1 (pid ")
