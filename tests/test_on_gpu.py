"""Training on a GPU: recorded steps, and epochs in which nothing waits for it. Skipped where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from narrow import fitted
from recording import CUDA, EPOCHS, SIDES, STEPS, WARM_UP, WHOLE, assert_close, made, of, with_everything
from torch import Tensor, nn
from training_helpers import Recorder, fit

from search.data import Data, split
from search.device_memory import CONTEXT_BYTES, bytes_each
from search.loading import resolve
from search.micro_batch_size import MicroBatchSize
from search.objective import Objective
from search.optimizers import OPTIMIZERS
from search.preview import build_task, load_data
from search.reporting import Result
from storage.outcomes import Outcome

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

RECORDED = [name for name, row in OPTIMIZERS.items() if row.recorded is not None]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often any graph was replayed, in one number."""
    count, replay = [0], torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        count[0] += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    yield count
    torch.cuda.empty_cache()


def on_gpu(objective: Objective, recorder: Recorder | None = None, row: str = "momentum") -> tuple[Recorder, Result]:
    recorder = recorder or Recorder()
    return recorder, fit(objective, recorder, of(objective, row), device=CUDA)


def eagerly(monkeypatch: pytest.MonkeyPatch, objective: Objective, row: str = "momentum") -> Recorder:
    with monkeypatch.context() as here:
        here.setattr("search.curve.possible", lambda *_: False)
        return on_gpu(objective, row=row)[0]


# Of two graphs, and once more to compare.
ALL = 2 * (STEPS - WARM_UP) + 1


