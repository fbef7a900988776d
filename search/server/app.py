"""The application: API, fleet page, metrics and optuna-dashboard, put together behind the guard.

optuna-dashboard's page asks for its paths at the root, so it has all that nobody else has. It is WSGI, which
a2wsgi runs on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import optuna_dashboard
from a2wsgi import WSGIMiddleware
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from search.artifacts import Artifacts
from search.server import pages
from search.server.access import Access
from search.server.api import make_api
from search.server.control import Control
from search.server.desk import Desk
from search.server.guard import Guard
from search.server.metrics import Metrics
from search.server.refusals import refusal
from storage.tables import SchemaRow

# Threads of the dashboard, which share the connections of the server.
DASHBOARD_THREADS = 8


@dataclass(frozen=True)
class Served:
    """The application, and the optuna-dashboard in it."""

    app: ASGIApp
    dashboard: object


def make_app(desk: Desk, access: Access, control: Control) -> Served:
    """All that one port serves."""
    dashboard = optuna_dashboard.wsgi(desk.storage, artifact_store=Artifacts(desk.files))
    routes: list[BaseRoute] = [
        Mount("/v1", _as_sent(make_api(desk, control))),
        *pages.routes(access),
        *_operations(desk),
        Mount("/", cast(ASGIApp, WSGIMiddleware(_asked(desk, dashboard), workers=DASHBOARD_THREADS))),
    ]
    return Served(Guard(Router(routes=routes, default=_nothing), access), dashboard)


def _as_sent(api: ASGIApp) -> ASGIApp:
    """Its routes see the path as it was sent, where a slash that is a part of a name is none of the path's."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await api({**scope, "path": scope["raw_path"].decode("ascii")}, receive, send)

    return answer


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Of a path with a line's end in it, or without a slash before it."""
    await refusal(404, "there is no such page")(scope, receive, send)


def _asked(desk: Desk, dashboard: Any) -> Any:
    """The dashboard, asked with the patience that a request has: its threads are few."""

    def ask(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # every browser sends it, and the dashboard relies on it
        answer: Iterable[bytes] = desk.wait(lambda: dashboard(environ, start_response))
        return answer

    return ask


def _operations(desk: Desk) -> list[Route]:
    metrics = Metrics(desk.storage)

    async def healthz(_request: Request) -> Response:
        """Whether the server can reach its database. Strangers may ask: it says no more than that."""
        body = await run_in_threadpool(desk.shared, "healthz", lambda: _look(desk))
        return Response(body, media_type="application/json")

    async def scrape(_request: Request) -> Response:
        return Response(await run_in_threadpool(desk.wait, metrics.scrape), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return [Route("/healthz", healthz), Route("/metrics", scrape)]


def _look(desk: Desk) -> dict[str, str]:
    with desk.storage.backend.read() as session:
        session.execute(select(SchemaRow.version))
    return {"status": "ok"}
