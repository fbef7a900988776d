"""What people see of the server itself: the page they sign in on, the fleet page, and what these two are made of."""

from __future__ import annotations

import html
from functools import cache
from importlib.resources import files
from urllib.parse import parse_qs

from anyio import fail_after
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from search.server import sessions
from search.server.access import Access, Stranger
from search.server.guard import address
from search.server.refusals import refusal

HOME = "/fleet"
# Seconds that the form has to arrive: whoever sends it is a stranger yet.
FORM_SECONDS = 10.0
# What the pages are made of, by what a browser must take it for.
PARTS = {
    "style.css": "text/css; charset=utf-8",
    "fleet.js": "text/javascript; charset=utf-8",
    "draw.js": "text/javascript; charset=utf-8",
}


def routes(access: Access) -> list[Route]:
    """Theirs."""

    async def sign_in(request: Request) -> Response:
        """The form, and what was written into it. A form needs no script."""
        if request.method != "POST":
            return _form(request.query_params.get("next", ""))
        try:
            with fail_after(FORM_SECONDS):
                sent = await request.body()
            said = parse_qs(sent.decode(errors="replace"), max_num_fields=10)
        except TimeoutError:
            return refusal(408, "this took too long to arrive")
        except ValueError:
            return refusal(400, "this is not what the form sends")
        token, wanted = (said.get(name, [""])[0].strip() for name in ("token", "next"))
        found = await run_in_threadpool(access.sign_in, token, address(request.scope))
        if isinstance(found, Stranger):
            if found.wait:
                return _form(wanted, f"Too many attempts: try again in {found.wait} s.", 429)
            return _form(wanted, "This token is not known here, or was revoked.", 401)
        visitor, cookie = found
        request.scope["visitor"] = visitor  # the log says who signed in
        answer = RedirectResponse(_own(wanted), 303)
        _hand_cookie(request, answer, cookie, sessions.LIFETIME_SECONDS)
        return answer

    async def sign_out(request: Request) -> Response:
        answer = RedirectResponse("/login", 303)
        _hand_cookie(request, answer, "", 0)
        return answer

    return [
        Route("/", _home),
        Route("/login", sign_in, methods=["GET", "POST"]),
        Route("/logout", sign_out, methods=["POST"]),
        Route(HOME, _fleet),
        Route("/page/{name}", _part),
    ]


def _hand_cookie(request: Request, answer: Response, value: str, seconds: int) -> None:
    """No script reads it, no other site sends it along when it writes, and over TLS it never leaves TLS."""
    secure = request.url.scheme == "https"
    answer.set_cookie(sessions.COOKIE, value, max_age=seconds, httponly=True, samesite="lax", secure=secure)


async def _home(_request: Request) -> Response:
    return RedirectResponse(HOME, 303)


async def _fleet(_request: Request) -> Response:
    return HTMLResponse(page("fleet.html"))


async def _part(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in PARTS:
        return refusal(404, "there is no such page")
    return Response(page(name), media_type=PARTS[name], headers={"cache-control": "no-cache"})


def _form(wanted: str, said: str = "", status: int = 200) -> Response:
    text = page("login.html").replace("{{next}}", html.escape(wanted)).replace("{{said}}", html.escape(said))
    return HTMLResponse(text, status)


def _own(wanted: str) -> str:
    r"""Where to go after signing in: a path of this server. `//host` and `/\host` are other servers to a browser."""
    safe = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and wanted.isprintable()
    return wanted if safe else HOME


@cache
def page(name: str) -> str:
    """A file that comes with the package."""
    return (files("search.server") / "page" / name).read_text(encoding="utf-8")
