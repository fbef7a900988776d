"""A Ray cluster for `search.ray_fleet`: whether it answers and will do, and what a worker asks of its nodes.

Ray is imported here alone, when somebody asks for it.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from sqlalchemy.engine import URL

from search import children
from search.by_value import ByValue
from search.devices import check_counts
from search.failures import line_of
from search.preflight import Placement
from storage.errors import DialinError, UsageError
from storage.urls import parse, shown, sqlite_file
from storage.words import counted

# What --on says for the cluster that Ray itself finds, and what Ray calls that.
HERE, AUTO = "ray", "auto"
ADDRESS = re.compile(r"(?:ray://)?(\[[^\]]+\]|[^:/\s]+):(\d+)")
# Ray tries to reach a cluster that is not there for two minutes, and then ends the process.
KNOCK_SECONDS = 5.0
REACH_SECONDS = 20.0
# Ray counts a GPU's parts in ten-thousandths: a seventh that is rounded up leaves no room for the last of seven.
UNITS = 10_000

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """What a worker asks of its node: CPUs, one a thread, and one of `per_gpu` parts of a GPU; 0: none."""

    cpus: int
    per_gpu: int

    @property
    def gpus(self) -> float:
        """As Ray counts them."""
        return UNITS // self.per_gpu / UNITS if self.per_gpu else 0.0

    def room(self, nodes: Sequence[Node]) -> int:
        """How many workers fit when nobody else is there."""
        return sum(self._fitting(node["Resources"]) for node in nodes)

    def _fitting(self, has: Mapping[str, float]) -> int:
        by_cpu = int(has.get("CPU", 0)) // self.cpus
        return min(by_cpu, int(has.get("GPU", 0)) * self.per_gpu) if self.per_gpu else by_cpu

    def __str__(self) -> str:
        gpu = {0: "", 1: " and a GPU"}.get(self.per_gpu, f" and 1/{self.per_gpu} of a GPU")
        return f"{counted(self.cpus, 'CPU')}{gpu}"


def share_of(nodes: Sequence[Node], placement: Placement) -> Share:
    """As many CPUs for each worker as leave room for all that are wanted, or that fit.

    Raises:
        UsageError: GPUs are named by number, or counted where there is none; a number is less than one.
    """
    check_counts(placement.workers, placement.per_device)
    if placement.devices not in (None, "cpu"):
        raise UsageError("--devices names GPUs of this machine; workers on Ray get theirs from Ray, or --devices cpu")
    on_gpus = placement.devices is None and any(node["Resources"].get("GPU") for node in nodes)
    if placement.per_device is not None and not on_gpus:
        raise UsageError(f"--per-device {placement.per_device} counts workers on a GPU and none is used; use --workers")
    per_gpu = (placement.per_device or 1) if on_gpus else 0
    most = Share(1, per_gpu).room(nodes)
    wanted, cpus = max(1, min(placement.workers or most, most)), 1
    while Share(cpus + 1, per_gpu).room(nodes) >= wanted:
        cpus += 1
    return Share(cpus, per_gpu)


def check(on: str, storage: str, objective: str | ByValue, placement: Placement) -> None:
    """Whether workers there could work at all, said before anything is tried or made. Raises DialinErrors."""
    if find_spec("ray") is None:
        raise UsageError("workers on a Ray cluster need Ray: pip install 'dialin[ray]'")
    if on != HERE and not ADDRESS.fullmatch(on):
        raise UsageError(f"--on is ray, or an address such as ray://HOST:10001 or HOST:6379, but got {on!r}")
    url = parse(storage)
    if sqlite_file(url) is not None:
        raise UsageError(
            "workers on a cluster share a PostgreSQL, and SQLite is for one machine: "
            "put postgresql://USER:PASSWORD@HOST/DATABASE into DIALIN_STORAGE"
        )
    _refuse_shown(storage, url)
    if isinstance(objective, ByValue):
        raise UsageError(
            f"{objective} is a value of this process, and a cluster's nodes read code from files of their own: name "
            "a file that all of them have"
        )
    ray, ours = connect(on)
    try:
        nodes = nodes_of(ray)
    finally:
        if ours:
            ray.shutdown()
    share_of(nodes, placement)
    others = sorted({node["NodeManagerHostname"] for node in nodes} - {socket.gethostname()})
    if others and _is_here(url):
        raise UsageError(
            f"{shown(url)} is this machine's to reach, and the cluster has others ({others[0]}): name the database's "
            "host as they know it"
        )


def _refuse_shown(storage: str, url: URL) -> None:
    """Ray keeps the command line of whoever connects, and shows it to all who see its dashboard."""
    passwords = [url.password, *(url.query.get(name) for name in ("password", "sslpassword"))]
    told = [storage, *(str(one) for one in passwords if one)]
    if len(told) > 1 and any(secret in argument for argument in sys.argv for secret in told):
        raise UsageError(
            "the password on the command line would be shown by Ray's dashboard: put the URL into DIALIN_STORAGE, or "
            "the password into ~/.pgpass"
        )


def _is_here(url: URL) -> bool:
    host = str(url.host or url.query.get("host") or "/")
    return host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")


def connect(on: str, *, tried: bool = False) -> tuple[Any, bool]:
    """Ray, and whether this call has connected it: a process that is in a cluster already stays there.

    `tried`: a moment ago this command was connected to it.

    Raises:
        DialinError: no cluster answers.
        UsageError: this process is in another one.
    """
    ray = _imported()
    if ray.is_initialized():
        with asking():
            there = str(ray.get_runtime_context().gcs_address)
        if on not in (HERE, there):
            raise UsageError(f"this process is connected to the Ray cluster at {there}, not {on}: say --on ray for it")
        return ray, False
    address = on if on != HERE else os.environ.get("RAY_ADDRESS") or AUTO
    _knock(address, tried)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _outside():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray promises no kind of error
        raise DialinError(_nobody(address, line_of(error))) from None
    finally:
        if children.on_main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray has put one in its place that ends the process
    return ray, True


@contextmanager
def _outside() -> Iterator[None]:
    """A Ray that is connected in this block has nodes look for modules neither in this folder nor in the script's.

    It would put both first, before Dialin and its packages; `search.ray_fleet` has a worker look there last.
    """
    script = sys.argv[0]
    sys.argv[0] = os.sep
    try:
        with chdir(os.sep):
            yield
    finally:
        sys.argv[0] = script


def nodes_of(ray: Any) -> list[Node]:
    """The nodes that are alive. Raises DialinError: the cluster does not answer."""
    with asking():
        return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def asking() -> Iterator[None]:
    """Around what is asked of Ray, which promises no kind of error. Raises DialinError: the cluster does not answer."""
    try:
        yield
    except DialinError:
        raise
    except Exception as error:
        raise DialinError(f"the Ray cluster does not answer: {line_of(error)}") from None


def _imported() -> Any:
    """Ray without what it prints of nodes that come and go: a view tells what has become of their workers."""
    silent = "RAY_DEDUP_LOGS_SKIP_REGEX"
    os.environ[silent] = "."
    try:
        import ray
    finally:
        del os.environ[silent]
    return ray


def _knock(address: str, tried: bool) -> None:
    """Try it in a way that does not take minutes: the port, then all of it in another process where it was not yet."""
    found = ADDRESS.fullmatch(address)
    program = f"import ray; ray.init({address!r}, log_to_driver=False)"
    try:
        if found is not None:
            socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=KNOCK_SECONDS).close()
        if not tried:
            command = [sys.executable, "-P", "-c", program]
            subprocess.run(command, capture_output=True, text=True, timeout=REACH_SECONDS, check=True)
    except OSError as error:
        raise DialinError(_nobody(address, error.strerror or str(error))) from None
    except subprocess.TimeoutExpired:
        raise DialinError(_nobody(address, f"not within {REACH_SECONDS:.0f} s")) from None
    except subprocess.CalledProcessError as error:
        raise DialinError(_nobody(address, (error.stderr.strip().splitlines() or [""])[-1])) from None


def _nobody(address: str, said: str) -> str:
    where = "here: `ray start --head` starts one, --on HOST:6379 names one" if address == AUTO else f"at {address}"
    return f"no Ray cluster answers {where} ({said or 'no reason given'})"
