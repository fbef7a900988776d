"""`check` goes on where it can, with a line for each optimizer and schedule, and an estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_objectives import ROOT, made, raising, two_classes
from torch import Tensor, nn

from search import check as check_module
from search.check import check
from search.check_lines import CheckLine, duration
from search.data import Data
from search.errors import ObjectiveError
from search.loading import resolve
from search.optimizers import Optimizer
from search.schedules import Schedule


def lines(monkeypatch: pytest.MonkeyPatch, trials: int = 10, workers: int = 1, **changes: Any) -> dict[str, CheckLine]:
    """What `check` says of an objective, measured as shortly as can be."""
    monkeypatch.setattr(check_module, "MEASURED_SECONDS", 0.0)
    return {line.what: line for line in check(made(**changes), ROOT, "cpu", trials, workers=workers)}


class TestCheck:
    def test_digits_gets_through_with_a_line_for_everything(self) -> None:
        found = list(check(resolve("digits"), ROOT, "cpu", 40, workers=2, threads=1))
        assert [line.what for line in found if not line.ok] == []
        kinds = [line.what.partition(" ")[0] for line in found]
        assert {kind: kinds.count(kind) for kind in kinds} == {
            "first": 1,
            "optimizer": 9,
            "schedule": 9,
            "micro-batches": 1,
            "epoch": 2,
            "memory": 1,
            "study": 1,
        }
        memory = next(line for line in found if line.what == "memory")
        assert 50e6 < memory.numbers["peak_bytes"] < 50e9

    def test_each_optimizer_trains_at_the_smallest_and_the_largest_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        line = lines(monkeypatch, batch_sizes=(4, 16, 8))["optimizer momentum"]
        assert line.detail.startswith("lr 0.01; batch 4: loss ")
        assert {*line.numbers} == {"lr", "loss_at_batch_4", "loss_at_batch_16"}

    def test_every_optimizer_starts_from_the_same_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        twins = (Optimizer("one", torch.optim.SGD, 0.5, ""), Optimizer("two", torch.optim.SGD, 0.5, ""))
        found = lines(monkeypatch, optimizers=twins)
        assert found["optimizer one"].numbers == found["optimizer two"].numbers

    def test_a_network_that_learns_its_shapes_from_a_batch_can_be_checked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = lines(monkeypatch, model=lambda trial: nn.LazyLinear(2))
        assert [line.what for line in found.values() if not line.ok] == []

    def test_an_optimizer_that_raises_is_a_line_and_the_rest_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = Optimizer("broken", raising(RuntimeError("sparse only\nand more")), 0.1, "")
        found = lines(monkeypatch, optimizers=("adam", broken, "momentum"))
        assert not found["optimizer broken"].ok
        assert found["optimizer broken"].detail.endswith("at batch 4: RuntimeError: sparse only")
        assert found["optimizer momentum"].ok
        assert found["study"].ok

    def test_an_optimizer_that_diverges_at_once_is_a_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wild = Optimizer("wild", torch.optim.SGD, 1e38, "")
        found = lines(monkeypatch, optimizers=("adam", wild), loss=lambda outputs, _: outputs.square().mean())
        assert not found["optimizer wild"].ok
        assert "at step " in found["optimizer wild"].detail
        assert "batch 4, lr 1e+38" in found["optimizer wild"].detail

    def test_a_schedule_that_raises_is_a_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def negative(optimizer: Any, shape: Any, steps: int) -> Any:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: -1.0)

        mine = (Schedule("mine", "", raising(ValueError("too short"))), Schedule("down", "", negative))
        found = lines(monkeypatch, schedules=("constant", *mine))
        assert found["schedule mine"].detail.endswith("ValueError: too short")
        assert "not all finite and at least 0" in found["schedule down"].detail
        assert [found[f"schedule {name}"].ok for name in ("constant", "mine", "down")] == [True, False, False]

    def test_a_batch_that_does_not_fit_leaves_an_estimate_from_the_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Small(nn.Linear):
            def forward(self, inputs: Tensor) -> Tensor:
                if len(inputs) == 8:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
                return super().forward(inputs)

        found = lines(monkeypatch, model=lambda trial: Small(3, 2))
        assert "at batch 8: OutOfMemoryError: CUDA out of memory" in found["optimizer adam"].detail
        assert [found[f"epoch at batch {size}"].ok for size in (4, 8)] == [True, False]
        assert found["study"].numbers["study_seconds"] > 0

    def test_a_study_takes_its_trials_epochs_shared_among_the_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = lines(monkeypatch, trials=7, workers=2, batch_sizes=(8,))
        epoch = found["epoch at batch 8"].numbers
        assert epoch["epoch_seconds"] == pytest.approx(5 * epoch["step_seconds"] + epoch["evaluation_seconds"])
        study = found["study"]
        # The busier of two workers trains four of seven trials, three epochs each.
        assert study.numbers["study_seconds"] == pytest.approx(4 * 3 * epoch["epoch_seconds"])
        assert study.detail.startswith("7 trials of 3 epochs on 2 workers: about ")

    def test_it_says_whether_parts_of_a_batch_train_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exact = lines(monkeypatch)["micro-batches"]
        assert exact.detail.startswith("exact: gradients of a batch and of its halves differ by ")
        assert exact.numbers["difference"] < exact.numbers["tolerance"]

    def test_it_says_which_layer_mixes_the_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        line = lines(monkeypatch, model=lambda trial: net)["micro-batches"]
        assert (line.ok, line.numbers["exact"]) == (True, 0.0)
        assert line.detail == (
            "not exact: BatchNorm1d '1' mixes the samples of a batch; "
            "a batch that does not fit into memory ends its trial"
        )

    def test_batch_sizes_in_between_are_estimated_in_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = lines(monkeypatch, trials=1, batch_sizes=(4, 8, 6))
        small, large = (found[f"epoch at batch {size}"].numbers for size in (4, 8))
        step = (small["step_seconds"] + large["step_seconds"]) / 2
        evaluation = (small["evaluation_seconds"] + large["evaluation_seconds"]) / 2
        between = 7 * step + evaluation
        expected = 3 * (small["epoch_seconds"] + between + large["epoch_seconds"]) / 3
        assert found["study"].numbers["trial_seconds"] == pytest.approx(expected)

    def test_the_threads_are_set_while_checking_and_put_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before, seen = torch.get_num_threads(), []

        def data(root: Path) -> Data:
            seen.append(torch.get_num_threads())
            return two_classes()

        monkeypatch.setattr(check_module, "MEASURED_SECONDS", 0.0)
        list(check(made(data=data), ROOT, "cpu", 1, threads=before + 1))
        assert (seen, torch.get_num_threads()) == ([before + 1], before)

    def test_an_objective_that_cannot_train_is_said_at_once(self) -> None:
        with pytest.raises(ObjectiveError, match="the train split is empty"):
            list(check(made(data=lambda root: two_classes(0)), ROOT, "cpu", 1))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0042, "4.2 ms"),
        (0.42, "0.42 s"),
        (42.4, "42 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said
