"""Which large packages an objective is going to import, guessed from its source before anything imports it.

`search.children` has the process that workers are forked from import them, once for all of them. A wrong guess costs
time only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from search.by_value import ByValue
from search.failures import HOME

# They take from 0.3 s (pandas) to 5 s (transformers.trainer) of CPU. None of them looks for a GPU or starts a thread
# when it is imported: another process could not be forked after that.
LARGE = frozenset({"lightning", "pandas", "scipy", "sklearn", "torchvision", "transformers"})


def large_imports(objective: str | ByValue) -> list[str]:
    """Modules of large packages that its source imports, wherever in it; none where it cannot be read."""
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
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
