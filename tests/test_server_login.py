"""Who comes in to the server and who does not: tokens, sessions of browsers, other sites' pages, guessing, sizes."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from serving import HOST, KEY, Team, at_work, team
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from studies import engines_disposed

from search.place import Place
from search.server import pages, sessions
from search.server.access import Access, Stranger, Visitor
from search.server.app import make_app
from search.server.attempts import ADDRESSES, MOST, SECONDS, Attempts
from search.server.control import Control
from search.server.desk import Desk
from search.server.guard import Guard
from storage import tokens
from storage.errors import UsageError
from storage.shared import open_storage
from storage.tables import Role


@pytest.fixture
def there(sqlite_url: str, tmp_path: Path) -> Iterator[Team]:
    with team(sqlite_url, tmp_path) as made:
        yield made


async def never() -> Message:
    """The rest of a request that does not come."""
    await anyio.sleep(5)
    raise AssertionError("it was waited for")


async def gone() -> Message:
    """The rest of a request whose sender went away."""
    return {"type": "http.disconnect"}


def sent_to(app: ASGIApp, receive: Receive) -> list[Message]:
    """What the server sends whoever begins to sign in."""
    said: list[Message] = []

    async def send(message: Message) -> None:
        said.append(message)

    headers = [(b"host", b"x"), (b"origin", b"http://x"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": "/login", "query_string": b"", "headers": headers}
    anyio.run(app, {**scope, "scheme": "http", "root_path": ""}, receive, send)
    return said


def stop(client: TestClient, **headers: str) -> int:
    return client.post("/v1/studies/digits-1/stop", headers=headers).status_code


def test_a_stranger_has_no_other_method_where_some_are_public(there: Team) -> None:
    for path, methods in (("/healthz", ["GET", "HEAD"]), ("/login", ["GET", "HEAD", "POST"])):
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            asked = there.somebody(origin=HOST).request(method, path)
            assert (asked.headers.get("www-authenticate") == "Bearer") is (method not in methods), (method, path)


class TestTokens:
    def test_a_token_is_on_no_record_and_its_digest_is(self, there: Team, sqlite_url: str, tmp_path: Path) -> None:
        there.storage.backend.engine.dispose()
        database = (tmp_path / "study.db").read_bytes() + b"".join(f.read_bytes() for f in tmp_path.glob("study.db-*"))
        assert there.operator_token.encode() not in database
        assert tokens.digest(there.operator_token).encode() in database

    def test_what_comes_in_with_a_token_is_noted(self, there: Team) -> None:
        assert there.viewer.get("/v1/me").json() == {
            "name": "a viewer",
            "role": "viewer",
            "may_write": False,
            "login": True,
        }
        used = {token.name: token.last_used_at for token in tokens.tokens(there.storage)}
        assert used["a viewer"] is not None
        assert used["a operator"] is None

    def test_a_revoked_token_opens_nothing_nor_does_a_browser_signed_in_with_it(self, there: Team) -> None:
        browser = there.browser(there.operator_token)
        assert browser.get("/v1/studies").status_code == 200
        tokens.revoke(there.storage, "a operator")
        access = Access(there.storage, KEY, always=True)
        assert access.visitor(f"Bearer {there.operator_token}", {}, "") == Stranger(is_wrong=True)
        assert access.visitor(None, {sessions.COOKIE: browser.cookies[sessions.COOKIE]}, "") == Stranger()

    @pytest.mark.parametrize(
        "authorization", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic dTpw", "bearer \x00", "Bearer é"]
    )
    def test_nothing_else_opens(self, there: Team, authorization: str) -> None:
        asked = there.stranger.get("/v1/studies", headers=[(b"authorization", authorization.encode("latin-1"))])
        assert asked.status_code == 401
        assert asked.headers["www-authenticate"] == "Bearer"
        is_token = authorization.lower().startswith("bearer") and authorization[7:] != ""
        assert ("not known here" in asked.json()["detail"]) == is_token

    def test_a_name_is_used_once_even_by_one_that_is_revoked(self, there: Team) -> None:
        tokens.revoke(there.storage, "a viewer")
        with pytest.raises(UsageError, match="there is, or was, a token named 'a viewer'"):
            tokens.create(there.storage, "a viewer", Role.OPERATOR)
        with pytest.raises(UsageError, match=r"no token named 'bob'; there is: a viewer, a operator"):
            tokens.revoke(there.storage, "bob")


class TestSessions:
    def test_a_browser_signs_in_once_and_is_sent_where_it_wanted_to_go(self, there: Team) -> None:
        stranger = there.somebody(origin=HOST)
        sent = stranger.get("/dashboard/studies/1?x=2", headers={"accept": "text/html"})
        assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/dashboard/studies/1%3Fx%3D2")
        form = stranger.get(sent.headers["location"])
        assert 'value="/dashboard/studies/1?x=2"' in form.text
        signed_in = stranger.post("/login", data={"token": there.viewer_token, "next": "/dashboard/studies/1?x=2"})
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/dashboard/studies/1?x=2")
        cookie = signed_in.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert there.viewer_token not in cookie
        assert "Secure" not in cookie  # nor would it come back over http
        assert stranger.get("/v1/me").json()["name"] == "a viewer"

    def test_over_tls_the_cookie_never_leaves_it(self, there: Team) -> None:
        client = TestClient(there.app, base_url="https://dialin.test", follow_redirects=False)
        answer = client.post("/login", data={"token": there.viewer_token}, headers={"origin": "https://dialin.test"})
        assert "Secure" in answer.headers["set-cookie"]
        assert "max-age" in answer.headers["strict-transport-security"]

    @pytest.mark.parametrize("wanted", ["//evil.test", "/\\evil.test", "https://evil.test", "javascript:alert(1)", ""])
    def test_signing_in_leads_to_no_other_server(self, there: Team, wanted: str) -> None:
        answer = there.somebody(origin=HOST).post("/login", data={"token": there.viewer_token, "next": wanted})
        assert answer.headers["location"] == "/fleet"

    def test_what_is_wanted_does_not_become_markup(self, there: Team) -> None:
        assert "<script>" not in there.stranger.get("/login", params={"next": '"><script>'}).text

    def test_what_a_browser_sends_to_a_proxy_before_the_server_does_not_turn_it_away(self, there: Team) -> None:
        browser = there.browser(there.viewer_token)
        assert browser.get("/v1/me", headers={"authorization": "Basic dTpw"}).status_code == 200
        assert browser.get("/v1/me", headers={"authorization": "Bearer wrong"}).status_code == 401

    def test_signing_out_ends_it(self, there: Team) -> None:
        browser = there.browser(there.viewer_token)
        assert browser.post("/logout").headers["location"] == "/login"
        assert browser.get("/v1/me").status_code == 401

    def test_a_cookie_that_was_written_by_somebody_else_opens_nothing(self, there: Team) -> None:
        digest = tokens.digest(there.operator_token)
        good = sessions.cookie(KEY, "a operator", digest, 1000)
        claim = sessions.read(good)
        assert claim is not None
        assert sessions.holds(KEY, claim, digest, 1000)
        assert not sessions.holds(b"other", claim, digest, 1000)
        assert not sessions.holds(KEY, claim, tokens.digest("a new token of that name"), 1000)
        assert not sessions.holds(KEY, claim, digest, 1000 + sessions.LIFETIME_SECONDS)
        named, issued, seal = good.split(".")
        for forged in (f"{named}.{int(issued) + 1}.{seal}", f"{named}.{issued}.{'0' * 64}"):
            read = sessions.read(forged)
            assert read is not None
            assert not sessions.holds(KEY, read, digest, 1000)
        for nonsense in (
            "",
            "..",
            "a.b.c",
            f"{named}.{issued}",
            "\xff.1.é",
            f"w7.{issued}.{seal}",
            f"{named}.x.{seal}",
        ):
            assert sessions.read(nonsense) is None, nonsense
            cookie = f"{sessions.COOKIE}={nonsense}".encode("latin-1")
            asked = there.stranger.get("/v1/me", headers=[(b"cookie", cookie)])
            assert asked.status_code == 401, nonsense

    def test_the_key_is_kept_for_the_next_server_and_readable_by_nobody_else(self, tmp_path: Path) -> None:
        key = sessions.load_key(tmp_path / "files")
        assert sessions.load_key(tmp_path / "files") == key
        assert stat.S_IMODE((tmp_path / "files" / sessions.KEY_FILE).stat().st_mode) == 0o600
        (tmp_path / "file").touch()
        alone = sessions.load_key(tmp_path / "file")
        assert len(alone) == sessions.KEY_BYTES
        assert alone != sessions.load_key(tmp_path / "file")


class TestOtherSites:
    @pytest.fixture(autouse=True)
    def _study(self, there: Team, sqlite_url: str) -> None:
        at_work(sqlite_url, "digits-1")

    def test_their_pages_cannot_write_with_a_browsers_session(self, there: Team) -> None:
        browser = there.browser(there.operator_token)
        del browser.headers["origin"]
        assert stop(browser) == 403
        assert stop(browser, origin="http://evil.test") == 403
        assert stop(browser, origin="null") == 403
        assert stop(browser, origin=HOST, **{"sec-fetch-site": "cross-site"}) == 403
        assert stop(browser, origin="http://evil.dialin.test", **{"sec-fetch-site": "same-site"}) == 403
        assert browser.delete("/api/studies/1", headers={"origin": "http://evil.test"}).status_code == 403
        assert there.storage.get_study_name_from_id(1) == "digits-1"
        assert stop(browser, origin=HOST) == 200

    def test_nor_sign_it_in(self, there: Team) -> None:
        answer = there.stranger.post(
            "/login", data={"token": there.viewer_token}, headers={"origin": "http://evil.test"}
        )
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    def test_nobody_comes_in_by_a_web_socket(self, there: Team) -> None:
        """Whatever is behind the guard, now or in a later version."""

        async def takes_everyone(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "websocket.accept"})

        guarded = Guard(takes_everyone, Access(there.storage, KEY, always=True))
        with pytest.raises(WebSocketDisconnect), TestClient(guarded, base_url=HOST).websocket_connect("/v1/studies"):
            pass

    def test_a_program_with_a_token_is_on_no_page(self, there: Team) -> None:
        assert stop(there.operator) == 200

    def test_every_answer_says_what_a_browser_may_do_with_it(self, there: Team) -> None:
        for path in ("/login", "/fleet", "/v1/studies", "/dashboard/", "/api/studies", "/nowhere", "/healthz"):
            headers = there.viewer.get(path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["x-frame-options"] == "SAMEORIGIN", path
            assert "default-src" in headers["content-security-policy"], path
            assert "server" not in headers, path
        assert "sandbox" in there.viewer.get("/artifacts/1/x").headers["content-security-policy"]


class TestNobodyHasAToken:
    @pytest.fixture
    def access(self, sqlite_url: str) -> Iterator[Access]:
        with engines_disposed():
            yield Access(open_storage(sqlite_url), KEY, always=False)

    def test_everyone_on_this_machine_comes_in_until_the_first_one_is_made(self, access: Access) -> None:
        found = access.visitor(None, {}, "127.0.0.1")
        assert isinstance(found, Visitor)
        assert found.may_write
        tokens.create(access._storage, "me", Role.VIEWER)
        access._read_at = None  # a second later
        assert access.visitor(None, {}, "127.0.0.1") == Stranger()
        tokens.revoke(access._storage, "me")
        access._read_at = None
        assert access.visitor(None, {}, "127.0.0.1") == Stranger()

    def test_a_page_that_calls_itself_otherwise_does_not(self, access: Access, tmp_path: Path) -> None:
        """A name of somebody else's that leads to 127.0.0.1, as DNS rebinding makes it."""
        app = make_app(Desk(access._storage, tmp_path), access, Control(access._storage, Place())).app
        for host, status in (
            ("localhost:8080", 200),
            ("127.0.0.1", 200),
            ("[::1]:8080", 200),
            ("evil.test", 403),
            ("[", 403),
        ):
            client = TestClient(app, base_url="http://localhost", headers={"host": host})
            assert client.get("/v1/studies").status_code == status, host
        client = TestClient(app, base_url="http://localhost")
        assert client.post("/v1/studies/x/stop").status_code == 403
        assert client.post("/v1/studies/x/stop", headers={"origin": "http://localhost"}).status_code == 404


