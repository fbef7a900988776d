"""From what a person types (`digits`, `pkg.module`, `./my_model.py:net2`) to an Objective.

Called by every command that trains and by the workers. Whatever is wrong with a person's module is said in
one line. Listing the built-in objectives imports no torch.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from search.by_value import DEFAULT_NAME, ByValue
from search.errors import ObjectiveError
from search.failures import HOME, PACKAGES, failure, short
from storage.errors import UsageError
from storage.studies import NOTEBOOK

if TYPE_CHECKING:
    from search.metrics import Direction
    from search.objective import Objective

_IMPORTING: ContextVar[Path | None] = ContextVar("importing", default=None)
_FILE_HELP = "a file is named ./my_model.py[:name], a module pkg.module[:name]"
_WRITE = "write objective = Objective(model=..., data=...), with `from search import Objective`"


@dataclass(frozen=True)
class LoadedObjective:
    """An objective and where it came from.

    Attributes:
        reference: what finds it again: a built-in's name, a dotted path or an absolute file path.
        name: letters, digits and "_": studies are named after it.
        objective: the value itself.
        source_sha256: checksum of the module's own file (not of what it imports).
        path: the module's file, as `search.failures` needs it.
        notes: what a person should know about how it was found, a line each.
        undirected: it is a bare function whose script sets the direction only when it runs, and nobody has said it.
    """

    reference: str
    name: str
    objective: Objective
    source_sha256: str
    path: Path
    notes: tuple[str, ...] = ()
    undirected: bool = False

    def to(self, direction: str | None) -> LoadedObjective:
        """The same; a bare function, which does not say which way is better, goes in this direction."""
        if direction is None or self.objective.function is None:
            return self
        return replace(
            self, objective=replace(self.objective, direction=cast("Direction", direction)), undirected=False
        )


def builtin_objectives(folder: Path = HOME / "objectives") -> dict[str, str]:
    """Return every built-in objective's name and the first line of its docstring; imports nothing."""
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        tree = ast.parse(path.read_bytes())
        if DEFAULT_NAME in _assigned(tree):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def _assigned(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def reference_here(stored: str, given: str | None, command: str) -> str:
    """Which objective to load for a study: code comes from this machine, never from the database.

    Args:
        stored: what the study was made with.
        given: what --objective names here.
        command: what was typed, such as "dialin resume mine-1", for the error to complete.

    Raises:
        UsageError: it is not a built-in one, and nothing was given.
    """
    if given is not None:
        return given
    if stored.partition(":")[0] in builtin_objectives():
        return stored
    if stored.startswith(NOTEBOOK):
        raise UsageError(
            f"the study's objective was written in a notebook ({stored}): go on there with search.load(...).resume("
            f"objective=...), or put it into a file: {command} --objective FILE.py"
        )
    raise UsageError(f"the study searches {stored}, which is not built in: {command} --objective {stored}")


def resolve(given: str | ByValue) -> LoadedObjective:
    """Find, import and check an objective.

    Args:
        given: a built-in's name, a dotted path or a file; each with ":name" when the module calls its
            objective something else than `objective`. Or the objective itself, which has come by value.

    Raises:
        UsageError: there is no such objective or file.
        ObjectiveError: the module fails when imported, or what it holds is no Objective.
    """
    if isinstance(given, ByValue):
        given.show_cells()
        return LoadedObjective(given.reference, given.name, given.objective, given.source_sha256, given.path)
    target, name = split(given)
    importlib.invalidate_caches()  # A file written a moment ago is found too.
    if target.endswith(".py") or "/" in target:
        return _from_file(target, name)
    builtin = target.removeprefix("objectives.")
    if builtin in builtin_objectives():
        path = HOME / "objectives" / f"{builtin}.py"
        return _loaded(_import(f"objectives.{builtin}", path), path, builtin, builtin, name)
    dotted = all(part.isidentifier() for part in target.split("."))
    if dotted and ("." in target or name != DEFAULT_NAME):
        return _from_dotted(target, name)
    raise UsageError(_unknown(given))


def split(reference: str) -> tuple[str, str]:
    """Separate "target:name", where a colon that no name follows belongs to the target; the usual name without one."""
    target, _, name = reference.rpartition(":")
    return (target, name) if target and name.isidentifier() else (reference, DEFAULT_NAME)


def _unknown(reference: str) -> str:
    known = list(builtin_objectives())
    guesses = [f"./{reference}.py"] if reference and Path(f"{reference}.py").is_file() else []
    guesses += difflib.get_close_matches(reference.lower(), known, n=1, cutoff=0.5)
    guess = f"did you mean {guesses[0]}? " if guesses else ""
    return f"no objective {reference!r}: {guess}built in are {', '.join(known) or 'none'}; {_FILE_HELP}"


def _from_file(target: str, name: str) -> LoadedObjective:
    path = Path(target).expanduser()
    if path.is_dir():
        raise UsageError(f"{target} is a folder; name the Python file in it that holds the objective")
    if path.suffix != ".py":
        raise UsageError(f"{target} is not a Python file; {_FILE_HELP}")
    path = path.resolve()
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"no file {target}; `dialin init {target}` writes one to start from") from None
    except OSError as error:
        raise UsageError(f"cannot read {target}: {error.strerror}") from None
    append_to_path(path.parent)
    module = _execute(path, source)
    found = _loaded(module, path, str(path), _tidy(path.stem), name, typed=target)
    return replace(found, source_sha256=hashlib.sha256(source).hexdigest(), notes=(*found.notes, *_clashes(path)))


