"""What failed inside a person's code: one line that names the place, and only their own frames beside it.

Used where such code is called: loading and checking an objective, and a worker whose trial raised.
"""

from __future__ import annotations

import functools
import site
import sys
import sysconfig
import traceback
from pathlib import Path

from search.errors import ObjectiveError
from storage.errors import DialinError

PACKAGES = ("search", "objectives", "storage")
HOME = Path(__file__).resolve().parent.parent


class RaisedError(ObjectiveError):
    """A person's own code raised; `frames` is a traceback of their own frames only, of several lines."""

    def __init__(self, message: str, frames: str) -> None:
        super().__init__(message)
        self.frames = frames


def short(path: Path) -> str:
    """Return a path as a person would name it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def failure(error: BaseException, path: Path, doing: str = "") -> RaisedError:
    """Return what went wrong inside a person's code in one line, with their own frames.

    Args:
        error: what was raised, with its traceback.
        path: the file of the objective's module.
        doing: what was being tried, such as "data()"; left out of the line when empty.
    """
    text = error.msg if isinstance(error, SyntaxError) else first_line(error)
    if isinstance(error, DialinError):
        doing = ""  # Ours say what is meant; neither the class nor the moment adds anything.
    else:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if isinstance(error, SystemExit) and not doing:
            text = f'exits when imported ({text}); put what is to run under `if __name__ == "__main__":`'
    place = _place(error, path)
    if not place and not doing and not isinstance(error, DialinError):
        place = short(path)
    line = ": ".join(part for part in (place, doing, text) if part)
    return RaisedError(line, _frames(error, path))


def _frames(error: BaseException, path: Path) -> str:
    """None of a refusal of Dialin's own whose line says all: nothing is behind it, and it names the only place."""
    if not isinstance(error, DialinError):
        return person_frames(error, path)
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    places = sum(is_theirs(frame.filename, path) for frame in traceback.extract_tb(error.__traceback__))
    return getattr(error, "frames", "") if behind is None and places < 2 else person_frames(error, path)


def _place(error: BaseException, path: Path) -> str:
    """Return "file:line" of the innermost frame that is a person's own, or "" where there is none."""
    if isinstance(error, SyntaxError) and error.filename and is_theirs(error.filename, path):
        return f"{short(Path(error.filename).resolve())}:{error.lineno or 1}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_theirs(frame.filename, path):
            return f"{short(Path(frame.filename).resolve())}:{frame.lineno}"
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's own text that says something."""
    try:
        lines = [line.strip() for line in str(error).splitlines()]
    except Exception:  # A person's exception may fail to print itself.
        return "(its message cannot be printed)"
    return next((line for line in lines if line), "")


def line_of(error: BaseException) -> str:
    """The first line of an exception's own text, or its kind where it says nothing."""
    return first_line(error) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was wanting: torch has an exception for accelerators; the CPU's allocator raises a bare one."""
    torch = sys.modules.get("torch")  # where it is not imported it has raised nothing
    accelerator = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return accelerator or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def from_storage(error: BaseException) -> bool:
    """Whether it was raised by a call of Dialin's to its database, and not by one of a person's to theirs."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).resolve().is_relative_to(HOME / "storage") for frame in frames)


def person_frames(error: BaseException, path: Path) -> str:
    """Return the traceback of an exception with only the frames that are a person's own.

    Theirs is their module's file and whatever it calls outside dialin, the standard library and installed
    packages; when their module is itself installed, the folder it lies in.

    Args:
        error: the exception; its causes and contexts are treated alike.
        path: the file of the objective's module.
    """
    told = traceback.TracebackException.from_exception(error)
    waiting, seen = [told], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        own = [frame for frame in one.stack if is_theirs(frame.filename, path)]
        one.stack = traceback.StackSummary.from_list(own)
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        waiting += one.exceptions or []
    return "".join(told.format())


def typed_in(filename: str) -> bool:
    """Whether this is Python's name for what a person typed into a shell or a notebook."""
    return filename.startswith(("<ipython-input", "<python-input", "<stdin>"))


def is_theirs(filename: str, path: Path) -> bool:
    """Whether a file is a person's own, when their objective's module is the file `path`."""
    if filename.startswith("<"):
        return typed_in(filename)
    file, path = Path(filename).resolve(), path.resolve()
    if file == path:
        return True
    others = _not_theirs()
    if not any(file.is_relative_to(folder) for folder in others):
        return True
    installed = any(path.is_relative_to(folder) for folder in others) and path.parent not in others
    return installed and file.is_relative_to(path.parent)


@functools.cache
def _not_theirs() -> frozenset[Path]:
    """Return the folders of the standard library, of installed packages and commands, and of dialin."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    folders = {sysconfig.get_path(kind) for kind in kinds}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return frozenset({Path(folder).resolve() for folder in folders} | {HOME / name for name in PACKAGES})
