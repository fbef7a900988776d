"""Listening: which addresses only this machine reaches, TLS, and how the server ends. `dialin serve` calls it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from storage.errors import UsageError

# Seconds that requests have to come to their end when the server is told to.
ENDING_SECONDS = 3
# Connections that wait to be taken up.
BACKLOG = 256
# A page that asks every two seconds keeps its connection.
KEEP_ALIVE_SECONDS = 30
# Seconds in which whoever connects has to say what they want.
REQUEST_SECONDS = 20.0
# Seconds in which whoever asked has to read something: until then their answer may hold one of the dashboard's threads.
UNREAD_SECONDS = 20.0


@dataclass(frozen=True)
class Listening:
    """Where and how: `certificate` and `key` for TLS, `proxy` an address whose X-Forwarded-* headers are believed.

    Or a network of them. UsageError: something of it cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    proxy: str | None = None

    def __post_init__(self) -> None:
        if self.key is not None and self.certificate is None:
            raise UsageError("--tls-key belongs to a --tls-cert")
        self.believed()

    @property
    def scheme(self) -> str:
        """What a browser's address begins with."""
        return "https" if self.certificate is not None else "http"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it. What a proxy beside it passes on comes from elsewhere."""
        return self.proxy is None and all(ipaddress.ip_address(one).is_loopback for one in self._addresses())

    def believed(self) -> str | None:
        """The proxies as a network, as uvicorn wants it. Raises UsageError."""
        try:
            return None if self.proxy is None else str(ipaddress.ip_network(self.proxy, strict=False))
        except ValueError:
            wanted = "the address or network of a proxy, such as 10.0.0.5 or 10.0.0.0/24"
            raise UsageError(f"--proxy is {wanted}, but got {self.proxy!r}") from None

    @property
    def in_clear(self) -> bool:
        """Whether tokens travel through a network that others may listen to."""
        return not self.is_local and self.certificate is None and self.proxy is None

    def listen(self) -> socket.socket:
        """The socket. Raises UsageError: it cannot be had."""
        family = socket.AF_INET6 if ":" in self._addresses()[0] else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
            listener.listen(BACKLOG)  # who comes before the server runs waits, instead of being refused
        except OSError as error:
            listener.close()
            raise self._refused(error) from None
        return listener

    def tls(self) -> None:
        """Raises UsageError: certificate and key do not serve."""
        if self.certificate is None:
            return
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            said = error.strerror or "no certificate with its key"
            raise UsageError(f"cannot serve TLS with {self.certificate} ({said})") from None

    def _addresses(self) -> list[str]:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise self._refused(error) from None
        return [str(address[0]).partition("%")[0] for *_, address in found]

    def _refused(self, error: OSError) -> UsageError:
        said = error.strerror or error
        return UsageError(f"cannot listen on {self.host}:{self.port} ({said}): choose another --port or --host")


class Connection(H11Protocol):
    """Closed when no request comes, or none whole, and when its answer is not read.

    A few strangers could hold every connection that there is, and a few viewers every thread of the dashboard.
    """

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._trust()
        self._is_read()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def _wait_for_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._look_at_reader, left)

    def _look_at_reader(self, before: int) -> None:
        """Slow ones get all of it: an answer may be one piece of many megabytes."""
        if self.transport.get_write_buffer_size() < before:
            self._wait_for_reader()
        else:
            self.transport.abort()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        """While nobody works at an answer time runs, however much comes; between two requests uvicorn's own does."""
        if self._at_work:
            self._trust()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self._late)

    @property
    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _late(self) -> None:
        self._deadline = None
        if not self._at_work:  # nor did one come in the same breath as the last
            self.transport.close()

    def _trust(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """Ends by itself when it is told to: uvicorn's own dies of the signal after all."""

    def __init__(self, config: uvicorn.Config, ending: Event) -> None:
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ending.set()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def config(app: ASGIApp, where: Listening) -> uvicorn.Config:
    """How uvicorn serves it."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=Connection,
        ws="none",
        lifespan="off",
        proxy_headers=where.proxy is not None,
        forwarded_allow_ips=where.believed(),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ENDING_SECONDS,
        ssl_certfile=where.certificate,
        ssl_keyfile=where.key,
    )


def run(app: ASGIApp, where: Listening, say: Callable[[str], None], ending: Event) -> None:
    """Serve until SIGINT or SIGTERM, which set `ending`. Raises UsageError: it cannot listen there."""
    where.tls()
    listener = where.listen()
    _log_lines()
    server = _Server(config(app, where), ending)
    shown = f"[{where.host}]" if ":" in where.host else where.host
    say(f"Dialin on {where.scheme}://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)")
    if where.in_clear:
        say("tokens travel in clear: give --tls-cert and --tls-key, or put a proxy before it that does TLS (--proxy)")
    with listener:
        server.run(sockets=[listener])
    say("ended")


def _log_lines() -> None:
    """What the server logs is lines on standard error: JSON of its own, and what went wrong elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("dialin.server")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler]
    others = logging.getLogger("uvicorn")
    others.setLevel(logging.WARNING)
    others.propagate = False
    others.handlers = [handler]
