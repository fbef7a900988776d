"""The ground of the tests: nothing is left behind, no folder of the caller is used, no skip hides a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from command import Dialin
from sqlalchemy import create_engine, text

TESTS = Path(__file__).resolve().parent

SKIPPING_TESTS = """
import pytest

@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
def test_on_a_database(storage_url):
    pytest.skip("no server")

def test_on_images(shared_data):
    pytest.skip("no pictures")

def test_that_says_why():
    pytest.skip("Fashion-MNIST not found")

def test_on_a_gpu():
    pytest.skip("no GPU")
"""
SKIPPED_MODULE = """
import pytest
pytest.skip("PostgreSQL is too slow", allow_module_level=True)
"""
ENDING_TEST = """
import os, signal
from pathlib import Path

def test_that_is_ended(postgres_server):
    Path("{note}").write_text(postgres_server.url)
    os.kill(os.getpid(), signal.{signal})
"""


def run_pytest(checkout: Path, *files: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest on test files with this project's conftest, in a checkout made up beside a data folder."""
    (checkout / "tests").mkdir(parents=True)
    (checkout.parent / "shared" / "data").mkdir(parents=True)
    for name in ("conftest.py", "command.py", "compiled_once.py", "postgres_server.py"):
        (checkout / "tests" / name).write_text((TESTS / name).read_text())
    for number, tests in enumerate(files):
        (checkout / "tests" / f"test_made_up_{number}.py").write_text(tests)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rsfE",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        f"--basetemp={checkout / 'tmp'}",
    ]
    merged = {name: value for name, value in os.environ.items() if name not in ("CI", "DIALIN_DATA")}
    merged["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what is installed for other reasons takes 1 s to import
    return subprocess.run(command, cwd=checkout, env=merged | environment, capture_output=True, text=True, timeout=120)


def test_in_continuous_integration_a_needless_skip_fails(tmp_path: Path) -> None:
    """Of a test or of a whole file."""
    ended = run_pytest(tmp_path / "checkout", SKIPPING_TESTS, SKIPPED_MODULE, CI="true")
    assert "3 failed, 1 skipped, 1 error" in ended.stdout
    assert "although PostgreSQL is there: no server" in ended.stdout
    assert "although the data folder is there: no pictures" in ended.stdout
    assert "although the data folder is there: Fashion-MNIST not found" in ended.stdout
    assert "although PostgreSQL is there: PostgreSQL is too slow" in ended.stdout


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    ended = run_pytest(tmp_path / "checkout", SKIPPING_TESTS)
    assert "4 skipped" in ended.stdout
    assert ended.returncode == 0


@pytest.mark.parametrize("way", ["SIGINT", "SIGKILL"])
def test_no_server_outlives_tests_that_are_ended(tmp_path: Path, way: str) -> None:
    note = tmp_path / "url"
    ended = run_pytest(tmp_path / "checkout", ENDING_TEST.format(note=note, signal=way))
    assert ended.returncode == (2 if way == "SIGINT" else -signal.SIGKILL), ended.stdout
    folder = Path(note.read_text().partition("?host=")[2].replace("%2F", "/"))
    assert folder.name == "data"
    end = time.monotonic() + 30
    while folder.parent.exists():
        assert time.monotonic() < end, "the server's files are still there"
        time.sleep(0.05)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(note.read_text())


def test_a_test_sees_a_database_of_its_own(storage_url: str) -> None:
    for _ in range(2):
        engine = create_engine(storage_url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE mark (number INTEGER)"))
            connection.execute(text("DROP TABLE mark"))
        engine.dispose()


def test_a_test_has_its_own_home_and_no_settings_of_the_caller(tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    assert Path.home().parent == tmp_path.parent
    assert {name for name in os.environ if name.startswith("DIALIN_")} <= {"DIALIN_DATA"}


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "hangs"
    script.write_text("#!/bin/sh\nsetsid sleep 1000 & echo $! > child\necho started\nsleep 1000\n")
    script.chmod(0o755)
    monkeypatch.setattr("command.DIALIN", script)
    dialin = Dialin(tmp_path)
    running = dialin.start("run")
    running.wait_for("started")
    child = int((tmp_path / "child").read_text())
    with pytest.raises(AssertionError, match=r"did not end within 0\.1 s\n--- stdout\nstarted"):
        running.wait(timeout=0.1)
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "(sleep) Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < end, "the child is still there"
        time.sleep(0.05)
