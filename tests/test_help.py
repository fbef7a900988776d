"""Every command's help ends in an example, and what needs no torch imports none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from studies import TINY, Inside
from typer.main import get_command

from search import cli_serve, cli_storage
from search.cli import app

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
OF_STORAGE = sorted(f"storage {command.__name__}" for command in cli_storage.EXAMPLES)
OF_TOKEN = sorted(f"token {command.__name__.rstrip('_')}" for command in cli_serve.EXAMPLES)
# Runs commands and prints how each ended and what was imported until then that takes a second or more.
WATCH = """
import sys
from search.cli import main
for arguments in (["--help"], ["status"], ["best"], ["objectives"]):
    sys.argv = ["dialin", *arguments]
    try:
        main()
    except SystemExit as ended:
        heavy = sorted({"torch", "torchvision", "sklearn", "pandas"} & {*sys.modules})
        print(arguments[0], ended.code, heavy, file=sys.stderr)
"""


def test_all_commands_are_there() -> None:
    assert {"run", "worker", "status", "stop", "resume", "best", "dashboard", "objectives", "check", "init"} <= {
        *COMMANDS
    }


@pytest.mark.parametrize("command", [*COMMANDS, *OF_STORAGE, *OF_TOKEN])
def test_help_says_what_it_is_for_and_ends_in_an_example(inside: Inside, command: str) -> None:
    said = inside(*command.split(), "--help")
    assert said.status == 0
    lines = [line.strip() for line in said.out.splitlines() if line.strip()]
    assert lines[-1].startswith(f"Example: dialin {command}")
    assert "Usage: dialin" in lines[0]
    assert "\x1b" not in said.out


def test_dialin_alone_lists_the_commands_and_ends_in_an_example(inside: Inside) -> None:
    said = inside("--help")
    assert said.status == 0
    assert all(command in said.out for command in COMMANDS)
    assert [line.strip() for line in said.out.splitlines() if line.strip()][-1] == "Example: dialin run digits"


def test_help_status_and_best_import_no_torch(inside: Inside, tmp_path: Path) -> None:
    assert inside("run", TINY, "--trials", 1, "--workers", 1).status == 0
    ended = subprocess.run([sys.executable, "-c", WATCH], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines() == [f"{command} 0 []" for command in ("--help", "status", "best", "objectives")]