def _from_dotted(target: str, name: str) -> LoadedObjective:
    folder = Path.cwd()
    append_to_path(folder)
    try:
        spec = importlib.util.find_spec(target)
    except ValueError:  # A module without a spec, such as __main__.
        spec = None
    except (Exception, SystemExit) as error:  # Finding a.b imports a, and that may fail.
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else "?"
        if not f"{target}.".startswith(f"{missing}."):
            raise failure(error, folder / target.partition(".")[0] / "__init__.py") from error
        spec = None
    if spec is None:
        raise UsageError(f"no module {target!r} on the import path or in {folder}; {_FILE_HELP}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UsageError(f"{target} is not a module with a source file; {_FILE_HELP}")
    path = Path(spec.origin).resolve()
    return _loaded(_import(target, path), path, target, _tidy(target.rpartition(".")[2]), name)


def being_imported() -> Path | None:
    """The person's file that is being imported here for its objective, if any."""
    return _IMPORTING.get()


@contextmanager
def _importing(path: Path) -> Iterator[None]:
    before = _IMPORTING.set(path)
    try:
        yield
    finally:
        _IMPORTING.reset(before)


def _import(dotted: str, path: Path) -> ModuleType:
    try:
        with _importing(path):
            return importlib.import_module(dotted)
    except (Exception, SystemExit) as error:
        raise failure(error, path) from error


def _execute(path: Path, source: bytes) -> ModuleType:
    """Run exactly these bytes as a module; no stale bytecode is read, none is left in a person's folder."""
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Pickles of what it defines find it there.
    try:
        with _importing(path):
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise failure(error, path) from error
    return module


def _module_name(path: Path) -> str:
    """Return the name under which another process with this `sys.path` would import the file too.

    A data loader's worker processes unpickle a person's dataset by it. Where that name is somebody else's
    (a file called random.py) a name of our own keeps the other module whole.
    """
    try:
        spec = importlib.util.find_spec(path.stem) if "." not in path.stem else None
    except ValueError:  # A module without a spec, such as __main__.
        spec = None
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path:
        return path.stem
    return f"objective_{_tidy(path.stem)}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"


def _loaded(
    module: ModuleType, path: Path, base: str, study: str, name: str, *, typed: str | None = None
) -> LoadedObjective:
    from search import bare
    from search.objective import Objective

    value: Any = getattr(module, name, None)
    notes: tuple[str, ...] = ()
    undirected = False
    if bare.takes_a_trial(value):
        script = bare.script_of(path.read_bytes(), path.name)
        value, notes, undirected = bare.objective_of(value, script), script.notes, script.direction is None
    if not isinstance(value, Objective):
        raise ObjectiveError(_not_an_objective(module, path, name, typed or base))
    plain = name == DEFAULT_NAME
    return LoadedObjective(
        reference=base if plain else f"{base}:{name}",
        name=study if plain else f"{study}_{name}",
        objective=value,
        source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        path=path,
        notes=notes,
        undirected=undirected,
    )


def _not_an_objective(module: ModuleType, path: Path, name: str, typed: str) -> str:
    """Say what there is instead of an Objective called `name`."""
    from search import bare
    from search.objective import Objective

    value = getattr(module, name, None)
    if inspect.isroutine(value):
        return (
            f"`{name}` in {path.name} is a function, but none that takes a trial and nothing else, as Optuna's do; "
            f"{_WRITE}"
        )
    if value is not None:
        kind = "class" if isinstance(value, type) else type(value).__name__
        return f"`{name}` in {path.name} is a {kind}, not an Objective; {_WRITE}"
    others = [other for other, found in vars(module).items() if isinstance(found, Objective)]
    if others:
        return f"{path.name} has no `{name}`, but `{others[0]}` is an Objective: name it {typed}:{others[0]}"
    functions = [
        other
        for other, found in vars(module).items()
        if inspect.isfunction(found) and found.__module__ == module.__name__ and bare.takes_a_trial(found)
    ]
    if len(functions) == 1:
        meant = f"if {functions[0]}(trial) is an Optuna objective, name it {typed}:{functions[0]}"
        return f"{path.name} has no `{name}`; {meant}; {_WRITE}"
    own = [
        f"{other} ({'class' if isinstance(found, type) else 'function'})"
        for other, found in vars(module).items()
        if getattr(found, "__module__", None) == module.__name__ and hasattr(found, "__qualname__")
    ]
    return f"{path.name} has no `{name}`; it defines {', '.join(own) or 'nothing'}; {_WRITE}"


def append_to_path(folder: Path) -> None:
    """A person's folder comes last, so that nothing in it can stand in for a library or for dialin."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _clashes(path: Path) -> Iterator[str]:
    """Say which modules beside a person's file have the name of a package of dialin's."""
    if path.parent == HOME:
        return
    for name in PACKAGES:
        file, folder = path.parent / f"{name}.py", path.parent / name
        if file.is_file() or any(folder.glob("*.py")):
            yield (
                f"{short(file if file.is_file() else folder)} has the name of a package of dialin's: "
                f"`import {name}` gives dialin's, not yours; rename yours"
            )


def _tidy(stem: str) -> str:
    return re.sub(r"\W+", "_", stem).strip("_") or DEFAULT_NAME
