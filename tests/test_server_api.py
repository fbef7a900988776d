"""The JSON API: it says what the commands say, keeps to its OpenAPI document, and does what operators ask."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Team, at_work, team
from sqlalchemy import update
from studies import Inside, rows, value

from search.server.attempts import Attempts
from search.server.desk import Desk
from storage import queue, studies, timeline
from storage.claims import new_uuid
from storage.engine import database_now
from storage.tables import OwnerRow, StudyRow, TrialRow


@pytest.fixture
def there(storage_url: str, tmp_path: Path) -> Iterator[Team]:
    with team(storage_url, tmp_path) as made:
        at_work(storage_url, "a")
        yield made


@pytest.fixture
def here(sqlite_url: str, tmp_path: Path) -> Iterator[Team]:
    with team(sqlite_url, tmp_path) as made:
        at_work(sqlite_url, "a")
        yield made


def steady(told: Any) -> Any:
    """Without what passes with time."""
    if isinstance(told, dict):
        return {key: steady(one) for key, one in told.items() if key != "seen_ago"}
    return [*map(steady, told)] if isinstance(told, list) else told


class TestItSaysWhatTheCommandsSay:
    def test_status_list_best_and_show(self, there: Team, inside: Inside, storage_url: str) -> None:
        for path, command in (
            ("/v1/studies/a", ("status", "a", "--json")),
            ("/v1/studies/a/trials/0", ("show", "a", 0, "--json")),
        ):
            said = json.loads(inside(*command, "--storage", storage_url).out)
            assert steady(there.viewer.get(path).json()) == steady(said), path
        listed = json.loads(inside("list", "--json", "--storage", storage_url).out)
        assert there.viewer.get("/v1/studies").json()["studies"] == listed
        best = json.loads(inside("best", "a", "--top", 2, "--format", "json", "--storage", storage_url).out)
        assert there.viewer.get("/v1/studies/a/best?top=2").json()["best"] == best
        assert [one["trial"] for one in best] == [1, 0]

    def test_trials_come_in_pages(self, here: Team) -> None:
        numbers: list[int] = []
        after: int | None = -1
        while after is not None:
            page = here.viewer.get("/v1/studies/a/trials", params={"after": after, "limit": 3}).json()
            numbers += [trial["number"] for trial in page["trials"]]
            after = page["next"]
        assert numbers == [0, 1, 2, 3]

    def test_workers_and_what_each_trains_now_with_its_curve(self, there: Team) -> None:
        [worker] = there.viewer.get("/v1/workers").json()["workers"]
        assert (worker["study"], worker["slot"], worker["silent"]) == ("a", "cpu 0", False)
        training = worker["training"]
        assert (training["trial"], training["epoch"], training["epochs"]) == (3, 2, 4)
        assert training["curve"] == [[1, pytest.approx(0.63)], [2, pytest.approx(0.73)]]
        assert (training["now"], training["best"]) == (pytest.approx(0.73), pytest.approx(0.73))

    def test_the_fleet(self, there: Team) -> None:
        fleet = there.viewer.get("/v1/fleet").json()
        assert fleet["settled_by_hour"] == [0] * 23 + [3]
        assert [study["name"] for study in fleet["studies"]] == ["a"]
        assert fleet["failed"] == {"out_of_memory": 1}
        assert [(one["study"], one["trial"], one["reason"]) for one in fleet["failures"]] == [("a", 2, "does not fit")]
        with there.storage.backend.write() as session:
            session.execute(update(TrialRow).values(settled_at=database_now() - 25 * 3600))
        there.operator.post("/v1/studies/a/pause")  # it sees at once what is so now
        assert there.viewer.get("/v1/fleet").json()["failures"] == []

    def test_events_each_once_with_a_cursor(self, there: Team, storage_url: str) -> None:
        at_work(storage_url, "b", finished=0, running=0)
        assert there.operator.post("/v1/studies/a/pause").status_code == 200
        told = there.viewer.get("/v1/events").json()
        happened = [(one["kind"], one["study"], one["trial"]) for one in told["events"]]
        assert happened[:3] == [("started", "a", 0), ("settled", "a", 0), ("started", "a", 1)]
        assert happened[-3:] == [("started", "b", 0), ("settled", "b", 0), ("paused", "a", None)]
        assert told["events"][-1]["who"] == "a operator"
        assert {one["outcome"] for one in told["events"] if one["kind"] == "settled"} == {"complete", "out_of_memory"}
        only = there.viewer.get("/v1/studies/b/events").json()["events"]
        assert [one["kind"] for one in only] == ["started", "settled"]

    def test_events_are_read_to_their_end_in_pages_and_those_of_a_moment_are_on_one(self, there: Team) -> None:
        """Of what happened long ago, also where more happened at once than is on a page."""
        with there.storage.backend.write() as session:
            session.execute(update(TrialRow).where(TrialRow.settled_at.is_not(None)).values(settled_at=1000.0))
            session.execute(update(OwnerRow).values(began_at=1000.0 - OwnerRow.trial_id % 2))
        every = there.viewer.get("/v1/events").json()["events"]
        assert len(every) == 7
        found: list[str] = []
        since, pages = 0.0, 0
        while since < 1001:
            page = there.viewer.get("/v1/events", params={"since": since, "limit": 1}).json()
            found += [one["id"] for one in page["events"]]
            assert page["next"] > since
            since, pages = page["next"], pages + 1
        assert found == [one["id"] for one in every]
        assert pages == 3

    def test_what_is_written_late_is_not_passed_over(self, there: Team) -> None:
        """A page that ends a moment ago is asked for again: what began before it may be committed after it."""
        soon = database_now() + 60  # or it would be a race
        with there.storage.backend.write() as session:
            session.execute(update(TrialRow).where(TrialRow.settled_at.is_not(None)).values(settled_at=soon))
            session.execute(update(OwnerRow).values(began_at=soon))
        page = there.viewer.get("/v1/events", params={"limit": 7}).json()
        assert len(page["events"]) == 7
        assert page["next"] < page["events"][0]["at"]


class TestOperators:
    def test_pause_resume_stop_with_their_names_on_record(self, here: Team, sqlite_url: str) -> None:
        for action, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
            done = here.operator.post(f"/v1/studies/a/{action}")
            assert done.status_code == 200, done.text
            assert done.json()["state"] == state
            assert here.viewer.get("/v1/studies").json()["studies"][0]["state"] == state
        assert rows(sqlite_url, "SELECT kind, actor FROM dialin_events ORDER BY event_id") == [
            ("paused", "a operator"),
            ("resumed", "a operator"),
            ("stopped", "a operator"),
        ]

    @pytest.mark.parametrize("name", ["a/stop", "a/best", "a/trials/0", "a b", "ä%41", "ä%2Fbest", "a\u00a0b", "?#+"])
    def test_a_name_is_a_name(self, here: Team, sqlite_url: str, name: str) -> None:
        """Also one that ends like a path of the API, looks encoded, or was made when any name could be."""
        path = f"/v1/studies/{quote(name, safe='')}"
        at_work(sqlite_url, name, finished=0, running=0)
        assert here.viewer.get(path).json()["study"]["name"] == name
        assert here.viewer.get(f"{path}/best").json() == {"best": []}
        assert {one["study"] for one in here.viewer.get(f"{path}/events").json()["events"]} == {name}
        assert here.viewer.get(f"{path}/trials/0").json()["study"] == name
        assert here.operator.patch(path, json={"trials": 20}).json()["study"] == name
        assert here.operator.post(f"{path}/stop").json()["said"] == f"{name} is stopped"
        assert here.viewer.get("/v1/studies/a").json()["state"] == "running"
        assert here.viewer.get(path.replace("%", "%25")).status_code == (404 if "%" in path else 200)

    def test_change_a_budget_and_a_place_in_the_queue(self, here: Team) -> None:
        changed = here.operator.patch("/v1/studies/a", json={"trials": 20, "priority": 3, "concurrency": 2})
        assert changed.status_code == 200, changed.text
        record = studies.find(here.storage, "a")
        assert (record.trials, record.priority, record.concurrency) == (20, 3, 2)
        assert here.operator.patch("/v1/studies/a", json={"concurrency": 0}).status_code == 200
        assert studies.find(here.storage, "a").concurrency is None
        refusals: tuple[tuple[dict[str, Any], int], ...] = (
            ({}, 409),
            ({"trials": 1}, 409),
            ({"trials": "+999999999", "total_epochs": 2**31 - 1}, 200),
            ({"trials": 2**31 - 1}, 200),
            ({"trials": "+1"}, 409),
            ({"total_epochs": "+1"}, 409),
            ({"trials": "20"}, 422),
            ({"trails": 20}, 422),
            ({"budget": "much"}, 409),
            ({"deadline": "yesterday"}, 409),
        )
        for body, status in refusals:
            refused = here.operator.patch("/v1/studies/a", json=body)
            assert refused.status_code == status, body
            assert "\n" not in refused.json().get("detail", "")

    def test_a_study_that_its_budgets_ended_goes_on_with_more(self, here: Team) -> None:
        """Everything that `dialin change` changes, in the words in which it takes it."""
        study = studies.find(here.storage, "a")
        with here.storage.backend.write() as session:
            session.execute(update(StudyRow).values(deadline=1.0))
        assert here.operator.post("/v1/studies/a/resume").status_code == 409
        wanted = {"trials": "+5", "total_epochs": "+100", "budget": "+1h", "until": 2.5, "deadline": "none"}
        changed = here.operator.patch("/v1/studies/a", json=wanted)
        assert changed.status_code == 200, changed.text
        more = studies.find(here.storage, "a")
        assert (more.trials, more.until, more.deadline) == (study.trials + 5, 2.5, None)
        assert more.budget_epochs == study.spent_epochs + 100
        assert more.budget_seconds == pytest.approx(study.spent_seconds + 3600)
        assert here.operator.post("/v1/studies/a/resume").status_code == 200

    def test_what_a_field_should_be_is_said_by_its_name(self, here: Team) -> None:
        said = here.operator.patch("/v1/studies/a", json={"trials": "20"}).json()["detail"]
        assert said.startswith("body.trials: ")
        assert "function" not in said

    def test_a_viewer_does_none_of_it(self, here: Team, sqlite_url: str) -> None:
        document = here.viewer.get("/v1/openapi.json").json()
        tried = 0
        for path, methods in document["paths"].items():
            for method in {*methods} - {"get"}:
                asked = here.viewer.request(method, "/v1" + path.replace("{study}", "a"), json={"trials": 20})
                assert asked.status_code == 403, (method, path)
                tried += 1
        assert tried >= 5
        assert value(sqlite_url, "SELECT count(*) FROM dialin_events") == 0

    def test_what_is_not_there_is_said_in_a_line(self, here: Team) -> None:
        for path in ("/v1/studies/b", "/v1/studies/a/trials/99", "/v1/studies/%00/best", "/v1/nowhere"):
            asked = here.viewer.get(path)
            assert asked.status_code == 404, path
            assert asked.json()["detail"]
        assert here.viewer.delete("/v1/studies").status_code == 403
        assert here.operator.delete("/v1/studies").status_code == 405


def test_the_document_describes_what_the_server_does(here: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemathesis makes requests of it, sound ones and broken ones, and holds each answer to it."""
    monkeypatch.setattr(Attempts, "failed", lambda *_: None)  # it comes with wrong tokens again and again
    from documented import every_answer_is_as_documented  # it imports Schemathesis, which no other test needs

    every_answer_is_as_documented(here.app, "/v1/openapi.json", here.operator_token)


