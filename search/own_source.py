"""The source of a function with all that it needs, for a file of its own: `search.plain_torch` writes it there."""

from __future__ import annotations

import ast
import builtins
import inspect
import io
import math
import textwrap
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from search.failures import PACKAGES

# Values that stand in code as they are printed: of these very types, since a kind of them prints otherwise.
PLAIN = (bool, int, float, str, type(None))


class CannotBeWritten(Exception):
    """Why something cannot be written down as code, in a few words."""


@dataclass(frozen=True)
class Written:
    """Code by which something is known as `name`: imports by the names they bind, and definitions in order."""

    name: str
    imports: Mapping[str, str] = field(default_factory=dict)
    definitions: tuple[str, ...] = ()


def literal(value: Any) -> str:
    """A plain value, or a few of them, as code. Raises CannotBeWritten: it is none."""
    if isinstance(value, tuple | list):
        items = ", ".join(map(literal, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if type(value) not in PLAIN:
        raise CannotBeWritten(f"{value!r:.60} is no plain value")
    return f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)


def closure(function: Callable[..., Any], taken: Mapping[str, str] | None = None) -> Written:
    """A function's source without its annotations, and that of its module's functions and values that it uses.

    `taken`: names that mean something where it is written, with the import by which the same is meant, if any.

    Raises:
        CannotBeWritten: its source is not known, or it uses what has none, or a name that is taken.
    """
    imports: dict[str, str] = {}
    definitions: dict[str, str] = {}
    _collect(function, imports, definitions)
    taken = taken or {}
    if both := [name for name in (*imports, *definitions) if name in taken and imports.get(name) != taken[name]]:
        raise CannotBeWritten(f"{function.__name__} would need the name {both[0]} for something of its own")
    return Written(function.__name__, imports, tuple(definitions.values()))


def imported(value: Any, name: str) -> Written:
    """What is known by a name in a module that can be imported anywhere. Raises CannotBeWritten: it is not."""
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or not qualified.isidentifier() or module == "__main__":
        raise CannotBeWritten(f"{name} is {value!r:.60}, which no import finds")
    return Written(qualified, {qualified: f"from {module} import {qualified}"})


def _collect(function: Any, imports: dict[str, str], definitions: dict[str, str]) -> None:
    """What it uses goes before it."""
    if not isinstance(function, FunctionType) or not function.__name__.isidentifier() or function.__closure__:
        raise CannotBeWritten(f"{getattr(function, '__qualname__', function)!r:.60} is no plain function")
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        raise CannotBeWritten(f"the source of {function.__qualname__} is not known") from None
    [node] = tree.body
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        raise CannotBeWritten(f"{function.__qualname__} is no plain function")
    if any(map(_imports_ours, ast.walk(node))):
        raise CannotBeWritten(f"{function.__qualname__} imports Dialin as it runs")
    definitions[function.__name__] = ""  # it may call itself
    for name in _names(node):
        if name in function.__globals__:
            _one(name, function.__globals__[name], function, imports, definitions)
        elif not hasattr(builtins, name):
            raise CannotBeWritten(f"{function.__qualname__} uses {name}, which is not known")
    del definitions[function.__name__]
    definitions[function.__name__] = _without_annotations(node, source)


def _imports_ours(node: ast.AST) -> bool:
    names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return any(name.partition(".")[0] in PACKAGES for name in names)


def _one(name: str, value: Any, user: Any, imports: dict[str, str], definitions: dict[str, str]) -> None:
    """One global name that a function uses."""
    if isinstance(value, ModuleType):
        parent, _, last = value.__name__.rpartition(".")
        plain = f"import {name}" if value.__name__ == name else f"import {value.__name__} as {name}"
        imports[name] = f"from {parent} import {name}" if parent and last == name else plain
    elif name in definitions:
        return
    elif isinstance(value, FunctionType) and value.__name__ == name and _is_copied(value, user):
        _collect(value, imports, definitions)
    elif type(value) in PLAIN:
        definitions[name] = f"{name} = {literal(value)}\n"
    elif callable(value) and getattr(value, "__module__", None) not in (None, user.__module__):
        imports |= imported(value, name).imports
    else:
        raise CannotBeWritten(f"{user.__qualname__} uses {name}, which is {value!r:.60}")


def _is_copied(value: FunctionType, user: FunctionType) -> bool:
    """What nobody can import who has neither the person's module nor Dialin."""
    return value.__module__ == user.__module__ or value.__module__.partition(".")[0] in PACKAGES


def _names(node: ast.FunctionDef) -> list[str]:
    """Names that it reads and does not bind itself, in order; those in annotations are left out."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    bound = {argument.arg for argument in arguments if argument is not None}
    defaults = [*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)]
    todo: list[ast.AST] = [*node.body, *defaults]
    read: dict[str, None] = {}
    while todo:
        one = todo.pop(0)
        if isinstance(one, ast.Name):
            if isinstance(one.ctx, ast.Load):
                read[one.id] = None
            else:
                bound.add(one.id)
        elif isinstance(one, ast.arg):  # of a lambda, or of a function within
            bound.add(one.arg)
        elif isinstance(one, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and one.name:
            bound.add(one.name)
        elif isinstance(one, ast.alias):  # of an import within
            bound.add(one.asname or one.name.partition(".")[0])
        children = [*ast.iter_child_nodes(one)]
        todo += [child for child in children if not (isinstance(one, ast.AnnAssign) and child is one.annotation)]
    return [name for name in read if name not in bound]


def _without_annotations(node: ast.FunctionDef, source: str) -> str:
    """Its text, comments and all, under a head of its own."""
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    line, column = _head(source)
    rest = source.splitlines(keepends=True)[line - 1 :]
    return f"def {node.name}({ast.unparse(node.args)}):" + rest[0][column:] + "".join(rest[1:])


def _head(source: str) -> tuple[int, int]:
    """Line (from 1) and column behind the colon that ends a function's head."""
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == ":" and depth == 0:
                return token.end
    raise CannotBeWritten("its head does not end")
