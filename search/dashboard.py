"""optuna-dashboard on Dialin's storage; `dialin dashboard` calls it.

Given a storage instead of a URL the dashboard reads a study once and then only what is new. The pictures that workers
hang on trials (`--log plots`) are in the files root.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from search.artifacts import Artifacts
from storage.errors import UsageError
from storage.shared import SharedStorage


class _Server(ThreadingMixIn, WSGIServer):
    """A browser that holds a connection open must not keep the others waiting."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A line for every request of a page that polls would bury everything else."""


def serve(storage: SharedStorage, files: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted, with the pictures in the files root `files`.

    Raises:
        UsageError: the address or the port cannot be taken.
    """
    app = optuna_dashboard.wsgi(storage, artifact_store=Artifacts(files))
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_QuietHandler)
    except (OSError, socket.gaierror) as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from None
    with server:
        say(f"optuna-dashboard on http://{host}:{server.server_port} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