class TestManyWhoAsk:
    def test_at_the_same_time_ask_the_database_once(self, here: Team, tmp_path: Path) -> None:
        asked, gate = [], threading.Event()

        def ask() -> int:
            asked.append(1)
            gate.wait(10)
            return 7

        desk = Desk(here.storage, tmp_path)
        answers: list[bytes] = []
        crowd = [threading.Thread(target=lambda: answers.append(desk.shared("x", ask))) for _ in range(8)]
        for one in crowd:
            one.start()
        gate.set()
        for one in crowd:
            one.join()
        assert answers == [b"7"] * 8
        assert len(asked) == 1

    def test_an_answer_is_given_again_for_a_moment_and_longer_where_it_took_long(
        self, here: Team, tmp_path: Path
    ) -> None:
        now, asked = [100.0], []

        def ask() -> int:
            now[0] += 3
            asked.append(now[0])
            return len(asked)

        desk = Desk(here.storage, tmp_path, clock=lambda: now[0])
        assert desk.shared("x", ask) == b"1"
        now[0] += 5.9
        assert desk.shared("x", ask) == b"1"
        now[0] += 0.2
        assert desk.shared("x", ask) == b"2"
        desk.forget()
        assert desk.shared("x", ask) == b"3"

    def test_what_one_reads_after_a_change_is_changed(self, here: Team) -> None:
        assert here.viewer.get("/v1/fleet").json()["studies"][0]["state"] == "running"
        here.operator.post("/v1/studies/a/stop")
        assert here.viewer.get("/v1/fleet").json()["studies"][0]["state"] == "stopped"


