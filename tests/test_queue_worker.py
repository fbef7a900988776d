"""`dialin worker` without a study's name: it serves whatever is open, allows what it was told to, and heeds people."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Dialin
from storage_places import a_study, make_study, run_trial, statements, worker_on
from studies import SLOW, TINY, TINY_TEXT, Inside, assert_settled, meanwhile, rows, value, wait_until

from search import left_alone, loading, space_changes, worker
from search.allowed import Allowed
from search.kept import Kept
from search.place import Place
from search.preflight import Placement
from search.queue_worker import QueueWorker
from search.told import Told, as_json_line
from storage import queue_page, steering, studies, workers
from storage.errors import UsageError
from storage.shared import SharedStorage, open_storage
from storage.steering import Wish
from storage.tables import StudyState

AGREED = "0" * 64


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    monkeypatch.setenv("DIALIN_STORAGE", url)
    return url


@pytest.fixture
def serve(url: str, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a worker of the queue here until nothing is open; the events that it told."""

    def serve(*given: object, idle: float = 0.0) -> list[dict[str, Any]]:
        lines: list[str] = []
        place = Place(url, tmp_path / "files", None, Placement(1, "cpu"))
        place.make_folders()
        told = Told(as_json=True, write=lines.append)
        QueueWorker(place, [str(one) for one in given], open_storage(url), told, idle).serve()
        return [json.loads(line) for line in lines]

    return serve


def submit(inside: Inside, *arguments: object) -> str:
    said = inside("submit", *arguments, "--json")
    assert said.status == 0, said.err
    return str(json.loads(said.out)["study"])


