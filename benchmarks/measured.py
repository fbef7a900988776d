"""What every benchmark says: the command, the machine and the versions that it ran with, and figures with their spread.

The benchmarks are modules, each a command to be given where README.md lies: `python -m benchmarks.start --help`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DIALIN = Path(sys.executable).with_name("dialin")


def option_parser(text: str | None) -> argparse.ArgumentParser:
    """For the options of a benchmark; `text` is its docstring, whose first line is its `--help`."""
    return argparse.ArgumentParser(description=(text or "").partition("\n")[0])


def print_header(*packages: str, gpus: Sequence[str] = ()) -> None:
    """The command and the machine, which come before a benchmark's own settings."""
    print(f"$ {command()}")
    print(machine(*packages, gpus=gpus), flush=True)


def command() -> str:
    """The command that this process was started by."""
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}".rstrip()


def machine(*packages: str, gpus: Sequence[str] = ()) -> str:
    """What a figure depends on: the hardware and what it is busy with, and versions; `gpus` are those that are used."""
    hardware = [processor(), f"{len(os.sched_getaffinity(0))} cores", *gpus, f"load {os.getloadavg()[0]:.1f}"]
    return f"{', '.join(hardware)}; Python {platform.python_version()}, {versions(packages)}"


def processor() -> str:
    """The model's name, which Linux alone tells; elsewhere the architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(packages: Iterable[str]) -> str:
    """Of those that are installed."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def every_gpu() -> list[str]:
    """Those that torch sees: `dialin run` takes all of them when it is not told of devices."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`23.1 (21.9 to 34.2)`: the median, the least and the most."""
    median, least, most = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({least} to {most})"
