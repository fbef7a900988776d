"""Optimizers do without torch's compiler in processes of ours, and whoever compiles has it whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies import TINY_TEXT, Inside, states, trials

STEPS = """
import sys
import torch
from search.uncompiled import spare_the_compiler
from search.optimizers import OPTIMIZERS

def train(net):
    for row in OPTIMIZERS.values():
        optimizer = row.factory(net.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())

def compiler_is_there():
    return "torch._dynamo.config" in sys.modules

spare_the_compiler()
net = torch.nn.Linear(2, 1)
train(net)
assert not compiler_is_there()
"""
# What people and libraries do first, and that it has woken the real module.
WAKERS = {
    "compile": """
ran = []
def backend(graph, inputs):
    ran.append(graph)
    return graph.forward
compiled = torch.compile(net, backend=backend)
train(compiled)
assert ran
""",
    "import of a part": """
import torch._dynamo.decorators as part
assert part is sys.modules["torch._dynamo.decorators"] is torch._dynamo.decorators
assert type(part.__spec__.loader).__name__ == "SourceFileLoader"
""",
    "utilities": """
import importlib
part = importlib.import_module("torch._dynamo.utils")
assert not compiler_is_there()
assert part.counters is sys.modules["torch._dynamo.utils"].counters is torch._dynamo.utils.counters
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils is not part
""",
    "torchvision's question": """
from torchvision.ops.roi_align import is_compile_supported
from torchvision.models import resnet18
train(torch.nn.Sequential(torch.nn.Unflatten(1, (1, 2)), torch.nn.Flatten(), torch.nn.Linear(2, 1)))
assert not compiler_is_there()
assert is_compile_supported("cpu") is sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")
""",
    "decorator": """
@torch.compiler.disable(reason="mine")
def plain():
    return 1
assert plain() == 1
""",
}


THEN = """
assert compiler_is_there()
assert type(torch._dynamo).__name__ == "module" and torch._dynamo is sys.modules["torch._dynamo"]
assert not any("uncompiled" in type(finder).__module__ for finder in sys.meta_path)
train(net)
kept = vars(torch.optim.Optimizer.zero_grad.__wrapped__)["__dynamo_disable"]
assert kept is not torch.optim.Optimizer.zero_grad.__wrapped__, "compiled code is kept out of it again"
"""
# Each script in a process of its own, forked from one that has imported torch and not used it yet.
EACH = """
import os, runpy, sys, torch
for script in sys.argv[1:]:
    if not (child := os.fork()):
        os.dup2(os.open(f"{script}.err", os.O_WRONLY | os.O_CREAT), 2)
        runpy.run_path(script)
        sys.exit()
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each way to wake the compiler has complained of."""
    scripts = {waker: tmp_path_factory.mktemp("waker") / "script.py" for waker in WAKERS}
    for waker, script in scripts.items():
        script.write_text(STEPS + WAKERS[waker] + THEN + 'open(__file__ + ".done", "w").close()\n')
    subprocess.run([sys.executable, "-c", EACH, *scripts.values()], timeout=240, check=True)
    return {
        waker: "" if Path(f"{script}.done").exists() else Path(f"{script}.err").read_text() or "it was killed"
        for waker, script in scripts.items()
    }


@pytest.mark.parametrize("waker", WAKERS)
def test_the_compiler_comes_whole_when_it_is_asked_for_and_only_then(waker: str, ended: dict[str, str]) -> None:
    assert ended[waker] == ""


BARE = """
import sys
import torch

def objective(trial):
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=trial.suggest_float("lr", 0.01, 0.1))
    called = torch.compile(net, backend="eager") if trial.number == 1 else net
    for _ in range(3):
        optimizer.zero_grad()
        called(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return float("torch._dynamo.config" in sys.modules)
"""


def test_a_worker_imports_no_compiler_for_a_plain_trial_and_trains_a_compiled_one(inside: Inside) -> None:
    Path("old.py").write_text(BARE)
    ran = inside("run", "old.py:objective", "--trials", 2, "--workers", 1, "--direction", "maximize")
    assert ran.status == 0, ran.err
    assert "0 complete: value 0" in ran.out, ran.out
    assert "1 complete: value 1" in ran.out, ran.out


WATCHED_LOSS = """
import sys

def watched_loss(outputs, targets):
    assert "sympy" not in sys.modules
    return nn.functional.cross_entropy(outputs, targets)
"""


def test_nor_does_training_import_what_the_compiler_needs(inside: Inside) -> None:
    """The loss of a second step sees what the first one has brought in."""
    usual = "loss=nn.CrossEntropyLoss(),"
    assert usual in TINY_TEXT
    Path("mine.py").write_text(TINY_TEXT.replace(usual, "loss=lambda *given: watched_loss(*given),") + WATCHED_LOSS)
    ran = inside("run", "mine.py", "--trials", 1, "--workers", 1)
    assert ran.status == 0, ran.err
    assert states(trials("sqlite:///dialin.db", "mine-1")) == {TrialState.COMPLETE: 1}
