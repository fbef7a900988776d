"""What a client hears that cannot have what it asked for: one line, never a traceback."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

FAILED = "this failed on the server, whose log says why"
AWAY = "the database does not answer"


def refusal(status: int, said: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`detail` is where our own API says it, `reason` where optuna-dashboard's page looks."""
    return JSONResponse({"detail": said, "reason": said}, status, headers=dict(headers or {}))
