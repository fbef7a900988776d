"""A fixture by which training on the CPU records its steps, on a tape."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from recording import CUDA, Recorders
from tape import Tape

from search.graphed import possible


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recorders:
    """From now on training tries to record, on a tape."""

    def on(**options: Any) -> Tape:
        tape = Tape(**options)
        monkeypatch.setattr("search.curve.possible", lambda options, net, device: possible(options, net, CUDA))
        monkeypatch.setattr("search.graphed.Cuda", lambda device: tape)
        # As on a GPU, also in what each of them does by default.
        optimizer = sys.modules["torch.optim.optimizer"]  # torch.optim deletes the names of its modules
        monkeypatch.setattr(optimizer, "_get_foreach_kernels_supported_devices", lambda: ["cpu"])
        for module in ("rmsprop", "nadam", "radam"):
            torchs = sys.modules[f"torch.optim.{module}"]
            monkeypatch.setattr(torchs, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
        return tape

    return on
