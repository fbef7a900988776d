"""A Python in which Dialin is not installed: the same packages, found without the files that make it importable."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

# Trains what lies in each folder that it is given: recipe.py, train.py, and a network.py that makes what they need.
# Prints each folder's curve: training loss and validation accuracy of each epoch.
DRIVER = """
import sys

sys.path.append(sys.argv[1])

import importlib
import importlib.util
import json
from pathlib import Path

assert not [name for name in ("search", "storage", "objectives") if importlib.util.find_spec(name)]

import torch

curves = {}
for folder in map(Path, sys.argv[2:]):
    sys.path.insert(0, str(folder))
    network, train = importlib.import_module("network"), importlib.import_module("train")
    curve = []
    for _, net, train_loss in train.train(network.make_net, network.loss, *network.TRAIN, **network.MORE):
        net.eval()
        with torch.no_grad():
            *inputs, targets = network.VALID
            right = (net(*inputs).argmax(1) == targets).sum()
        curve.append([train_loss, int(right) / len(targets)])
    curves[folder.name] = curve
    sys.path.remove(str(folder))
    for name in ("network", "train", "recipe"):
        del sys.modules[name]
print(json.dumps(curves))
"""


def without_dialin(script: str, *arguments: object) -> str:
    """What a script prints there. The first of its arguments is the folder of packages, for it to add to its path."""
    # -S: the files in that folder that would put this checkout on the path are not read.
    command = [sys.executable, "-I", "-S", "-c", script, sysconfig.get_path("purelib"), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def curves(*folders: Path) -> dict[str, Any]:
    """Each folder's curve, by its name."""
    found: dict[str, Any] = json.loads(without_dialin(DRIVER, *folders).splitlines()[-1])
    return found
