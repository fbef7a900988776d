"""Runs the code blocks of a document as its reader would: modules are written to files, commands are typed.

A python block that names a file in its first line (`# my_model.py`) is written to it, and tried if it holds an
objective; one without a name is a script.
What a block needs from outside is replaced: a PostgreSQL that nobody has by the test's, large budgets by small ones,
a worker for each core by one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from studies import Inside

from search.check import check
from search.loading import resolve

ROOT = Path(__file__).resolve().parent.parent
TRIALS = 2


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str

    @property
    def name(self) -> str | None:
        """The file that it stands for."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named.group(1) if named and self.language == "python" else None


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a document, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def activated() -> dict[str, str]:
    """The environment of a shell in which this interpreter's virtual environment is active."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


@dataclass(frozen=True)
class Reader:
    """Someone who types a document's blocks into an empty folder."""

    folder: Path
    inside: Inside
    postgres: str
    patch: pytest.MonkeyPatch

    def follow(self, page: Path) -> int:
        """Run every block; the number of things that were run. Fails where one does not work."""
        done = 0
        for block in blocks(page):
            if block.language == "python":
                self._python(block)
                done += 1
            elif block.language == "sh":
                done += sum(self._line(line) for line in block.text.splitlines())
            else:
                assert block.language in ("text", ""), f"a block of {block.language!r} is run by nobody"
        return done

    def _python(self, block: Block) -> None:
        path = self.folder / (block.name or "script.py")
        path.write_text(block.text)
        if block.name is None:
            self._script(path)
        elif "search.run(" not in block.text and re.search(
            r"^(objective = |def objective\()", block.text, re.MULTILINE
        ):
            self._objective(path)

    def _script(self, path: Path) -> None:
        text = re.sub(r"trials=\d+", f"trials={TRIALS}", path.read_text())
        path.write_text(text)
        ended = subprocess.run([sys.executable, path], cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, f"{text}\n{ended.stderr}"

    def _objective(self, path: Path) -> None:
        [*lines] = check(resolve(str(path)), self.folder, "cpu", trials=1)
        assert [line for line in lines if not line.ok] == []

    def _line(self, line: str) -> bool:
        words = shlex.split(self._here(line), comments=True)
        if not words:
            return False
        if words[0] == "export":
            self._set(words[1:])
        elif words[0] == "dialin":
            self._command(line, words[1:])
        elif words[1:2] == ["dialin"]:  # NAME=value dialin ...
            with self.patch.context() as patch:
                replace(self, patch=patch)._set(words[:1])
                self._command(line, words[2:])
        elif words[0] == "python":
            self._script(self.folder / words[1])
        else:
            typed = ["bash", "-euc", line]
            subprocess.run(typed, cwd=self.folder, env=activated(), check=True, capture_output=True, timeout=60)
        return True

    def _set(self, settings: list[str]) -> None:
        for name, _, value in (setting.partition("=") for setting in settings):
            self.patch.setenv(name, value)

    def _command(self, line: str, words: list[str]) -> None:
        said = self.inside(*words)
        assert said.status == 0, f"{line}\n{said.out}\n{said.err}"

    def _here(self, line: str) -> str:
        line = re.sub(r"postgresql://\S+", self.postgres, line)
        line = re.sub(r"/mnt/shared\b", str(self.folder / "shared"), line)
        # What a document says nothing of: a worker for each core, and as many epochs as the objective wants.
        line = re.sub(r"\b(dialin (?:run|resume|confirm))\b(?!.* --workers)", r"\1 --workers 1", line)
        line = re.sub(r"\b(dialin run .*\bdigits)\b(?!.* --epochs)", r"\1 --epochs 2", line)
        return re.sub(r"--trials (\d+)", lambda found: f"--trials {min(TRIALS, int(found.group(1)))}", line)
