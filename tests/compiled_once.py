"""SQL is compiled once in a process of tests, and not for each of its hundreds of databases: a fifth of their time.

A process of Dialin's has one engine, which remembers what it has compiled. `conftest.py` has all of them share that.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.default import DefaultDialect


def share() -> None:
    """From now on engines of one dialect share what any of them has compiled."""
    caches: dict[type[Any], dict[Any, Any]] = {}

    def remember(connection: Connection) -> None:
        connection.execution_options(compiled_cache=caches.setdefault(type(connection.dialect), {}))

    event.listen(Engine, "engine_connect", remember)
    # What was compiled is remembered by the dialect it was compiled for: those of one kind are alike here.
    for name, method in (("__eq__", _is_of_one_kind), ("__hash__", _kind)):
        setattr(DefaultDialect, name, method)


def _is_of_one_kind(one: DefaultDialect, other: object) -> bool:
    return type(one) is type(other)


def _kind(one: DefaultDialect) -> int:
    return hash(type(one))
