"""What pictures are drawn from: the best weights' outputs on the validation split, in order, until interrupted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from search.data import Data, Folds
from search.objective import Task, supervised
from search.predictions import Cut, predictions

CPU = torch.device("cpu")
POINTS = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
LABELS = (POINTS.sum(1) > 0).long()
DATA = Data((POINTS, LABELS), (POINTS[:7], LABELS[:7]))


class Counted:
    """Says yes when it is asked for the `at`th time."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def made() -> tuple[Task, dict[str, torch.Tensor], torch.Tensor]:
    """A task in the middle of training, better weights than it has, and what they say of the validation split."""
    net = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    best = {"0.weight": torch.stack([-torch.ones(4), torch.ones(4)]), "0.bias": torch.zeros(2)}
    sums = POINTS[:7].sum(1)
    return supervised(net.train(), nn.CrossEntropyLoss()), best, torch.stack([-sums, sums], 1)


def test_the_best_weights_are_asked_and_not_the_last_ones() -> None:
    task, best, expected = made()
    pairs = [*predictions(task, DATA, 4, device=CPU, weights=best, interrupted=lambda: False)]
    assert torch.allclose(torch.cat([outputs for outputs, _ in pairs]), expected)
    assert torch.equal(torch.cat([targets for _, targets in pairs]), LABELS[:7])


def test_of_a_network_in_half_precision_the_outputs_are_float32() -> None:
    task, best, expected = made()
    ((outputs, _),) = predictions(task, DATA, 4, device=CPU, weights=best, interrupted=lambda: False, precision="bf16")
    assert outputs.dtype == torch.float32
    assert torch.allclose(outputs, expected, atol=0.1)


def test_each_fold_is_asked_of_its_own_weights() -> None:
    task, best, expected = made()
    worse = {name: -values for name, values in best.items()}
    folds = Folds((DATA, Data(DATA.train, (POINTS[:2], LABELS[:2]))))
    weights = {"fold-1": best, "fold-2": worse}
    pairs = [*predictions(task, folds, 4, device=CPU, weights=weights, interrupted=lambda: False)]
    assert torch.allclose(torch.cat([outputs for outputs, _ in pairs]), torch.cat([expected, -expected[:2]]))


def test_an_interrupted_worker_is_asked_no_more() -> None:
    task, best, _ = made()
    data = Data(DATA.train, torch.utils.data.TensorDataset(POINTS, LABELS), collate=torch.utils.data.default_collate)
    seen = predictions(task, data, 1, device=CPU, weights=best, interrupted=Counted(at=2))
    assert len(next(seen)[0]) == 4
    with pytest.raises(Cut, match="the worker was interrupted"):
        next(seen)
