"""The global random generators that a model and its data draw from: seeded for a trial, kept in checkpoints.

Called by the worker before it makes a model, and by the trainer when it makes or reads a checkpoint state.
"""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (every device), Python and NumPy, before a model is made."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where those generators stand, in types that torch.load reads with `weights_only`."""
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set them. On another kind of device than before, that device's generator stays as it was seeded."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_of(purpose: str, seed: int, number: int) -> int:
    """Streams that do not overlap; the same in every process, as Python hashes a string seed with SHA-512."""
    return random.Random(f"{purpose} {seed} {number}").getrandbits(63)


class OwnRandomness:
    """Inside `with`, the CPU's global generators are its own, going on from where they stood when last inside.

    What draws from them there is a function of the seed alone, and what draws outside does not notice.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inside: dict[str, Any] | None = None
        self._outside: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._outside = random_state(_CPU)
        if self._inside is not None:
            restore_random_state(self._inside, _CPU)
            return
        random.seed(self._seed)
        np.random.seed(self._seed % 2**32)
        torch.default_generator.manual_seed(self._seed)  # torch.manual_seed would seed every GPU as well

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside = random_state(_CPU)
        restore_random_state(self._outside, _CPU)


_CPU = torch.device("cpu")
