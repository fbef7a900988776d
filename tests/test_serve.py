"""The commands `dialin serve` and `dialin token`: what they refuse, and the server as a person's browser sees it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from browser import CHROMIUM
from command import Running
from serving import at_work
from starlette.types import Receive, Scope, Send
from studies import SLOW, Inside, assert_settled, value
from uvicorn.server import ServerState

from search.server import run
from search.server.run import Connection, Listening
from storage.errors import UsageError
from storage.shared import open_storage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Milliseconds; a worker imports torch before its first epoch, on a machine that may be busy.
PATIENCE = 120_000
LONGER = "least => (document.querySelector('.curve path')?.getAttribute('d') ?? '').length > least"


def token_of(inside: Inside, url: str, name: str, role: str) -> str:
    made = inside("token", "create", name, "--role", role, "--storage", url)
    assert made.status == 0, made.err
    return made.out.strip()


def served(start: Callable[..., Running], url: str, *options: object) -> tuple[Running, str]:
    """A server on a free port of this machine, and its address."""
    running = start("serve", *(options or ("--port", 0)), DIALIN_STORAGE=url)
    running.wait_for("http://", timeout=120)
    return running, running.stdout[running.stdout.index("http://") :].split()[0]


class TestTokenCommand:
    def test_a_token_is_printed_once_and_listed_without_it(self, inside: Inside, either_url: str) -> None:
        open_storage(either_url).backend.engine.dispose()
        assert "there is no token yet" in inside("token", "list", "--storage", either_url).out
        token = token_of(inside, either_url, "anna", "operator")
        assert re.fullmatch(r"dialin_[\w-]{43}", token)
        assert token_of(inside, either_url, "bob", "viewer") != token
        listed = inside("token", "list", "--storage", either_url)
        assert token not in listed.out
        assert [line.split()[:2] for line in listed.out.splitlines()[1:]] == [["anna", "operator"], ["bob", "viewer"]]
        assert inside("token", "revoke", "anna", "--storage", either_url).status == 0
        records = json.loads(inside("token", "list", "--json", "--storage", either_url).out)
        assert [(one["name"], one["revoked_at"] is not None) for one in records] == [("anna", True), ("bob", False)]
        assert {*records[0]} == {"name", "role", "created_at", "last_used_at", "revoked_at"}

    @pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 65])
    def test_a_name_that_is_none_is_refused_in_one_line(self, inside: Inside, sqlite_url: str, name: str) -> None:
        refused = inside("token", "create", name, "--storage", sqlite_url)
        assert refused.status == 2
        assert refused.err.count("\n") == 1


class TestListening:
    @pytest.mark.parametrize(
        ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
    )
    def test_what_only_this_machine_reaches(self, host: str, local: bool) -> None:
        assert Listening(host).is_local is local

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_elsewhere_nobody_is_let_in_without_a_token(self, inside: Inside, sqlite_url: str, host: str) -> None:
        refused = inside("serve", "--host", host, "--storage", sqlite_url)
        assert refused.status == 2
        assert refused.err == (
            f"dialin: --host {host} lets others in, but there is no token: make one by `dialin token create NAME`\n"
        )
        behind_a_proxy = inside("serve", "--proxy", "127.0.0.1", "--storage", sqlite_url)
        assert behind_a_proxy.status == 2
        assert behind_a_proxy.err.startswith("dialin: --proxy lets others in")
        token_of(inside, sqlite_url, "anna", "operator")
        inside("token", "revoke", "anna", "--storage", sqlite_url)
        assert inside("serve", "--host", host, "--storage", sqlite_url).status == 2

    def test_a_port_in_use_and_a_certificate_or_proxy_that_is_none_are_one_line(
        self, inside: Inside, sqlite_url: str, tmp_path: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            refused = inside("serve", "--port", port, "--storage", sqlite_url)
        assert refused.status == 2
        assert refused.err.startswith(f"dialin: cannot listen on 127.0.0.1:{port} (Address already in use)")
        for certificate in ("nowhere.pem", "wrong.pem"):
            (tmp_path / "wrong.pem").write_text("no certificate")
            refused = inside("serve", "--tls-cert", certificate, "--storage", sqlite_url)
            assert refused.status == 2
            assert refused.err.startswith(f"dialin: cannot serve TLS with {certificate}")
            assert refused.err.count("\n") == 1
        for proxy in ("nginx", "*", "", "10.0.0.1,10.0.0.2"):
            refused = inside("serve", "--proxy", proxy, "--storage", sqlite_url)
            assert (refused.status, refused.err.count("\n")) == (2, 1)
            assert refused.err.startswith("dialin: --proxy is the address or network of a proxy")
        for objective, said in (
            ("nofile.py", "cannot read the objective nofile.py"),
            ("no_module", "there is no objective"),
        ):
            refused = inside("serve", "--objective", objective, "--storage", sqlite_url)
            assert (refused.status, refused.err.count("\n")) == (2, 1)
            assert refused.err.startswith(f"dialin: {said}")
        with pytest.raises(UsageError, match="--tls-key belongs to a --tls-cert"):
            Listening(key=tmp_path)


class TestConnections:
    def test_whoever_says_nothing_or_does_not_end_is_not_listened_to_for_long(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """But whoever waits for an answer is, and whoever sends too much was answered."""
        monkeypatch.setattr(run, "REQUEST_SECONDS", 0.2)
        asked = b"GET / HTTP/1.1\r\nHost: x\r\n"
        sent = [b"", asked, asked + b"\r\n", asked + b"Content-Length: 99\r\n\r\nx"]
        answers = asyncio.run(self.answers(sent))  # the server closed each
        assert answers[:2] == [b"", b""]
        assert [b"late" in answer for answer in answers[2:]] == [True, True]

    async def answers(self, sent: list[bytes]) -> list[bytes]:
        """All that a slow application says to whoever sends this; what is not whole goes on in drops."""

        async def late(_scope: Scope, _receive: Receive, send: Send) -> None:
            await asyncio.sleep(0.4)
            headers = [(b"content-length", b"4")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"late"})

        config = uvicorn.Config(late, log_config=None, lifespan="off", timeout_keep_alive=1)
        state = ServerState()
        config.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)

        async def ask(words: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(words)
            answer = asyncio.create_task(reader.read())
            for _ in range(40):
                if (await asyncio.wait([answer], timeout=0.1))[0]:
                    break
                if words and not words.endswith(b"\r\n\r\n"):
                    writer.write(b"x")
            writer.close()
            assert answer.done()
            return await answer

        async with server:
            return [*await asyncio.gather(*map(ask, sent))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[[], Page]]:
    """A new visitor's page; what its console complains of fails the test."""
    said: list[str] = []
    contexts = []

    def page() -> Page:
        contexts.append(browser.new_context())
        opened: Page = contexts[-1].new_page()
        opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: said.append(str(error)))
        return opened

    yield page
    for context in contexts:
        context.close()
    # Chromium itself reports every answer of 400 or more, also those that are meant.
    assert [line for line in said if "Failed to load resource" not in line] == []


