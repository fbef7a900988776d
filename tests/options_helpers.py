"""For tests of training options: small real trainings on digits, and an optimizer that remembers its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from training_helpers import Recorder, first_recipe, fit

from search import checkpoints
from search.data import Data
from search.objective import Objective
from search.reporting import Interrupted, Result, Verdict
from search.space import Recipe

TRAINED, HELD_OUT = 230, 300


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Flat images from 0 to 1 and labels."""
    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


def data(root: Path = Path()) -> Data:
    """230 digits to train on and 300 to validate: at batch 32 seven whole batches and one of six."""
    images, labels = digits()
    held_out = slice(TRAINED, TRAINED + HELD_OUT)
    return Data((images[:TRAINED], labels[:TRAINED]), (images[held_out], labels[held_out]))


def network(trial: Any = None) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def with_norm(trial: Any = None) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10))


def on_digits(**arguments: Any) -> Objective:
    given: dict[str, Any] = {
        "model": network,
        "data": data,
        "loss": nn.CrossEntropyLoss(),
        "metric": ("loss", "accuracy"),
        "epochs": 3,
        "batch_sizes": (32,),
        "optimizers": ("sgd",),
        "schedules": ("constant",),
        **arguments,
    }
    return Objective(**given)


def recipe(objective: Objective, **changes: Any) -> Recipe:
    """Plain SGD at rate 0.5 without decay, unless changed."""
    return replace(first_recipe(objective), **{"lr": 0.5, "weight_decay": 0.0, **changes})


def watched(objective: Objective, look: Callable[[torch.optim.Optimizer], None], **changes: Any) -> Recipe:
    """A recipe whose optimizer shows itself to `look` just before each of its steps."""

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            look(self)
            return super().step(closure)

    plain = recipe(objective, **changes)
    return replace(plain, optimizer=replace(plain.optimizer, factory=Watched))


def goes_on_the_same(objective: Objective, tmp_path: Path, after: int, recipe: Recipe | None = None) -> Recorder:
    """Asserts that a training handed back and restored ends bit for bit as one that was not; returns the latter."""
    whole, begun = Recorder(), Recorder(verdicts={after: Verdict.HAND_BACK}, keep=(after,))
    result = fit(objective, whole, recipe)
    try:
        fit(objective, begun, recipe)
    except Interrupted:
        checksum = checkpoints.save(tmp_path / "state.pt", begun.states[after])
    rest = Recorder(restored=checkpoints.load(tmp_path / "state.pt", checksum))
    torch.manual_seed(123)  # another process
    again = fit(objective, rest, recipe)
    assert len(begun.results) == after
    assert begun.curve + rest.curve == whole.curve
    assert_same(again, result)
    return whole


def assert_same(first: Result, second: Result) -> None:
    assert (first.outcome, first.value, first.best_epoch, first.reason) == (
        second.outcome,
        second.value,
        second.best_epoch,
        second.reason,
    )
    for one, other in zip(flat(first.weights), flat(second.weights), strict=True):
        assert torch.equal(one, other)


def flat(weights: Any) -> list[Tensor]:
    """The tensors of a state_dict, or of one for each fold."""
    if isinstance(weights, Tensor):
        return [weights]
    return [tensor for value in (weights or {}).values() for tensor in flat(value)]
