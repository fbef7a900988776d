"""What the benchmarks say of the machine and of their figures."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
    return importlib.import_module("benchmarks.measured")


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux tells the processor's name")
def test_a_header_names_the_processor_the_gpus_in_use_and_the_versions(measured: ModuleType) -> None:
    told = measured.machine("torch", "not-installed-anywhere", gpus=["Some GPU"])
    (model, *_) = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line] or [""]
    assert told.startswith(model.partition(":")[2].strip() or platform.machine())
    assert ", Some GPU, load " in told
    assert f"; Python {platform.python_version()}, torch " in told
    assert "not-installed" not in told


def test_a_header_repeats_the_command(measured: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/start.py", "--objective", "two words.py"])
    assert measured.command() == "python -m benchmarks.start --objective 'two words.py'"


def test_a_spread_is_the_median_the_least_and_the_most(measured: ModuleType) -> None:
    assert measured.spread([3.0, 1.0, 2.06]) == "2.1 (1.0 to 3.0)"
    assert measured.spread([0.99444, 0.99721], 4) == "0.9958 (0.9944 to 0.9972)"
