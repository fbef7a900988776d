"""What the documents say is true: their objectives work, and the README names every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search import cli
from search.loading import resolve
from search.preview import first_batch

ROOT = Path(__file__).resolve().parent.parent
OBJECTIVES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "objective.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("source", OBJECTIVES, ids=[f"block-{number}" for number in range(len(OBJECTIVES))])
def test_every_objective_in_the_documents_trains_a_batch(source: str, tmp_path: Path) -> None:
    (tmp_path / "written.py").write_text(source)
    preview = first_batch(resolve(str(tmp_path / "written.py")), tmp_path)
    assert preview.train > preview.valid > 0


def test_the_simple_door_fits_in_thirty_lines() -> None:
    assert len(OBJECTIVES[0].strip().splitlines()) < 30


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = [command.__name__.rstrip("_") for command in cli.EXAMPLES]
    assert len(commands) >= 10
    assert [name for name in commands if f"dialin {name}" not in readme] == []


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
