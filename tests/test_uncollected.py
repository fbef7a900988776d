"""Imports of ours go without the garbage collector, and nothing after them does."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from storage.uncollected import uncollected


def test_in_the_block_nothing_is_collected_and_after_it_as_before() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("module", ["search.cli", "search.preload"])
def test_a_process_of_ours_collects_and_leaves_out_what_it_has_imported(module: str) -> None:
    script = f"import gc, {module}\nprint(gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True True\n", "")