class TestOperations:
    def test_healthz_is_open(self, here: Team) -> None:
        assert here.stranger.get("/healthz").json() == {"status": "ok"}

    def test_metrics_are_for_whoever_has_a_token_and_prometheus_reads_them(self, there: Team) -> None:
        assert there.stranger.get("/metrics").status_code == 401
        waits, begins = new_uuid(), new_uuid()
        for worker in (waits, begins):
            queue.announce(there.storage, worker)
        queue.take(there.storage, begins)
        queue.begin(there.storage, begins, new_uuid())  # and now it loads the study's data
        listed = there.viewer.get("/v1/workers").json()["workers"]
        assert sorted(one["study"] for one in listed if one["training"] is None) == ["", "a"]
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(there.viewer.get("/metrics").text)
            for sample in family.samples
        }
        assert found["dialin_trials_total", "complete"] == 2
        assert found["dialin_trials_total", "out_of_memory"] == 1
        assert found["dialin_trials_total", "lost"] == 0
        assert found["dialin_epochs_total",] == 8
        assert found["dialin_device_seconds_total",] == pytest.approx(4.0)
        assert found["dialin_studies", "open"] == 1
        assert found["dialin_queue_trials",] == 6
        assert found["dialin_running_trials",] == 1
        assert (found["dialin_workers", "training"], found["dialin_workers", "idle"]) == (1, 2)
        assert 0 <= found["dialin_lease_age_seconds",] < 60
        assert found["dialin_sql_seconds_count",] > 5

    def test_a_database_that_went_away_is_said_without_a_word_of_its_own(self, here: Team, sqlite_url: str) -> None:
        file = Path(sqlite_url.removeprefix("sqlite:///"))
        here.storage.backend.engine.dispose()
        file.rename(file.with_suffix(".gone"))
        file.mkdir()
        for client, path in ((here.stranger, "/healthz"), (here.viewer, "/v1/studies"), (here.viewer, "/metrics")):
            asked = client.get(path)
            assert asked.status_code == 503, (path, asked.text)
            assert asked.json()["detail"] == "the database does not answer"


def test_a_timeline_is_read_back_by_time(here: Team) -> None:
    everything, now = timeline.events(here.storage, 0, 1000)
    assert [one.at for one in everything] == sorted(one.at for one in everything)
    late, _ = timeline.events(here.storage, everything[3].at, 1000)
    assert late == everything[3:]
    assert timeline.events(here.storage, now + 1, 1000)[0] == []
