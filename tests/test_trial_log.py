"""What is printed while a trial trains goes to its log, at the level of file descriptors, and back to the terminal.

In processes of their own: pytest's `sys.stdout` is no descriptor 1.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TALK = """
import os, subprocess, sys
from pathlib import Path
from search.trial_log import printing_to

def talk(word):
    print(word, "printed")
    print(word, "complained", file=sys.stderr)
    os.write(1, f"{word} written\\n".encode())
    subprocess.run(["echo", word, "from a child"], check=True)

log = Path("made/for it/log.txt")
"""


def said(tmp_path: Path, script: str) -> tuple[list[str], list[str], list[str]]:
    """The sorted lines on standard output, on standard error, and in the log."""
    command = [sys.executable, "-c", TALK + script]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    log = (tmp_path / "made" / "for it" / "log.txt").read_text()
    return sorted(ended.stdout.splitlines()), sorted(ended.stderr.splitlines()), sorted(log.splitlines())


def test_every_way_of_printing_goes_to_the_log_and_only_inside_the_block(tmp_path: Path) -> None:
    script = "talk('a')\nwith printing_to(log):\n    talk('b')\ntalk('c')"
    out, err, log = said(tmp_path, script)
    assert log == ["b complained", "b from a child", "b printed", "b written"]
    assert out == ["a from a child", "a printed", "a written", "c from a child", "c printed", "c written"]
    assert err == ["a complained", "c complained"]


def test_a_trial_that_goes_on_appends_to_its_log(tmp_path: Path) -> None:
    script = "for owner in (1, 2):\n    with printing_to(log):\n        print('owner', owner)"
    assert said(tmp_path, script) == ([], [], ["owner 1", "owner 2"])


def test_an_exception_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    script = "try:\n    with printing_to(log):\n        1 / 0\nexcept ZeroDivisionError:\n    print('still here')"
    assert said(tmp_path, script) == (["still here"], [], [])


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    script = (
        "before = os.listdir('/proc/self/fd')\nfor _ in range(3):\n    with printing_to(log):\n        pass\n"
        "print(before == os.listdir('/proc/self/fd'))"
    )
    assert said(tmp_path, script) == (["True"], [], [])
