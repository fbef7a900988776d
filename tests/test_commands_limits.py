"""`--until` and `--budget`: a study that has got what it was to get ends well, says so, and can go on."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import pytest
from sqlalchemy import update
from studies import TINY, Inside, assert_settled, meanwhile, rows, trials, value, wait_until

from search.options import deadline_of, seconds_of
from storage import studies, workers
from storage.claims import new_uuid
from storage.engine import database_now
from storage.errors import UsageError
from storage.shared import open_storage
from storage.tables import StudyRow

RUN = ("run", TINY, "--trials", 3, "--workers", 1, "--pruner", "none")


def test_a_value_that_is_good_enough_ends_the_study_well(inside: Inside, either_url: str) -> None:
    said = inside(*RUN, "--until", 0.1, "--storage", either_url)
    assert said.status == 0, said.err
    assert len(trials(either_url, "tiny-1")) == 3, "two starting points wait"
    assert value(either_url, "SELECT taken FROM dialin_studies") == 1
    assert "stopped: accuracy reached 0.1 in trial 0" in said.out
    assert "dialin best tiny-1 --top 5" in said.out
    status = inside("status", "--storage", either_url)
    assert "tiny-1: stopped: accuracy reached 0.1 in trial 0, 1/3 trials" in status.out
    assert "limits: until accuracy is 0.1000 or better\n" in status.out

    resume = ("resume", "--objective", TINY, "--workers", 1, "--storage", either_url)
    assert inside(*resume).status == 0
    assert_settled(either_url, "tiny-1", 3)
    assert "limits" not in inside("status", "--storage", either_url).out


def test_device_time_that_is_spent_ends_the_study_well(inside: Inside, either_url: str) -> None:
    said = inside(*RUN, "--budget", "0.001s", "--storage", either_url)
    assert said.status == 0, said.err
    assert "of device time is spent" in said.out
    assert f"dialin resume tiny-1 --objective {TINY} --budget +1h" in said.out
    study = json.loads(inside("status", "--json", "--storage", either_url).out)["study"]
    assert study["spent_seconds"] >= study["budget_seconds"] == 0.001
    assert value(either_url, "SELECT count(*) FROM dialin_epochs") == 1, "the epoch that spent it is the last"

    resume = ("resume", "--objective", TINY, "--workers", 1, "--storage", either_url)
    refused = inside(*resume)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert inside(*resume, "--budget", "+1h").status == 0
    assert_settled(either_url, "tiny-1", 3)
    assert "of 1:00:00 device time spent" in inside("status", "--storage", either_url).out


def test_epochs_that_are_spent_end_the_study_well_and_more_may_be_had(inside: Inside, either_url: str) -> None:
    said = inside(*RUN, "--total-epochs", 6, "--storage", either_url)
    assert said.status == 0, said.err
    assert "stopped: the budget of 6 epochs is trained" in said.out
    assert f"dialin resume tiny-1 --objective {TINY} --total-epochs +100" in said.out
    assert value(either_url, "SELECT count(*) FROM dialin_epochs") == 6
    assert "limits: 6 of 6 epochs trained\n" in inside("status", "--storage", either_url).out

    resume = ("resume", "--objective", TINY, "--workers", 1, "--storage", either_url)
    refused = inside(*resume)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert inside(*resume, "--total-epochs", "+100").status == 0
    assert_settled(either_url, "tiny-1", 3)
    assert value(either_url, "SELECT budget_epochs FROM dialin_studies") == 106


def let_it_be_now(url: str) -> None:
    """The deadline comes soon after an epoch is on record, however long the start took: workers have heard of it."""
    wait_until(lambda: rows(url, "SELECT 1 FROM dialin_epochs"), "the first epoch")
    with open_storage(url).backend.write() as session:
        session.execute(update(StudyRow).values(deadline=database_now() + 1.0))


def test_a_deadline_ends_the_study_well(inside: Inside, sqlite_url: str) -> None:
    assert inside(*RUN, "--deadline", "1970-01-02", "--storage", sqlite_url).err.count("is past already\n") == 1
    options = ("--storage", sqlite_url, "--trials", 100_000, "--epochs", 4, "--workers", 1, "--pruner", "none")
    with meanwhile(lambda: let_it_be_now(sqlite_url)):
        said = inside("run", TINY, *options, "--deadline", "1h")
    assert said.status == 0, said.err
    assert "stopped: the deadline of" in said.out
    assert f"dialin resume tiny-1 --objective {TINY} --deadline 2h" in said.out
    assert "limits: until " in inside("status", "--storage", sqlite_url).out
    late = "SELECT count(DISTINCT e.trial_id) FROM dialin_epochs e, dialin_studies s WHERE e.ended_at > s.deadline"
    assert value(sqlite_url, late) <= 1, "only the trial in flight has any"
    refused = inside("worker", "tiny-1", "--objective", TINY, "--storage", sqlite_url)
    assert refused.err == (
        f"dialin: tiny-1 is stopped: dialin resume tiny-1 --objective {TINY} --deadline 2h goes on\n"
    )
    looking = open_storage(sqlite_url)
    workers.register(looking, new_uuid(), studies.find(looking).study_id, [workers.Place("cpu/3", None)])
    taken = value(sqlite_url, "SELECT taken FROM dialin_studies")
    limits = ("--trials", taken, "--deadline", "2h", "--storage", sqlite_url)
    resumed = inside("resume", "--objective", TINY, "--workers", 1, *limits)
    assert "1 worker trains it already, beside the new ones: cpu/3 (pid " in resumed.out
    assert resumed.status == 0


NOON = datetime(2026, 11, 21, 12).timestamp()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("18:30", datetime(2026, 11, 21, 18, 30)),
        ("9:05", datetime(2026, 11, 22, 9, 5)),
        ("12:00", datetime(2026, 11, 22, 12)),
        ("2h", datetime(2026, 11, 21, 14)),
        ("1d12h", datetime(2026, 11, 23)),
        ("2026-12-24T18:00", datetime(2026, 12, 24, 18)),
        ("2026-12-24", datetime(2026, 12, 24)),
        ("2026-12-24T18:00Z", datetime(2026, 12, 24, 18, tzinfo=UTC)),
    ],
)
def test_deadlines_are_written_as_people_say_them(text: str, moment: datetime) -> None:
    assert deadline_of(text, NOON) == moment.timestamp()


def test_no_deadline_is_infinitely_late() -> None:
    assert deadline_of("none", NOON) == math.inf


@pytest.mark.parametrize("text", ["", "tomorrow", "25:00", "18:60", "18.30", "9" * 30 + "h", "2026-13-01"])
def test_what_is_no_deadline_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--deadline must be a time such as 18:30, 2h \(from now\) or 2026"):
        deadline_of(text, NOON)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("8h", 28800), ("2d", 172800), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_durations_are_written_as_people_say_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "0s", "-1h", "30m1h", "1 hour", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--budget must be a time such as 90s, 30m, 8h, 2d or 1h30m, but got "):
        seconds_of(text)


def test_until_must_be_a_number_that_can_be_reached(inside: Inside) -> None:
    said = inside(*RUN, "--until", "nan")
    assert (said.status, "--until must be a number" in said.err) == (2, True)
