"""A file that a command was told to write: as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.written import file_name, write
from storage.errors import UsageError


def test_a_file_is_there_as_a_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("before")
    write(tmp_path / "t.csv", "ä")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert (tmp_path / "t.csv").read_bytes() == "ä".encode()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    (tmp_path / "real.html").write_text("before")
    write(tmp_path / "link.html", "after")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text() == "after"


def test_what_is_no_file_is_written_to_and_says_when_it_is_full() -> None:
    write(Path("/dev/null"), "anything")
    with pytest.raises(UsageError, match="cannot write /dev/full: No space left on device"):
        write(Path("/dev/full"), "anything")


@pytest.mark.parametrize(
    ("study", "file"), [("digits-1", "digits-1"), ("a/b c", "a_b_c"), ("..", "study"), ("../x", "_x")]
)
def test_any_name_of_a_study_makes_one_of_a_file(study: str, file: str) -> None:
    assert file_name(study) == file
