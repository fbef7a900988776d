"""Which large packages an objective is going to import, guessed from its source before anything imports it.

`search.children` has the process that workers are forked from import them, once for all of them. A wrong guess costs
time only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from search.by_value import ByValue
from search.failures import HOME

# They take from 0.3 s (pandas) to 5 s (transformers.trainer) of CPU. None of them looks for a GPU or starts a thread
# when it is imported: another process could not be forked after that.
LARGE = frozenset({"lightning", "pandas", "scipy", "sklearn", "torchvision", "transformers"})
# What else may be imported before one of them without a change to how that is imported. Any other module may set
# environment variables that it reads, HF_HOME for one.
HARMLESS = frozenset({"numpy", "objectives", "optuna", "search", "torch"}) | sys.stdlib_module_names


def large_imports(objective: str | ByValue) -> list[str]:
    """Modules of large packages that its source imports before anything that may change how; none if unreadable."""
    found: dict[str, None] = {}
    for source in _sources(objective):
        try:
            found.update(dict.fromkeys(_imported(ast.parse(source))))
        except (SyntaxError, ValueError):  # said when it is loaded; a notebook's cell may have magic
            continue
    return [name for name in found if name.partition(".")[0] in LARGE]


def _sources(objective: str | ByValue) -> Iterator[str | bytes]:
    if isinstance(objective, ByValue):
        yield from objective.cells.values()
        files = [objective.path]
    else:
        target = objective.rpartition(":")[0] or objective
        module = Path(*target.split(".")).with_suffix(".py")
        files = [Path(target).expanduser(), module, HOME / "objectives" / f"{target.removeprefix('objectives.')}.py"]
    for file in files:
        if file.suffix == ".py" and file.is_file():
            yield file.read_bytes()


def _imported(tree: ast.Module) -> Iterator[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr))
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if not node.level else [""]
        elif isinstance(node, ast.Attribute | ast.Name) and _name(node) in ("environ", "putenv"):
            return
        else:
            continue
        for name in names:
            if name.partition(".")[0] not in LARGE | HARMLESS:
                return
            yield name


def _name(node: ast.Attribute | ast.Name) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id