@pytest.mark.parametrize("row", RECORDED)
@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "clip_norm": 0.5, "ema": 0.9}], ids=["plain", "options"])
def test_the_curve_is_the_eager_one(
    row: str, options: dict[str, Any], replays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a partial last batch, batch norm and dropout, whose random numbers are the same in both."""
    eager = eagerly(monkeypatch, made(**options), row)
    assert replays == [0]
    recorder, result = on_gpu(made(**options), row=row)
    assert result.outcome is Outcome.COMPLETE
    assert replays == [ALL]
    assert_close(eager.curve, recorder.curve)


def test_a_convolution_is_recorded_too(replays: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.rand(103, 1, 8, 8, generator=torch.Generator().manual_seed(0)), SIDES

    def net(trial: Any) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))

    objective = made(net, data=lambda root: split(images, labels, valid=0.2))
    eager = eagerly(monkeypatch, objective)
    recorder, _ = on_gpu(objective)
    assert replays[0] > STEPS
    assert_close(eager.curve, recorder.curve)


@pytest.mark.parametrize("row", ["momentum", "adamw", "radam"])
@pytest.mark.parametrize("place", [(1, 0), (1, 7)])
def test_a_trial_goes_on_bit_for_bit_on_the_same_gpu(row: str, place: tuple[int, int], replays: list[int]) -> None:
    whole, _ = on_gpu(made(), Recorder(keep=(1,), keep_within=(place,)), row)
    kept = whole.within[place] if place[1] else whole.states[1]
    rest, _ = on_gpu(made(), Recorder(restored=kept), row)
    assert rest.curve == whole.curve[1:]
    assert replays[0] > ALL


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu_and_back(replays: list[int]) -> None:
    whole, _ = on_gpu(made(lambda trial: nn.Linear(6, 2)), Recorder(keep=(2,)), "adamw")
    objective = made(lambda trial: nn.Linear(6, 2))
    adopted = Recorder(restored=whole.states[2], keep=(3,))
    fit(objective, adopted, of(objective, "adamw"))
    assert_close(whole.curve[2:], adopted.curve)
    back, _ = on_gpu(objective, Recorder(restored=adopted.states[3]), "adamw")
    assert_close(whole.curve[3:], back.curve)


@dataclass
class Forbids(Recorder):
    """From the second epoch on whatever waits for the device raises, but for the ends of training and evaluation."""

    asked: int = 0
    held_out: int = 3  # batches to evaluate

    def interrupted(self) -> bool:
        self.asked += 1
        in_epoch = (self.asked - 1) % (WHOLE + 1 + self.held_out)
        evaluates_last = in_epoch == WHOLE + self.held_out
        allowed = not self.results or evaluates_last or in_epoch == 0
        torch.cuda.set_sync_debug_mode("default" if allowed else "error")
        return super().interrupted()

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        if batch == WHOLE + 1:
            torch.cuda.set_sync_debug_mode("default")

    def report(self, result: Any, state: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        return super().report(result, state)


def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.rand(inputs.shape, device=inputs.device, generator=generator)


@pytest.mark.parametrize("row", ["momentum", "adamw", "adagrad"])
def test_nothing_waits_for_the_device_within_an_epoch(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.curve.LOOK_SECONDS", math.inf)
    points = torch.rand(103, 6)
    objective = made(
        metric=("loss", "accuracy", "f1", "top5_accuracy"),
        data=lambda root: Data((points, SIDES), (points.repeat(20, 1), SIDES.repeat(20)), augment=noisy),
        clip_norm=1.0,
        ema=0.9,
    )
    try:
        recorder, result = on_gpu(objective, Forbids(), row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (result.outcome, len(recorder.results)) == (Outcome.COMPLETE, EPOCHS)


def test_a_divergence_in_a_replay_ends_the_trial(replays: list[int]) -> None:
    class Explodes(nn.Linear):
        steps: Tensor

        def __init__(self) -> None:
            super().__init__(6, 2)
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            self.steps.add_(float(self.training))
            return super().forward(inputs) / torch.where(self.steps > 15, 0.0, 1.0)

    recorder, result = on_gpu(made(lambda trial: Explodes()))
    assert (result.outcome, len(recorder.results)) == (Outcome.DIVERGED, 2)
    assert replays[0] > 0


class Forbidden(nn.Module):
    """Breaks off a capture, and only that."""

    def forward(self, inputs: Tensor) -> Tensor:
        torch.cuda.synchronize()
        return inputs


class Waits(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (1.0 if float(inputs.sum()) > 0 else 2.0)


@pytest.mark.parametrize("layer", [Forbidden, Waits])
def test_what_cannot_be_recorded_trains_on_eagerly_with_dropout(
    layer: type[nn.Module], replays: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    objective = made(lambda trial: nn.Sequential(layer(), *with_everything().children()))
    eager = eagerly(monkeypatch, objective)
    recorder, result = on_gpu(objective)
    assert result.outcome is Outcome.COMPLETE
    assert replays == [0]
    assert len(caplog.records) == 1
    assert_close(eager.curve, recorder.curve)
    again, _ = on_gpu(made())  # nor does it keep the next trial from being recorded
    assert replays == [ALL]
    assert len(again.results) == EPOCHS


def test_a_recording_makes_room_for_a_batch_that_does_not_fit_beside_it(
    replays: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    class NoRoom(nn.Module):
        refused = False

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training and len(inputs) == 3 and replays[0] and not NoRoom.refused:
                NoRoom.refused = True
                torch.empty(2**60, dtype=torch.uint8, device=inputs.device)
            return inputs

    micro_batch, recorder = MicroBatchSize(), Recorder()
    objective = made(lambda trial: nn.Sequential(NoRoom(), nn.Linear(6, 2)))
    assert fitted(objective, recorder, micro_batch, CUDA).outcome is Outcome.COMPLETE
    assert (NoRoom.refused, micro_batch.size) == (True, None)
    assert "memory is wanting" in caplog.text


def test_the_memory_of_a_worker_is_measured() -> None:
    loaded = resolve("digits")
    device = torch.device("cuda", 0)
    free, _ = torch.cuda.mem_get_info(device)
    task = build_task(loaded)
    task.net.to(device)
    data = load_data(loaded, None)  # type: ignore[arg-type]  # it downloads nothing
    each = bytes_each(loaded, replace(data.folds[0]), task, device, free)
    assert each is not None
    assert CONTEXT_BYTES < each < CONTEXT_BYTES + 2**30
