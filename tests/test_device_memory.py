"""How many workers a GPU gets from what a first batch took of its memory: planned without one, on made-up figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from search import devices, preview
from search.device_memory import CONTEXT_BYTES, Measured, bytes_each
from search.devices import GIB, Gpu
from search.loading import resolve
from search.preflight import Placement, look
from search.preview import build_task, load_data


def test_a_worker_takes_its_context_and_the_most_that_torch_had() -> None:
    measured = Measured(reserved=3 * GIB, passing=GIB, libraries=GIB // 4)
    assert measured.needed(recorded=False) == CONTEXT_BYTES + 3 * GIB + GIB // 4
    assert measured.needed(recorded=True) == measured.needed(recorded=False) + GIB


def test_memory_that_others_gave_back_meanwhile_is_not_counted() -> None:
    assert Measured(GIB, 0, libraries=-5 * GIB).needed(recorded=True) == CONTEXT_BYTES + GIB


def test_what_cannot_be_measured_is_not_known(tmp_path: Path) -> None:
    loaded = resolve("digits")
    data = load_data(loaded, tmp_path).folds[0]
    assert bytes_each(loaded, data, build_task(loaded), torch.device("cuda", 99), GIB) is None


@pytest.mark.parametrize(
    ("placement", "each", "slots"),
    [
        (Placement(), 9 * GIB, ["cuda:0", "cuda:1", "cuda:0/1", "cuda:1/1"]),
        (Placement(), None, ["cuda:0", "cuda:1"]),
        (Placement(per_device=1), 9 * GIB, ["cuda:0", "cuda:1"]),
        (Placement(workers=1), 9 * GIB, ["cuda:0"]),
        (Placement(devices="cpu", workers=1), 9 * GIB, ["cpu/0"]),
    ],
)
def test_a_search_is_planned_by_what_its_objective_takes(
    placement: Placement, each: int | None, slots: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[torch.device] = []

    def try_out(loaded: Any, data: Any, task: Any, device: torch.device) -> None:
        tried.append(device)

    monkeypatch.setattr(devices, "gpus", lambda: [Gpu(n, f"uuid-{n}", "Imagined", 24 * GIB, 23 * GIB) for n in (0, 1)])
    monkeypatch.setattr(preview, "try_out", try_out)
    monkeypatch.setattr("search.preflight.usable_cpus", lambda: 8)
    monkeypatch.setattr("search.device_memory.bytes_each", lambda *_: each)
    threads = torch.get_num_threads()
    try:
        found = look("digits", tmp_path, placement)
    finally:
        torch.set_num_threads(threads)
    assert [slot.name for slot in found.plan.slots] == slots
    assert tried == [torch.device(slots[0].partition("/")[0])]
