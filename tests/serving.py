"""A server inside a test's process, with a study that looks as if workers were at it, and people who come to it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import optuna
import uvicorn
from optuna.samplers import RandomSampler
from starlette.testclient import TestClient
from studies import engines_disposed, wait_until

from search.place import Place
from search.server.access import Access
from search.server.app import make_app
from search.server.control import Control
from search.server.desk import Desk
from search.server.run import Listening, config
from storage import studies, tokens, workers
from storage.claims import Claimant, Epoch, Settlement, new_uuid
from storage.outcomes import Outcome
from storage.shared import SharedStorage, open_storage
from storage.studies import StudyRecord, StudySpec
from storage.tables import Role

HOST = "http://dialin.test"
KEY = b"k" * 32
LOCAL = Listening(port=0)


@dataclass(frozen=True)
class Team:
    """A server's parts: its database, its application, and a token for each role."""

    storage: SharedStorage
    app: Any
    dashboard: Any
    viewer_token: str
    operator_token: str

    def somebody(self, token: str = "", **headers: str) -> TestClient:
        """A program that sends this token with every request, without one a stranger."""
        sent = {"authorization": f"Bearer {token}"} if token else {}
        return TestClient(self.app, base_url=HOST, headers=sent | headers, follow_redirects=False)

    @property
    def stranger(self) -> TestClient:
        return self.somebody()

    @property
    def viewer(self) -> TestClient:
        return self.somebody(self.viewer_token)

    @property
    def operator(self) -> TestClient:
        return self.somebody(self.operator_token)

    def browser(self, token: str) -> TestClient:
        """One that was signed in with this token, and is on a page of the server's own."""
        client = self.somebody(origin=HOST)
        signed_in = client.post("/login", data={"token": token})
        assert signed_in.status_code == 303, signed_in.text
        return client


@contextmanager
def team(url: str, files: Path, *objectives: str, stop: Callable[[], bool] = lambda: False) -> Iterator[Team]:
    """A server on this database that allows these objectives, closed at the end."""
    with engines_disposed():
        storage = open_storage(url)
        tokens_of = [tokens.create(storage, f"a {role}", role) for role in (Role.VIEWER, Role.OPERATOR)]
        access = Access(storage, KEY, always=True)
        served = make_app(Desk(storage, files), access, Control(storage, Place(url, files), objectives, stop))
        yield Team(storage, served.app, served.dashboard, *tokens_of)


@contextmanager
def listening(app: Any, where: Listening = LOCAL) -> Iterator[tuple[str, int]]:
    """The application on a port of this machine, its address: what TestClient leaves out is there too."""
    server, listener = uvicorn.Server(config(app, where)), where.listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # the system keeps megabytes else
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started, "the server's start")
        yield listener.getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def answer_to(address: tuple[str, int], request: str, *headers: str) -> bytes:
    """All that the server says to a request that is written by hand, until it closes the connection."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall("\r\n".join([f"{request} HTTP/1.1", "host: x", "connection: close", *headers, "", ""]).encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


def spec(**said: Any) -> StudySpec:
    """A study of the built-in digits."""
    usual: dict[str, Any] = {
        "objective": "digits",
        "objective_sha256": "0" * 64,
        "metric": "accuracy",
        "direction": "maximize",
        "epochs": 4,
        "trials": 10,
        "seed": 0,
        "sampler": "random",
        "pruner": "none",
    }
    return StudySpec(**usual | said)


def at_work(url: str, name: str, finished: int = 2, running: int = 1) -> StudyRecord:
    """A new study: `finished` trials complete, one failed, and `running` ones in the middle of training."""
    storage = open_storage(url, Claimant(new_uuid()))
    record = studies.create(storage, spec(), name=name, stem=name)
    study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    claimant = storage.backend.claimant
    assert claimant is not None
    workers.register(storage, claimant.worker_id, record.study_id, [workers.Place("cpu 0", None)])
    for number in range(finished + 1 + running):
        trial = study.ask()
        with storage.sampling(trial):
            lr = trial.suggest_float("lr", 0.001, 1.0, log=True)
            trial.set_user_attr("settings", {"lr": lr})
            trial.set_user_attr("recipe", f"sgd lr {lr:.3g}")
        for epoch in (1, 2):
            value = 0.5 + 0.1 * epoch + 0.01 * number
            storage.record_epoch(storage.lease_of(trial), Epoch(epoch, value, {"accuracy": value}, 0.5, 100, "cpu"))
        if number < finished:
            storage.settle(study, trial, Settlement(Outcome.COMPLETE), 0.7 + 0.01 * number)
        elif number == finished:
            storage.settle(study, trial, Settlement(Outcome.OUT_OF_MEMORY, "does not fit"), None)
    return studies.find(storage, name)
