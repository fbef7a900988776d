"""Schemathesis at an API: what its OpenAPI document says of each operation is held against what the server answers."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok


def every_answer_is_as_documented(app: Any, document: str, token: str) -> None:
    """Asks of every operation, soundly and not, with this token."""
    schema = schemathesis.openapi.from_asgi(document, app, headers={"authorization": f"Bearer {token}"})

    @schema.auth()
    class Token:
        def get(self, _case: Any, _context: Any) -> str:
            return f"Bearer {token}"

        def set(self, case: Any, data: str, _context: Any) -> None:
            case.headers["authorization"] = data

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        _holds_to(found.ok())


def _holds_to(operation: Any) -> None:
    @given(case=operation.as_strategy())
    @settings(max_examples=12, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck])
    def holds(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate()

    holds()
