"""What a stranger has written to the database is text: it runs nowhere, steers no terminal and leads to no file."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished import Place
from sqlalchemy import select
from sqlalchemy.orm import Session
from studies import TINY, Inside, place_for_a_module

from storage.optuna_internals import models
from storage.shared import SharedStorage
from storage.studies import StudyRecord

# It ends whatever it may stand in: a line, a comment, a docstring, a string, a table's cell, an escape's reach.
EVIL = '\n\nimport os  # """ \' [red]<script>alert(1)</script> | `\\\n# A heading\x1b]0;mine\x07\x9b31m\u202e'


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A finished study of tiny.py in whose database somebody has changed every text that an answer shows."""
    with place_for_a_module(tmp_path_factory) as folder:
        place = Place(f"sqlite:///{folder / 'study.db'}", folder / "files")
        place.look(change, place.searched(trials=2))
        yield place


def change(storage: SharedStorage, record: StudyRecord) -> None:
    with storage.backend.write() as session:
        session.scalars(select(models.StudyModel)).one().study_name = record.name + EVIL
        rewrite(session, models.TrialUserAttributeModel, "recipe", lambda recipe: recipe + EVIL)
        rewrite(session, models.TrialUserAttributeModel, "model", lambda model: model | {EVIL: EVIL})
        rewrite(session, models.StudySystemAttributeModel, "dialin:provenance:%", of_an_origin)


def rewrite(session: Session, table: Any, key: str, change: Any) -> None:
    rows = session.scalars(select(table).where(table.key.like(key))).all()
    assert rows
    for row in rows:
        row.value_json = json.dumps(change(json.loads(row.value_json)))


def of_an_origin(told: dict[str, Any]) -> dict[str, Any]:
    training = told["training"] | {"loss": EVIL, "options": {EVIL: 1, "clip_norm": 1.0}}
    return told | {"device": EVIL, "commit": EVIL, "training": training}


NAME = "tiny-1" + EVIL


def test_no_command_hands_it_to_the_terminal(inside: Inside, strange: Place) -> None:
    at, objective = strange.at[:2], ("--objective", TINY)
    for command in (
        ("status", *at),
        ("best", *at),
        ("best", "--format", "python", *at),
        ("show", NAME, 0, *at),
        ("replay", 0, *objective, *at),
        ("export", "-o", "out", "--no-weights", *at),
        ("confirm", *at),
        ("list", *at),
    ):
        said = inside(*command)
        for text in (said.out, said.err):
            strays = {one for one in text if not one.isprintable()} - {"\n"}
            assert strays == set(), f"{command[0]} prints {strays}"
        assert "[red]" in said.out + said.err or command[0] == "list", f"{command[0]} takes it for markup"


def test_python_that_is_printed_only_assigns(inside: Inside, strange: Place) -> None:
    tree = ast.parse(inside("best", "--format", "python", *strange.at[:2]).out)
    assert [type(one) for one in tree.body] == [ast.Assign, ast.Assign]


def test_what_is_exported_imports_no_more_and_is_no_markup(inside: Inside, strange: Place, tmp_path: Path) -> None:
    said = inside("export", "-o", "out", "--no-weights", *strange.at)
    assert said.status == 0, said.err
    out = tmp_path / "out"
    imported = {ast.unparse(one) for one in ast.walk(ast.parse((out / "recipe.py").read_text())) if is_import(one)}
    assert "import os" not in imported
    assert len(imported) <= 4, imported
    card = (out / "README.md").read_text()
    assert [line[:9] for line in card.splitlines() if line.startswith(("# ", "import"))] == ["# tiny-1 "]
    outside_of_code = re.sub(r"`[^`\n]*`", "", card.replace("\\`", ""))
    assert re.search(r"(?<!\\)<script", outside_of_code) is None
    assert "\x1b" not in card
    assert yaml.safe_load((out / "recipe.yaml").read_text()) == json.loads((out / "recipe.json").read_text())


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_its_folder_is_below_the_one_of_all_studies(strange: Place) -> None:
    record = strange.look(lambda storage, record: record, NAME)
    assert "/" not in replace(record, name="../..", uid="/../../.").folder
