"""A study that is submitted to the server: its objective is tried there, one at a time and not for ever."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import pytest
from command import Running
from serving import Team, team
from studies import OBJECTIVES, TINY, TINY_TEXT, USUAL_IMPORTS, Inside, value, wait_until

from search import children
from search.server import control

# When it is tried it says so, and never comes back.
HANGING = TINY_TEXT.replace("    points =", "    Path('{}').touch()\n    while True:\n        pass\n    points =")


@pytest.fixture(autouse=True)
def _forked_from_one_process() -> None:
    with chdir(OBJECTIVES):  # torch cannot be imported in a folder that is gone, as this test's soon is
        children.warm_up(USUAL_IMPORTS)


@pytest.fixture
def tried(tmp_path: Path) -> Path:
    """The file that says that the objective `hanging.py` is being tried."""
    file = tmp_path / "tried"
    (tmp_path / "hanging.py").write_text(HANGING.format(file))
    return file


def submitted(client: Any, objective: str, **said: Any) -> tuple[int, str]:
    """What the server says to a submission: its status and its line."""
    answer = client.post("/v1/studies", json={"objective": objective, "trials": 2, "transfer": False, **said})
    told = answer.json()
    return answer.status_code, told.get("said") or told["detail"]


@pytest.fixture
def here(sqlite_url: str, tmp_path: Path) -> Iterator[Team]:
    with team(sqlite_url, tmp_path / "files") as made:
        yield made


@pytest.mark.parametrize("name", ["a\u00a0b", "a\u200bb", "\u202etxt", ".", ".."])
def test_a_name_that_nobody_could_type_or_ask_for_is_refused(here: Team, inside: Inside, name: str) -> None:
    status, said = submitted(here.operator, "digits", study=name)
    assert (status, said) == (409, f"--study is the new study's name, printable and neither . nor .., but got {name!r}")
    refused = inside("submit", "digits", "--study", name)
    assert (refused.status, refused.err) == (2, f"dialin: {said}\n")


@pytest.mark.parametrize("given", [{"ranges": {"lr": [0.1, 10**399]}}, {"fix": {"lr": -(10**399)}}])
def test_a_number_that_is_too_large_is_refused(here: Team, given: dict[str, Any]) -> None:
    status, said = submitted(here.operator, "digits", **given)
    assert status == 422
    assert "9007199254740992" in said


class TestAnObjectiveThatHangs:
    @pytest.fixture
    def ending(self) -> Event:
        return Event()

    @pytest.fixture
    def there(self, sqlite_url: str, tmp_path: Path, ending: Event) -> Iterator[Team]:
        with team(sqlite_url, tmp_path / "files", "hanging.py", str(TINY), stop=ending.is_set) as made:
            yield made

    def test_is_given_up_and_the_next_one_is_tried(
        self, there: Team, tried: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "TRYING_SECONDS", 1.0)
        status, said = submitted(there.operator, "hanging.py")
        assert status == 409
        assert re.fullmatch(r"hanging.py was not done with one batch after \d+ s", said)
        monkeypatch.setattr(control, "TRYING_SECONDS", 300.0)
        assert submitted(there.operator, TINY.name, study="next") == (201, "next is submitted")

    def test_is_not_waited_for_by_another_for_ever_nor_when_the_server_ends(
        self, there: Team, tried: Path, ending: Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "TURN_SECONDS", 0.1)
        with ThreadPoolExecutor(1) as other:
            hangs = other.submit(submitted, there.operator, "hanging.py")
            wait_until(tried.exists, "the first one's turn")
            assert submitted(there.operator, TINY.name) == (409, "another objective is being tried here: ask again")
            ending.set()
            assert hangs.result(60)[0] == 409


def test_a_submission_opens_no_connections_of_its_own(postgres_url: str, tmp_path: Path) -> None:
    """docs/serving.md says how many the server holds; those that are not used rest for half a minute."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dialin' AND datname = current_database()"
    with team(postgres_url, tmp_path, str(TINY)) as there:
        for number in range(3):
            assert submitted(there.operator, TINY.name, study=f"s-{number}", transfer=True)[0] == 201
            assert value(postgres_url, count) <= 4, number
        assert there.storage.backend.engine.pool.status().startswith(f"{value(postgres_url, count)} idle")


def test_a_server_ends_at_once_while_an_objective_is_tried(
    start_dialin: Callable[..., Running], sqlite_url: str, tried: Path
) -> None:
    server = start_dialin("serve", "--port", 0, "--objective", "hanging.py", DIALIN_STORAGE=sqlite_url)
    server.wait_for("http://", timeout=120)
    address = server.stdout[server.stdout.index("http://") :].split()[0]
    with httpx.Client(base_url=address, headers={"origin": address}, timeout=60) as client, ThreadPoolExecutor(1) as me:
        asked = me.submit(client.post, "/v1/studies", json={"objective": "hanging.py"})
        server.wait_until(tried.exists, timeout=120)
        started = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, server.stderr
        asked.exception(60)  # it may have had an answer, or none
    wait_until(lambda: not any(one.is_running() for one in started), "the end of what it had started")
