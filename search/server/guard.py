"""What holds for every request, whatever path it is for: who may come in, who may write, how large it may be.

The rule of paths is the shortest there is: nobody sees anything without a login but PUBLIC, and whatever is not GET or
HEAD is a writing, for operators alone. A route that a new version of the dashboard adds is behind it from the start.
"""

from __future__ import annotations

import logging
import time
import unicodedata
from typing import Any
from urllib.parse import quote, urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.server.access import EVERYBODY, Access, Stranger, Visitor
from search.server.refusals import AWAY, FAILED, refusal
from search.told import as_json_line
from storage.errors import DialinError
from storage.patience import DATABASE_ERRORS

READING = frozenset({"GET", "HEAD"})
# What a stranger may ask for, and how: whether the server is well, and to sign in.
PUBLIC = {"/healthz": READING, "/login": READING | {"POST"}, "/page/style.css": READING}
# A study is submitted in a few hundred bytes; a note on the dashboard may be long, and may have a picture beside it.
MOST_BYTES = 1 << 20
MOST_BYTES_OF_AN_ARTIFACT = 32 << 20
# A token and where to go: what strangers send is kept in memory before it is known who they are.
MOST_BYTES_OF_A_STRANGER = 16 << 10
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Threads for looking at tokens: whoever waits for a long answer must not keep others from signing in.
DOORKEEPERS = 4

# Only what comes from this server, and nothing that is written into the page itself; no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# What somebody hung on a trial may be a web page: it is shown without scripts, and as nobody's.
ARTIFACT_POLICY = "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; media-src 'self'"
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

_log = logging.getLogger("dialin.server")


class Guard:
    """Stands before the application. The visitor is in the scope of what it lets through."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._doorkeepers = CapacityLimiter(DOORKEEPERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            refused = await self._refused(scope)
            await (refused or self._app)(scope, receive, answer.send)
        except (DialinError, *DATABASE_ERRORS) as error:
            _log.warning("the database did not answer: %s", type(error).__name__)
            await answer.instead(refusal(503, AWAY), receive)
        except ClientDisconnect:  # strangers must not fill the log with tracebacks
            pass
        except Exception:
            _log.exception("%s %r failed", scope["method"], scope["path"])
            await answer.instead(refusal(500, FAILED), receive)
        answer.note()

    async def _refused(self, scope: Scope) -> Response | None:
        """The answer to whoever may not have what they ask for; None: they may."""
        headers = Headers(scope=scope)
        path, reading = scope["path"], scope["method"] in READING
        if _is_twofold(path):
            return refusal(404, "there is no such page")
        too_much = _too_much(headers, path)
        if too_much is not None:
            return too_much
        if scope["method"] in PUBLIC.get(path, ()):
            return None if reading or _same_site(headers) else _cross_site()
        found = await to_thread.run_sync(self._who, scope, headers, limiter=self._doorkeepers)
        if isinstance(found, Stranger):
            return _unknown(scope, headers, found)
        scope["visitor"] = found
        if found is EVERYBODY and _name_of_host(headers) not in LOOPBACK_NAMES:
            return refusal(403, "without a login this server answers to the name localhost alone")
        if reading:
            return None
        if found.by_browser and not _same_site(headers):
            return _cross_site()
        if not found.may_write and path != "/logout":
            return refusal(403, f"{found.name} is a viewer, who may look at everything and change nothing")
        return None

    def _who(self, scope: Scope, headers: Headers) -> Visitor | Stranger:
        return self._access.visitor(
            headers.get("authorization"), cookie_parser(headers.get("cookie", "")), address(scope)
        )


class _Answer:
    """Sends what the application answers, with the headers that all answers have."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._began = time.monotonic()
        self._status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._head(MutableHeaders(scope=message))
        await self._send(message)

    def _head(self, headers: MutableHeaders) -> None:
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        del headers["access-control-allow-origin"]  # the dashboard lets pages of all sites read its artifacts
        if "/artifacts/" in self._scope["path"]:
            headers["content-security-policy"] = ARTIFACT_POLICY
        headers.setdefault("content-security-policy", POLICY)
        headers.setdefault("cache-control", "no-store")
        if self._scope["scheme"] == "https":
            headers.setdefault("strict-transport-security", "max-age=31536000")

    async def instead(self, response: Response, receive: Receive) -> None:
        """In the place of an answer that failed, unless it has begun."""
        if not self._status:
            await response(self._scope, receive, self.send)

    def note(self) -> None:
        """Who changed what, and who was turned away, in a line of JSON. Of a URL the path alone: no secret is there."""
        if self._scope["method"] in READING and self._status not in (401, 403, 429) and self._status < 500:
            return
        visitor = self._scope.get("visitor")
        method, path = self._scope["method"], self._scope["path"]
        told = {
            "who": visitor.name if visitor is not None else None,
            "role": visitor.role.value if visitor is not None else None,
            "address": address(self._scope),
            "method": method,
            "path": path,
            "status": self._status,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        _log.info(as_json_line("request", f"{method} {path} {self._status}", "info", told))


def _cross_site() -> Response:
    return refusal(403, "this came from another site's page, or from a program that has a token: send that instead")


def address(scope: Scope) -> str:
    """Who is at the other end, as far as an address says."""
    client: Any = scope.get("client")
    return str(client[0]) if client else ""


def _too_much(headers: Headers, path: str) -> Response | None:
    """A body must say how long it is, and be no longer than is sensible."""
    if "transfer-encoding" in headers:
        return refusal(411, "a request with a body says how long it is, in Content-Length")
    most = MOST_BYTES_OF_AN_ARTIFACT if path.startswith("/api/artifacts/") else MOST_BYTES
    if path in PUBLIC:
        most = MOST_BYTES_OF_A_STRANGER
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        return refusal(400, "Content-Length is no number")
    return refusal(413, f"the request is longer than {most} bytes") if int(length) > most else None


def _is_twofold(path: str) -> bool:
    """Whether those behind the guard could take the path for another one than it does.

    Routers drop a slash of two, and let a pattern end before a line's end. Below /v1/ are names, in which both may be.
    """
    return not path.startswith("/v1/") and ("//" in path or any(unicodedata.category(one) == "Cc" for one in path))


def _same_site(headers: Headers) -> bool:
    """Whether a browser sends this for a page of this server's own.

    Browsers say so in Sec-Fetch-Site (where the connection is safe or local) and in Origin, which no page can forge.
    """
    fetched = headers.get("sec-fetch-site")
    if fetched is not None:
        return fetched in ("same-origin", "none")
    origin = headers.get("origin", "")
    return origin.partition("://")[2] == headers.get("host", "-")


def _name_of_host(headers: Headers) -> str:
    """The name that a browser believes this server to have; a page of another name could be anyone's."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _unknown(scope: Scope, headers: Headers, stranger: Stranger) -> Response:
    """To a person the page that signs in, to a program what it lacks."""
    if stranger.wait:
        said = f"too many attempts: the next one is looked at in {stranger.wait} s"
        return refusal(429, said, {"retry-after": str(stranger.wait)})
    if scope["method"] in READING and "text/html" in headers.get("accept", ""):
        wanted = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        return RedirectResponse(f"/login?next={quote(wanted, safe='/')}", 303)
    said = "sign in at /login, or send a token: Authorization: Bearer ..."
    if stranger.is_wrong:
        said = "this token is not known here, or was revoked"
    return refusal(401, said, {"www-authenticate": "Bearer"})
