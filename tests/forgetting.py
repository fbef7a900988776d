"""For tests that import made-up modules: what lies in a test's own folder is forgotten when the test ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def imports_forgotten(folder: Path) -> Iterator[None]:
    """Put `sys.path` back as it was, and forget the modules below `folder`: their names are free again."""
    path = [*sys.path]
    try:
        yield
    finally:
        sys.path[:] = path
        for name, module in [*sys.modules.items()]:
            file = getattr(module, "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]