def test_the_log_says_who_came_in_who_changed_what_and_who_was_turned_away(there: Team, sqlite_url: str) -> None:
    """And no token, nor the cookie that was made of one."""
    at_work(sqlite_url, "digits-1")
    lines: list[str] = []
    log, handler = logging.getLogger("dialin.server"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        browser = there.browser(there.operator_token)
        assert stop(browser) == 200
        assert there.viewer.delete("/api/studies/1?x=secret").status_code == 403
        assert there.somebody("wrong").get("/v1/studies").status_code == 401
        browser.get("/v1/studies")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    told = [(one.get("who"), one["method"], one["path"], one["status"]) for one in map(json.loads, lines)]
    assert told == [
        ("a operator", "POST", "/login", 303),
        ("a operator", "POST", "/v1/studies/digits-1/stop", 200),
        ("a viewer", "DELETE", "/api/studies/1", 403),
        (None, "GET", "/v1/studies", 401),
    ]
    for secret in (there.operator_token, there.viewer_token, "wrong", "secret", browser.cookies[sessions.COOKIE]):
        assert secret not in "".join(lines)


class TestGuessing:
    def test_an_address_that_guesses_is_not_looked_at_for_a_while(self) -> None:
        now = [1000.0]
        attempts = Attempts(lambda: now[0])
        for number in range(MOST):
            assert attempts.wait("a") == 0
            attempts.failed("a", str(number))
            now[0] += 1
        assert attempts.wait("a") == SECONDS - MOST
        assert attempts.wait("b") == 0
        now[0] += SECONDS - MOST
        assert attempts.wait("a") == 0

    def test_a_flood_from_everywhere_does_not_fill_the_memory(self) -> None:
        attempts = Attempts()
        for number in range(ADDRESSES + 10):
            attempts.failed(str(number), "x")
        assert len(attempts._failed) == ADDRESSES

    def test_the_right_token_opens_nothing_there_either_but_for_whoever_used_it_before(self, there: Team) -> None:
        assert there.viewer.get("/v1/me").status_code == 200
        for number in range(MOST):
            assert there.somebody(f"guess {number}").get("/v1/me").status_code in (401, 429)
        turned_away = there.operator.get("/v1/me")
        assert turned_away.status_code == 429
        assert 0 < int(turned_away.headers["retry-after"]) <= SECONDS
        form = there.somebody(origin=HOST).post("/login", data={"token": there.operator_token})
        assert form.status_code == 429
        assert there.viewer.get("/v1/me").status_code == 200
        used = [token.name for token in tokens.tokens(there.storage) if token.last_used_at is not None]
        assert used == ["a viewer"]

    def test_also_before_the_server_was_started_again(self, there: Team) -> None:
        assert there.viewer.get("/v1/me").status_code == 200
        access = Access(there.storage, KEY, always=True)
        for number in range(MOST):
            assert isinstance(access.visitor(f"Bearer guess {number}", {}, "a"), Stranger)
        assert isinstance(access.visitor(f"Bearer {there.viewer_token}", {}, "a"), Visitor)
        assert isinstance(access.visitor(f"Bearer {there.operator_token}", {}, "a"), Stranger)

    def test_a_program_that_was_left_with_a_revoked_token_keeps_nobody_out(self, there: Team) -> None:
        for _ in range(3 * MOST):
            assert there.somebody("revoked").get("/v1/me").status_code == 401
        assert there.operator.get("/v1/me").status_code == 200


class TestSizes:
    def test_a_form_with_too_much_in_it_is_no_failure_of_the_servers(self, there: Team) -> None:
        answer = there.somebody(origin=HOST).post("/login", data={f"field{number}": "x" for number in range(20)})
        assert answer.status_code == 400

    def test_what_is_too_long_is_not_read(self, there: Team) -> None:
        for path in ("/v1/studies", "/api/studies", "/login"):
            client = there.somebody(there.operator_token, origin=HOST)
            assert client.post(path, content=b"x" * ((1 << 20) + 1)).status_code == 413, path
            assert client.post(path, headers={"content-length": "many"}, content=b"x").status_code == 400
            assert client.post(path, headers={"transfer-encoding": "chunked"}, content=iter([b"x"])).status_code == 411

    def test_a_stranger_is_heard_shortly_and_leaves_no_traceback(
        self, there: Team, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert there.somebody(origin=HOST).post("/login", content=b"x" * ((16 << 10) + 1)).status_code == 413
        monkeypatch.setattr(pages, "FORM_SECONDS", 0.05)
        said = sent_to(there.app, never)
        assert (said[0]["status"], said[0]["type"]) == (408, "http.response.start")
        failed: list[object] = []
        monkeypatch.setattr(logging.getLogger("dialin.server"), "exception", lambda *said: failed.append(said))
        assert sent_to(there.app, gone) == []
        assert failed == []

    def test_a_failure_tells_a_client_nothing_of_the_server(self, there: Team, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("a secret")

        monkeypatch.setattr("search.plain_answers.all_studies", fail)
        answer = there.viewer.get("/v1/studies")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
