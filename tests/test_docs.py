"""What the documents say is true: every code block in them runs, and the README names every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import ROOT, Reader, blocks
from studies import Inside

from search import cli, cli_serve, cli_storage

PAGES = sorted((ROOT / "docs").glob("*.md"))
# tests/test_frameworks.py runs its modules with real workers and the deaths of some.
RUN_ELSEWHERE = {"frameworks"}
RUN_HERE = [page for page in PAGES if page.stem not in RUN_ELSEWHERE]
# The README's first two blocks are what continuous integration runs.
README_BLOCKS_BY_CI = 2


@pytest.mark.new_database
@pytest.mark.parametrize("page", RUN_HERE, ids=[page.stem for page in RUN_HERE])
def test_every_block_of_a_document_runs(
    page: Path, tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path, Inside(capsys, monkeypatch), postgres_url, monkeypatch)
    runnable = [block for block in blocks(page) if block.language in ("python", "sh")]
    assert reader.follow(page) >= len(runnable)


def test_no_block_of_the_readme_is_run_by_nobody() -> None:
    further = blocks(ROOT / "README.md")[README_BLOCKS_BY_CI:]
    assert [block.language for block in further if block.language not in ("", "text")] == []


def test_the_simple_door_fits_in_thirty_lines() -> None:
    simple = blocks(ROOT / "docs" / "objective.md")[0]
    assert simple.name == "wine.py"
    assert len(simple.text.strip().splitlines()) < 30


def test_every_command_is_in_the_readme_or_a_document() -> None:
    said = "".join(page.read_text() for page in [ROOT / "README.md", *PAGES])
    commands = [command.__name__.rstrip("_") for command in cli.EXAMPLES]
    commands += [f"storage {command.__name__}" for command in cli_storage.EXAMPLES]
    commands += [f"token {command.__name__.rstrip('_')}" for command in cli_serve.EXAMPLES]
    assert len(commands) >= 10
    assert [name for name in commands if f"dialin {name}" not in said] == []


def test_links_between_documents_lead_somewhere() -> None:
    links = [(page, link) for page in [ROOT / "README.md", *PAGES] for link in targets(page)]
    assert links
    assert [(page.name, link) for page, link in links if not leads_somewhere(page, link)] == []


def targets(page: Path) -> list[str]:
    return re.findall(r"\]\(([^):]+)\)", page.read_text())


def leads_somewhere(page: Path, link: str) -> bool:
    """A file that is there, and in it the heading that is meant."""
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not anchor:
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
    return anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
