"""What this process trains with, found out once at a worker's start and kept with the study (`storage.provenance`).

`search.worker` asks for it, `search.replay` compares it with what is on record of a trial.
"""

from __future__ import annotations

import ast
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from search import optimizers, schedules
from search.data import Data, Folds, Split, size
from search.devices import cpu_name
from search.failures import PACKAGES
from search.fingerprint import fingerprint
from search.objective import OF_DIALINS_LOOP, Objective
from storage.provenance import Provenance

# `git status` reads every tracked file's date: on a slow disk that is not waited for.
GIT_SECONDS = 2.0
# How `git status --porcelain=v2 --branch` names the commit; "(initial)" where there is none yet.
_COMMIT = "# branch.oid "
# Options of an objective that change its curves, beside OF_DIALINS_LOOP; what is as it always is, is not noted.
OPTIONS = ("patience", "value", *(name for name in OF_DIALINS_LOOP if name not in ("parameters", "at_most")))

# What a file imports that is no package of its own.
NOT_THEIRS = sys.stdlib_module_names | {*PACKAGES}

_log = logging.getLogger(__name__)


def provenance(objective: Objective, sha256: str, path: Path, data: Data | Folds | None, device: str) -> Provenance:
    """What trials of this objective are trained with here and now, on this device, with as many threads as torch has.

    Args:
        sha256: of the objective's source.
        path: the file that it is in, if there is one.
        data: None where the objective trains itself.
    """
    commit, changed = checkout(path)
    return Provenance(
        objective=sha256,
        device=device_name(torch.device(device)),
        threads=torch.get_num_threads(),
        versions=versions(path, device),
        commit=commit,
        changed=changed,
        data=None if data is None else described(data),
        training=training(objective),
    )


def device_name(device: torch.device) -> str:
    """What decides how numbers are rounded: a GPU's name, or a CPU's with the instructions that torch uses on it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    return f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"


def versions(path: Path, device: str) -> dict[str, str]:
    """Of Python, Dialin, torch, NumPy, of packages that the objective's file imports, and of what they stand on."""
    found = {"python": platform.python_version()}
    with suppress(metadata.PackageNotFoundError):  # imported from a folder that nobody has installed
        found["dialin"] = metadata.version("dialin")
    for name in sorted({"torch", "numpy", *_imported(path)} - {"optuna"}):  # which samples, and trains nothing
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = str(version)
    library, version = platform.libc_ver()
    if library:
        found[library] = version
    if torch.device(device).type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def _imported(path: Path) -> Iterator[str]:
    """Packages, neither Python's own nor ours, that a file imports as it is loaded; none of one that cannot be read.

    What its functions import is there or not, as they were called or not.
    """
    try:
        todo: list[ast.AST] = [*ast.parse(path.read_bytes()).body]
    except (OSError, SyntaxError, ValueError):
        return
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        todo += ast.iter_child_nodes(node)
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        yield from (name.partition(".")[0] for name in names if name.partition(".")[0] not in NOT_THEIRS)


def checkout(path: Path) -> tuple[str | None, bool | None]:
    """The commit of the git checkout that tracks a file, and whether tracked files differ from it.

    Nothing of the checkout is written, its index neither. (None, None): there is none, or no git here.
    """
    if _git(path.parent, "ls-files", "--error-unmatch", "--", path.name) is None:
        return None, None
    told = _git(path.parent, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if told is None:
        return _git(path.parent, "rev-parse", "HEAD"), None
    lines = told.splitlines()
    commits = [line.removeprefix(_COMMIT) for line in lines if line.startswith(_COMMIT)]
    changed = any(not line.startswith("#") for line in lines)
    return (commits[0], changed) if commits and not commits[0].startswith("(") else (None, None)


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it does not."""
    with suppress(OSError, subprocess.SubprocessError, UnicodeError):
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL)
        return done.stdout.strip() if done.returncode == 0 else None
    return None


def described(data: Data | Folds) -> dict[str, Any]:
    """Its checksum, the samples of each split, and what shapes a batch."""
    first = data.folds[0]
    try:
        checksum: str | None = fingerprint(data)
    except Exception as error:  # a person's own kinds of tensors and datasets may not let themselves be read
        _log.warning("the data has no checksum: %s", error)
        checksum = None
    facts: dict[str, Any] = {
        "fingerprint": checksum,
        "train": None if isinstance(first.train, IterableDataset) else size(first.train),
        "valid": size(first.valid),
        "test": None if first.test is None else size(first.test),
        "folds": len(data.folds),
        "kind": _kind(first.train),
    }
    shaping = ("scale", "augment", "collate", "weights")
    return facts | {"shaped_by": [name for name in shaping if getattr(first, name) is not None]}


def _kind(part: Split) -> list[str] | str:
    """Of tensors each one's dtype and shape of a sample, else the name of the Dataset's class."""
    tensors = part.tensors if type(part) is TensorDataset else part
    if not isinstance(tensors, tuple):
        return type(part).__qualname__
    return [_of_a_sample(tensor) for tensor in tensors]


def _of_a_sample(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape[1:]))
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape or 'number'}"


def training(objective: Objective) -> dict[str, Any]:
    """How it is written, its loss, metrics and options, and which rows of the two tables are its own."""
    defaults = Objective.__dataclass_fields__
    options = {name: getattr(objective, name) for name in OPTIONS}
    own = {
        "optimizers": _own(optimizers.resolve_all(objective.optimizers), optimizers.OPTIMIZERS),
        "schedules": _own(schedules.resolve_all(objective.schedules), schedules.SCHEDULES),
    }
    told: dict[str, Any] = {"written": _door(objective), "metrics": [named.name for named in objective.metrics]}
    if objective.loss is not None:
        told["loss"] = _name(objective.loss)
    if objective.parameters is not None:
        told["groups"] = True
    told["options"] = {name: value for name, value in options.items() if value != defaults[name].default}
    return told | {"own_rows": {table: names for table, names in own.items() if names}}


def _own(rows: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    """Names of rows that are not the table's."""
    return [name for name, row in rows.items() if table.get(name) is not row]


def _door(objective: Objective) -> str:
    """How one came in: by a network and its loss, a Task, a loop of one's own, or a bare function."""
    if objective.function is not None:
        return "function"
    if objective.train is not None:
        return "loop"
    return "task" if objective.loss is None else "network"


def _name(loss: Any) -> str:
    """As a person would write it, on one line."""
    said = repr(loss) if isinstance(loss, nn.Module) else getattr(loss, "__qualname__", type(loss).__qualname__)
    return " ".join(said.split())[:200]
