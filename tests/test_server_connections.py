"""The server on a real port, as many clients make use of it at a time: those that read nothing, too."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from serving import LOCAL, Team, answer_to, listening, team
from starlette.types import Receive, Scope, Send

from search.server import run
from search.server.app import DASHBOARD_THREADS


@pytest.fixture
def there(sqlite_url: str, tmp_path: Path) -> Iterator[Team]:
    with team(sqlite_url, tmp_path) as made:
        yield made


def test_clients_that_read_nothing_do_not_take_the_dashboard_from_others(
    there: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "UNREAD_SECONDS", 0.5)
    login = f"authorization: Bearer {there.viewer_token}"
    wanted = f"GET /static/bundle.js HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n{login}\r\n\r\n"
    with listening(there.app) as address:
        deaf = [socket.socket() for _ in range(DASHBOARD_THREADS)]
        try:
            for client in deaf:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(address)
                client.sendall(wanted.encode())
            for client in deaf:
                assert client.recv(1), "its answer has begun"
            assert b"200 OK" in answer_to(address, "GET /api/studies", login)
        finally:
            for client in deaf:
                client.close()


@pytest.mark.parametrize(("proxy", "is_believed"), [("127.0.0.1", True), ("127.3.4.5/8", True), ("10.0.0.1", False)])
def test_what_a_proxy_says_is_believed_where_it_was_named(there: Team, proxy: str, is_believed: bool) -> None:
    with listening(there.app, replace(LOCAL, proxy=proxy)) as address:
        said = answer_to(address, "GET /healthz", "x-forwarded-proto: https")
    assert (b"strict-transport-security" in said) is is_believed


def test_who_reads_is_not_cut_off_however_long_the_answer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There was too much for a moment, and it was read."""
    monkeypatch.setattr(run, "UNREAD_SECONDS", 1.0)

    async def slow(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        await asyncio.sleep(1.5)
        await send({"type": "http.response.body", "body": b"the end"})

    with listening(slow) as address:
        assert b"the end" in answer_to(address, "GET /")


def test_nor_is_a_slow_one_of_whom_an_answer_of_one_piece_is_read_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "UNREAD_SECONDS", 0.3)
    size = 1 << 20

    async def large(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": bytes(size)})

    with listening(large) as address, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        read = 0
        while (more := len(client.recv(16384))) > 0:
            read += more
            time.sleep(0.005)  # a thin line
    assert read > size
