"""Which large packages a source imports, without importing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.by_value import ByValue
from search.foresight import large_imports

SOURCE = """
import os, pandas as pd
from torchvision.models import resnet18

def data(root):
    from sklearn.datasets import load_digits

from . import sklearn_of_mine
import mine.sklearn
"""
FOUND = {"pandas", "torchvision.models", "sklearn.datasets"}


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    for name in ("mine.py", "./mine.py", f"{tmp_path}/mine.py:net", "mine", "mine:net"):
        assert {*large_imports(name)} == FOUND, name


def test_a_module_in_a_package_is_found_beside_the_person(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "mine.py").write_text(SOURCE)
    assert {*large_imports("pkg.mine:net")} == FOUND


def test_built_in_objectives_are_known() -> None:
    assert large_imports("digits") == ["sklearn.datasets"]
    assert large_imports("objectives.adult") == ["pandas"]


def test_a_notebooks_cells_are_read_and_its_magic_passed_over() -> None:
    cells = {"<cell 1>": "%matplotlib inline", "<cell 2>": SOURCE}
    assert {*large_imports(ByValue("notebook:net", "net", "", Path("notebook"), None, cells))} == FOUND


def test_a_script_is_read_for_an_objective_by_value(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SOURCE)
    assert {*large_imports(ByValue(str(script), "script", "", script, None, {}))} == FOUND


@pytest.mark.parametrize("text", ["def (", "import \0"])
def test_what_cannot_be_read_imports_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert large_imports("mine.py") == []
    assert large_imports("no_such_thing") == []


@pytest.mark.parametrize(
    "first",
    [
        "import os\nos.environ['HF_HOME'] = '/data'",
        "from os import environ\nenviron.setdefault('SCIPY_ARRAY_API', '1')",
        "import settings_of_mine",
        "from . import settings",
    ],
)
def test_nothing_is_imported_before_what_may_change_how(first: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"import torch\nimport scipy\n{first}\nimport transformers\n")
    assert large_imports("mine.py") == ["scipy"]