class TestServing:
    def test_it_goes_on_with_another_study_when_one_ends(
        self, inside: Inside, url: str, serve: Callable[..., list[dict[str, Any]]]
    ) -> None:
        """Also with one that its own machine has under another path; each event says of which study and trial it is."""
        first = submit(inside, TINY, "--trials", 2, "--priority", 2, "--sampler", "random")
        second = submit(inside, TINY, "--trials", 2, "--sampler", "random")
        events = serve(TINY)
        for name in (first, second):
            study = studies.find(open_storage(url), name)
            assert study.taken == 2
        settled = [(one["study"], one["trial"]) for one in events if one["event"] == "trial settled"]
        assert settled == [(first, 0), (first, 1), (second, 0), (second, 1)]
        assert [one["event"] for one in events][-1] == "ended"
        taken = [one for one in events if one["event"] == "study taken"]
        assert [(one["study"], one["slot"]) for one in taken] == [(first, "cpu/0"), (second, "cpu/0")]
        assert {one["level"] for one in events} == {"info"}
        assert queue_page.look(open_storage(url)).workers == ()

    def test_lines_for_people_say_of_which_study_a_trial_is(self, url: str, tmp_path: Path) -> None:
        study, lines = a_study(open_storage(url), TINY), list[str]()
        place = Place(url, tmp_path / "files", None, Placement(1, "cpu"))
        place.make_folders()
        QueueWorker(place, [str(TINY)], open_storage(url), Told(write=lines.append), 0.0).serve()
        taken, settled, left, *_ = lines
        assert taken == f"worker for {study.name} on cpu/0"
        assert settled.startswith(f"{study.name}: trial 0 complete")
        assert left.startswith(f"leaving {study.name}: ")

    def test_alone_with_studies_of_one_priority_it_serves_each_in_its_turn(
        self, inside: Inside, serve: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.queue_worker.STAY_SECONDS", 0.0)  # no trial is too short to move on after
        names = [submit(inside, TINY, "--trials", 2, "--sampler", "random", "--study", name) for name in "abc"]
        settled = [one["study"] for one in serve(TINY) if one["event"] == "trial settled"]
        assert settled[:3] == names, "and then whoever had the least time"
        assert sorted(settled) == sorted(names * 2)

    def test_what_is_not_allowed_or_another_source_is_left_alone_and_why_is_said_once(
        self, inside: Inside, url: str, tmp_path: Path, serve: Callable[..., list[dict[str, Any]]]
    ) -> None:
        mine = tmp_path / "mine.py"
        mine.write_text(TINY_TEXT)
        name = submit(inside, mine, "--trials", 1)
        refused = [one for one in serve() if one["event"] == "study refused"]
        assert [one["study"] for one in refused] == [name]
        assert "--objective" in refused[0]["message"]
        mine.write_text(TINY_TEXT + "\n# another line\n")
        refused = [one for one in serve(mine) if one["event"] == "study refused"]
        assert len(refused) == 1
        assert "is not the study's" in refused[0]["message"]
        assert studies.find(open_storage(url), name).taken == 0


class TestGoingOn:
    """What happens to one study is not the end of a worker that serves them all."""

    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(left_alone, "AGREED_SECONDS", 0.0)

    def test_one_of_which_no_source_is_on_record_is_left_alone(
        self, url: str, serve: Callable[..., list[dict[str, Any]]]
    ) -> None:
        make_study(open_storage(url), objective=str(TINY), objective_sha256="", trials=1)
        [refused] = [one for one in serve(TINY) if one["event"] == "study refused"]
        assert "is not the study's ()" in refused["message"]

    def test_one_that_is_deleted_while_the_worker_sits_down(
        self, url: str, serve: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage, ordinal = open_storage(url), workers.ordinal
        gone, other = a_study(storage, TINY), a_study(storage, TINY)

        def delete_first(worker_storage: SharedStorage, worker_id: str) -> int:
            if gone.study_id in {study._study_id for study in storage.get_all_studies()}:
                storage.delete_study(gone.study_id)
            return ordinal(worker_storage, worker_id)

        monkeypatch.setattr(workers, "ordinal", delete_first)
        reasons = [one["reason"] for one in serve(TINY) if one["event"] == "study left"]
        assert reasons[0] == "the study was deleted"
        assert studies.find(storage, other.name).taken == 1

    def test_one_that_cannot_be_trained_here_leaves_the_place_free(
        self, url: str, serve: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a_study(open_storage(url), TINY)

        def refuse(*_: object) -> None:
            raise UsageError("no such tracker")

        monkeypatch.setattr(worker, "make_trackers", refuse)
        [refused] = [one for one in serve(TINY) if one["event"] == "study refused"]
        assert refused["reason"] == "no such tracker"
        assert rows(url, "SELECT ended_at IS NULL FROM dialin_workers") == [(0,)]

    def test_one_that_was_resumed_with_another_source_is_trained_with_that(
        self, url: str, tmp_path: Path, serve: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine, storage = tmp_path / "mine.py", open_storage(url)
        mine.write_text(TINY_TEXT)
        study = a_study(storage, mine, trials=2)

        def edit(told: Told, event: str, *rest: Any, **fields: Any) -> None:
            tell(told, event, *rest, **fields)
            if event == "trial settled" and fields["trial"] == 0:
                mine.write_text(f"{TINY_TEXT}\n# edited\n")
                now = loading.resolve(str(mine))
                space = space_changes.describe(now.objective, now.source_sha256, whole=False)
                storage.set_study_system_attr(study.study_id, space_changes.KEY, space.as_dict())

        tell = Told.__call__
        monkeypatch.setattr(Told, "__call__", edit)
        events = serve(mine)
        assert [one["event"] for one in events].count("study taken") == 2
        assert "it was resumed with another source" in [one.get("reason") for one in events]
        assert studies.find(storage, study.name).taken == 2

    def test_what_is_asked_between_two_trials_does_not_grow_with_the_studies_that_are_open(
        self, url: str, tmp_path: Path
    ) -> None:
        storage = open_storage(url)
        place = Place(url, tmp_path / "files", None, Placement(1, "cpu"))
        told: list[str] = []
        serving = QueueWorker(place, [str(TINY)], storage, Told(write=told.append))
        counts = []
        for _ in range(2):
            for _ in range(3):
                a_study(storage, "pkg.mine")
            with statements(storage) as asked:
                serving._without()
            counts.append(len(asked))
        assert counts[0] == counts[1]
        assert len(told) == 6


class TestPeople:
    def test_two_workers_heed_what_people_do_to_their_study(
        self, dialin: Dialin, inside: Inside, url: str, tmp_path: Path
    ) -> None:
        """A limit, a pause, a larger budget, SIGTERM: what was trained is handed back each time, and gone on with."""
        name = submit(inside, SLOW, "--trials", 2, "--epochs", 60, "--sampler", "random", "--pruner", "none")
        worker = ("worker", "--objective", SLOW, "--devices", "cpu", "--json")
        first, second = [dialin.start(*worker, DIALIN_STORAGE=url) for _ in range(2)]
        held, epochs = "SELECT count(*) FROM dialin_leases WHERE expires_at > 0", "SELECT count(*) FROM dialin_epochs"
        first.wait_until(lambda: value(url, "SELECT count(DISTINCT trial_id) FROM dialin_epochs") == 2)
        assert "at most 1 trial at once" in inside("change", name, "--concurrency", 1).out
        first.wait_until(lambda: value(url, held) == 1)
        assert "is paused" in inside("pause", name).out
        first.wait_until(lambda: value(url, held) == 0)
        assert inside("status", name).out.startswith(f"{name}: paused: by ")
        assert "paused" in inside("queue").out
        changed = inside("change", name, "--trials", "+1", "--priority", 2, "--concurrency", 0)
        assert "1 more trial" in changed.out
        before = value(url, epochs)
        assert "is open" in inside("resume", name, "--queue").out
        first.wait_until(lambda: value(url, held) == 2 and value(url, epochs) > before)
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0
        assert '"event": "trial handed back"' in first.stdout
        (tmp_path / "hurry").touch()
        second.wait_for('"event": "waiting"')
        second.wait_until(lambda: value(url, "SELECT count(*) FROM dialin_trials WHERE outcome IS NOT NULL") == 3)
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 0
        assert_settled(url, name, 3)
        trained = rows(url, "SELECT trial_id, epoch FROM dialin_epochs")
        assert len(trained) == len({*map(tuple, trained)}) == 180, "no epoch twice, none left out"

    def test_a_worker_of_one_study_waits_while_it_is_paused(self, inside: Inside, url: str, tmp_path: Path) -> None:
        name = submit(inside, SLOW, "--trials", 1, "--sampler", "random")

        def pause_and_resume() -> None:
            looking = open_storage(url)
            study_id = studies.find(looking, name).study_id
            wait_until(lambda: value(url, "SELECT count(*) FROM dialin_epochs") > 0, "it trains")
            steering.pause(looking, study_id, "ana")
            wait_until(lambda: value(url, "SELECT max(expires_at) FROM dialin_leases") == 0, "it hands back")
            (tmp_path / "hurry").touch()
            steering.resume(looking, study_id, Wish(), "bo")

        with meanwhile(pause_and_resume):
            said = inside("worker", name, "--objective", SLOW, "--devices", "cpu")
        assert said.status == 0
        assert "trial 0 handed back: the study was paused" in said.out
        assert_settled(url, name, 1)

    def test_nothing_to_change_and_nothing_to_pause_are_one_line(self, inside: Inside, url: str) -> None:
        storage = open_storage(url)
        study = make_study(storage)
        assert inside("change").err == "dialin: nothing to change: say what, as by --priority 3 or --trials +20\n"
        steering.stop(storage, study.study_id, "lunch", "bo")
        said = inside("pause")
        assert (said.status, said.err) == (2, f"dialin: {study.name} is stopped already: lunch\n")
        assert studies.find(storage, study.name).state is StudyState.STOPPED

    def test_a_finished_study_has_nothing_to_pause_or_stop(self, inside: Inside, url: str) -> None:
        storage = worker_on(url)
        study = make_study(storage, trials=1)
        run_trial(storage, study)
        said = inside("pause")
        assert (said.status, said.err) == (2, f"dialin: {study.name} is finished: there is nothing to pause\n")
        said = inside("stop")
        assert (said.status, said.out) == (0, f"{study.name} is finished: there is nothing to stop\n")


class TestAllowed:
    def test_built_in_objectives_always_are(self) -> None:
        assert Allowed([]).reference("digits") == "digits"
        assert Allowed([]).reference("/home/ana/digits.py") is None

    def test_a_module_of_ones_own_is_known_by_the_name_of_its_file(self) -> None:
        allowed = Allowed(["./here/my_model.py", "pkg.other:net"])
        assert allowed.reference("/home/ana/my_model.py") == "./here/my_model.py"
        assert allowed.reference("/home/ana/my_model.py:small") == "./here/my_model.py:small"
        assert allowed.reference("pkg.other:net") == "pkg.other:net"
        assert allowed.reference("pkg.other:large") is None, "only the one that was named"
        assert allowed.reference("pkg.other") is None

    def test_of_two_files_of_one_name_it_is_the_one_that_the_study_was_made_with(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.py").write_text(name)
        allowed = Allowed([str(tmp_path / name / "model.py") for name in ("a", "b")])
        agreed = hashlib.sha256(b"b").hexdigest()
        assert allowed.reference("/elsewhere/model.py", agreed) == str(tmp_path / "b" / "model.py")
        assert allowed.why_not("/elsewhere/model.py", agreed) == ""

    def test_a_package_that_fails_when_it_is_looked_for_is_no_end_of_the_worker(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "broken_package").mkdir()
        (tmp_path / "broken_package" / "__init__.py").write_text("raise RuntimeError")
        monkeypatch.chdir(tmp_path)
        assert "no source" in Allowed(["broken_package.net"]).why_not("broken_package.net", AGREED)

    def test_what_was_written_in_a_notebook_is_said(self) -> None:
        assert "in a notebook" in Allowed([]).why_not("notebook:net", AGREED)

    def test_nothing_else_is_even_looked_for(self) -> None:
        assert "is not allowed here" in Allowed([]).why_not("os.path", AGREED)
        assert "is not allowed here" in Allowed(["mine.py"]).why_not("/etc/passwd.py", AGREED)

    def test_a_file_that_is_not_there_or_another_is_said(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        allowed = Allowed([str(file)])
        assert "cannot read" in allowed.why_not("/elsewhere/mine.py", AGREED)
        file.write_text("objective = None\n")
        assert "is not the study's (00000000)" in allowed.why_not("/elsewhere/mine.py", AGREED)


def test_modules_and_data_of_the_last_studies_are_kept_together_and_no_more(tmp_path: Path) -> None:
    ran: list[str] = []

    def resolve(given: Any) -> Any:
        ran.append(Path(given).stem)
        return given

    def load(_shared: Any, loaded: Any, _root: Path, _say: Any) -> Any:
        ran.append(f"data of {Path(loaded).stem}")
        return loaded

    kept = Kept(2, resolve, load)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.py").write_text(name)

    def serve(name: str) -> None:
        file = str(tmp_path / f"{name}.py")
        assert kept.load(None, kept.resolve(file), Path("data"), print) == file

    for name in ("a", "b", "a", "c", "a"):
        serve(name)
    assert ran == ["a", "data of a", "b", "data of b", "c", "data of c"]
    ran.clear()
    serve("b")
    (tmp_path / "b.py").write_text("another")
    serve("b")
    assert ran == ["b", "data of b"] * 2, "it had made room, and then its source was another"


def test_an_event_for_programs_is_one_object_on_one_line() -> None:
    line = as_json_line("trial settled", "two\nlines", "info", {"trial": 3, "value": float("inf"), "reason": None})
    assert "\n" not in line
    told = json.loads(line)
    assert {"time", "level", "event", "message", "host", "pid", "trial", "value"} == {*told}
    assert told["value"] == "inf", "JSON has no such number"
