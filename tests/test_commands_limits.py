"""`--until` and `--budget`: a study that has got what it was to get ends well, says so, and can go on."""

from __future__ import annotations

import json

import pytest
from studies import TINY, Inside, assert_settled, trials, value

from search.options import seconds_of
from storage.errors import UsageError


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capsys, monkeypatch)


RUN = ("run", TINY, "--trials", 3, "--workers", 1, "--pruner", "none")


def test_a_value_that_is_good_enough_ends_the_study_well(inside: Inside, storage_url: str) -> None:
    said = inside(*RUN, "--until", 0.1, "--storage", storage_url)
    assert said.status == 0, said.err
    assert len(trials(storage_url, "tiny-1")) == 3, "two starting points wait"
    assert value(storage_url, "SELECT taken FROM dialin_studies") == 1
    assert "stopped: accuracy reached 0.1 in trial 0" in said.out
    assert "dialin best tiny-1 --top 5" in said.out
    status = inside("status", "--storage", storage_url)
    assert "tiny-1: stopped: accuracy reached 0.1 in trial 0, 1/3 trials" in status.out
    assert "limits: until accuracy is 0.1000 or better\n" in status.out

    resume = ("resume", "--objective", TINY, "--workers", 1, "--storage", storage_url)
    assert inside(*resume).status == 0
    assert_settled(storage_url, "tiny-1", 3)
    assert "limits" not in inside("status", "--storage", storage_url).out


def test_device_time_that_is_spent_ends_the_study_well(inside: Inside, storage_url: str) -> None:
    said = inside(*RUN, "--budget", "0.001s", "--storage", storage_url)
    assert said.status == 0, said.err
    assert "of device time is spent" in said.out
    assert f"dialin resume tiny-1 --objective {TINY} --budget +1h" in said.out
    study = json.loads(inside("status", "--json", "--storage", storage_url).out)["study"]
    assert study["spent_seconds"] >= study["budget_seconds"] == 0.001

    resume = ("resume", "--objective", TINY, "--workers", 1, "--storage", storage_url)
    refused = inside(*resume)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert inside(*resume, "--budget", "+1h").status == 0
    assert_settled(storage_url, "tiny-1", 3)
    assert "of 1:00:00 device time spent" in inside("status", "--storage", storage_url).out


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