def sign_in(page: Page, address: str, token: str) -> None:
    page.goto(address)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{address.rstrip('/')}/fleet")


class TestInABrowser:
    def test_an_operator_watches_a_study_through_the_death_of_the_server_and_pauses_it(
        self,
        look: Callable[[], Page],
        inside: Inside,
        start_dialin: Callable[..., Running],
        sqlite_url: str,
        tmp_path: Path,
    ) -> None:
        """On the fleet page and in the dashboard. Workers do not notice that the server is killed; a new one is."""
        token = token_of(inside, sqlite_url, "anna", "operator")
        running = start_dialin(
            *("run", SLOW, "--study", "watched", "--trials", 3, "--epochs", 40, "--workers", 1, "--pruner", "none"),
            DIALIN_STORAGE=sqlite_url,
        )
        server, address = served(start_dialin, sqlite_url)
        page = look()
        sign_in(page, address, token)
        machine = page.locator(".slot", has_text="watched trial")
        machine.get_by_text(re.compile(r"epoch \d+ of 40, accuracy 0\.\d{4}")).wait_for(timeout=PATIENCE)
        first = machine.locator(".curve path").get_attribute("d") or ""
        page.wait_for_function(LONGER, arg=len(first) + 20, timeout=PATIENCE)
        dashboard = page.context.new_page()
        dashboard.goto(f"{address}/dashboard/studies/1/trials")
        dashboard.get_by_text("Trial 0").first.wait_for(timeout=PATIENCE)
        key = tmp_path / "dialin-files" / "server.key"
        kept, epochs = key.read_bytes(), "SELECT count(*) FROM dialin_epochs"
        server.kill()
        page.get_by_text("no answer from the server").wait_for(timeout=PATIENCE)
        before = value(sqlite_url, epochs)
        running.wait_until(lambda: value(sqlite_url, epochs) > before)
        server, _ = served(start_dialin, sqlite_url, "--port", address.rpartition(":")[2])
        page.get_by_text("live", exact=True).wait_for(timeout=PATIENCE)
        assert key.read_bytes() == kept, "whoever was signed in still is"
        dashboard.get_by_text("Trial 1").first.wait_for(timeout=PATIENCE)
        dashboard.close()
        page.get_by_role("button", name="pause watched").click()
        page.locator("tr[data-study=watched]").get_by_text("paused", exact=True).wait_for()
        assert value(sqlite_url, "SELECT actor FROM dialin_events WHERE kind = 'paused'") == "anna"
        held = "SELECT count(*) FROM dialin_leases WHERE expires_at > 0"  # its trial may just have ended
        running.wait_until(lambda: value(sqlite_url, held) == 0)
        (tmp_path / "hurry").touch()
        page.get_by_role("button", name="resume watched").click()
        assert running.wait() == 0, running.stderr
        assert_settled(sqlite_url, "watched", 3)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert token not in server.stdout + server.stderr

    def test_a_viewer_sees_the_same_and_is_refused_when_it_deletes(
        self, look: Callable[[], Page], inside: Inside, start_dialin: Callable[..., Running], sqlite_url: str
    ) -> None:
        at_work(sqlite_url, "watched")
        token = token_of(inside, sqlite_url, "bob", "viewer")
        _, address = served(start_dialin, sqlite_url)
        page = look()
        sign_in(page, address, token)
        page.get_by_text("bob (viewer)").wait_for()
        page.get_by_text("does not fit").wait_for()
        assert page.locator("tr[data-study=watched] button").count() == 0
        row = page.locator("tr[data-study=watched]")
        assert "digits" in row.inner_text()
        page.set_viewport_size({"width": 400, "height": 800})  # a telephone: a study is a card
        assert {*row.inner_text().split()} == {"watched", "running", "3/10", "accuracy", "0.7100"}
        page.goto(f"{address}/dashboard/")
        page.get_by_text("watched").first.wait_for()
        page.get_by_role("button", name="delete").or_(page.get_by_label("delete")).first.click()
        with page.expect_response(lambda answer: answer.request.method == "DELETE") as answered:
            page.get_by_role("button", name=re.compile("yes|delete|ok", re.IGNORECASE)).last.click()
        assert answered.value.status == 403
        assert value(sqlite_url, "SELECT count(*) FROM studies") == 1
        page.goto(f"{address}/fleet")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token").wait_for()
