"""Steps replayed from a recording train what eager ones do: on the CPU, where a tape stands in for a CUDA graph."""

from __future__ import annotations

import logging
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from narrow import fitted
from recording import (
    CUDA,
    POINTS,
    SIDES,
    STEPS,
    WARM_UP,
    WHOLE,
    Recorders,
    assert_close,
    curve,
    made,
    of,
    with_everything,
)
from tape import Tape
from torch import Tensor, nn
from training_helpers import Recorder, fit

from search.data import Data
from search.graphed import possible
from search.micro_batch_size import MicroBatchSize
from search.objective import Objective, Task
from search.optimizers import OPTIMIZERS
from storage.outcomes import Outcome

pytest_plugins = ["recording_fixture"]


@pytest.mark.parametrize("row", [name for name, row in OPTIMIZERS.items() if row.recorded is not None])
def test_replayed_steps_train_what_eager_steps_train(row: str, recording: Recorders) -> None:
    plain = curve(made(), row)
    recording(fails=0)
    eager = curve(made(), row)
    tape = recording()
    assert curve(made(), row) == eager
    assert_close(plain, eager)
    assert tape.plays == [STEPS - WARM_UP + 1, STEPS - WARM_UP]  # one of them to compare


def test_an_optimizer_that_cannot_be_recorded_trains_as_ever(recording: Recorders) -> None:
    plain = curve(made(), "adagrad")
    tape = recording()
    assert curve(made(), "adagrad") == plain
    assert (tape.plays, tape.beside) == ([], 0)


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.1}, {"ema": 0.9}, {"precision": "bf16"}, {"clip_norm": 0.1, "ema": 0.9, "precision": "bf16"}],
)
def test_options_of_the_step_are_in_the_recording_or_beside_it(options: dict[str, Any], recording: Recorders) -> None:
    recording(fails=0)
    eager = curve(made(**options), "adam")
    tape = recording()
    assert curve(made(**options), "adam") == eager
    assert tape.plays[1] == STEPS - WARM_UP


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"accumulate": 2}])
def test_a_scaler_and_accumulation_are_not_recorded(options: dict[str, Any]) -> None:
    assert possible(made(), with_everything(), CUDA)
    assert not possible(made(**options), with_everything(), CUDA)
    assert not possible(made(), nn.Sequential(nn.Embedding(4, 2, sparse=True)), CUDA)
    assert not possible(made(), with_everything(), torch.device("cpu"))


def test_rates_of_parameter_groups_are_in_the_recording(recording: Recorders) -> None:
    def groups(net: nn.Module) -> list[dict[str, Any]]:
        first, *others = net.children()
        return [
            {"params": first.parameters(), "lr_scale": 0.1},
            {"params": [one for other in others for one in other.parameters()]},
        ]

    plain = curve(made(parameters=groups))
    tape = recording()
    found = curve(made(parameters=groups))
    assert_close(plain, found)
    assert tape.plays[1] == STEPS - WARM_UP


@pytest.mark.parametrize("row", ["momentum", "adamw"])
@pytest.mark.parametrize("place", [(1, 0), (1, 7), (2, 11)])
def test_a_trial_goes_on_bit_for_bit(row: str, place: tuple[int, int], recording: Recorders) -> None:
    recording()
    whole = Recorder(keep=(1,), keep_within=(place,))
    fit(made(), whole, of(made(), row))
    kept = whole.within[place] if place[1] else whole.states[1]
    tape, rest = recording(), Recorder(restored=kept)
    result = fit(made(), rest, of(made(), row))
    assert rest.curve == whole.curve[place[0] :]
    assert result.outcome is Outcome.COMPLETE
    assert tape.plays[1] > 0


@pytest.mark.parametrize("row", ["momentum", "adamw"])
def test_a_checkpoint_goes_on_where_nothing_can_be_recorded_and_back(row: str, recording: Recorders) -> None:
    plain = Recorder(keep=(2,))
    fit(made(), plain, of(made(), row))
    recording()
    whole, after_plain = Recorder(keep=(2,)), Recorder(restored=plain.states[2])
    fit(made(), whole, of(made(), row))
    fit(made(), after_plain, of(made(), row))
    assert_close(plain.curve[2:], after_plain.curve)
    [adopted] = [Recorder(restored=whole.states[2])]
    with pytest.MonkeyPatch.context() as here:
        here.setattr("search.curve.possible", lambda *_: False)
        fit(made(), adopted, of(made(), row))
    assert_close(whole.curve[2:], adopted.curve)


@pytest.mark.parametrize("fails", [0, 1])
def test_a_recording_that_fails_leaves_everything_as_it_was(
    fails: int, recording: Recorders, caplog: pytest.LogCaptureFixture
) -> None:
    recording()
    replayed = curve(made(), "adam")
    tape = recording(fails=fails)
    with caplog.at_level(logging.WARNING):
        assert curve(made(), "adam") == replayed
    assert (tape.plays, tape.mends) == ([0] * (fails + 1), 1)
    assert [record.getMessage() for record in caplog.records] == [
        "steps are not replayed from a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_what_the_watch_did_not_see_is_noticed_in_a_later_epoch(
    recording: Recorders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that changes without a step of training: here from epoch to epoch, with the evaluation."""

    class Doubles(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if not self.training:
                self.times = 2.0
            return super().forward(inputs) * getattr(self, "times", 1.0)

    monkeypatch.setattr("search.graphed.PROVED_EVERY", 1)
    plain = curve(made(lambda trial: Doubles(6, 2)))
    tape = recording()
    assert_close(plain, curve(made(lambda trial: Doubles(6, 2))))
    assert tape.plays == [WHOLE - WARM_UP + 2, WHOLE - WARM_UP]
    assert "a replay computes something else than the network does" in caplog.text


def test_a_divergence_is_noticed(recording: Recorders) -> None:
    tape, recorder = recording(), Recorder(keep=(1, 2))
    objective = made(lambda trial: nn.Linear(6, 2))
    fit(objective, recorder, replace(of(objective), lr=math.inf))
    assert len(recorder.results) == 1
    recorder = Recorder()
    result = fit(made(lambda trial: Explodes()), recorder, of(objective))
    assert (result.outcome, len(recorder.results)) == (Outcome.DIVERGED, 2)
    assert tape.plays[1] > WHOLE - WARM_UP


class Explodes(nn.Linear):
    """Its loss is infinite after 15 steps."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__(6, 2)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
        return super().forward(inputs) / torch.where(self.steps > 15, 0.0, 1.0)


class NoRoomForMore(nn.Module):
    """As a GPU that is full with what was recorded: a partial batch does not fit beside it."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.refused, self._tape = 0, weakref.ref(tape)  # which is not the network's own state

    def forward(self, inputs: Tensor) -> Tensor:
        tape = self._tape()
        if self.training and len(inputs) == 3 and not self.refused and tape is not None and tape.plays:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return inputs


def test_a_recording_makes_room_before_a_batch_is_cut(recording: Recorders, caplog: pytest.LogCaptureFixture) -> None:
    objective, micro_batch = made(), MicroBatchSize()
    eager = Recorder()
    recording(fails=0)
    fitted(objective, eager)
    tape, recorder = recording(), Recorder()
    room = NoRoomForMore(tape)
    full = made(lambda trial: nn.Sequential(*with_everything().children(), room))
    assert fitted(full, recorder, micro_batch).outcome is Outcome.COMPLETE
    assert (room.refused, micro_batch.size) == (1, None)
    assert recorder.curve == eager.curve
    assert "memory is wanting" in caplog.text


def test_batches_that_are_not_all_tensors_are_trained_eagerly(recording: Recorders) -> None:
    class Named(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(POINTS)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"name": str(index), "points": POINTS[index], "side": SIDES[index]}

    def step(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        assert len(batch["name"]) == len(batch["side"])
        return nn.functional.cross_entropy(net(batch["points"]), batch["side"], reduction="sum"), len(batch["side"])

    tape = recording()
    objective = Objective(
        model=lambda trial: Task(nn.Linear(6, 2), step),
        data=lambda root: Data(Named(), Named()),
        metric="loss",
        epochs=2,
        batch_sizes=(10,),
    )
    assert fit(objective, Recorder(), of(objective)).outcome is Outcome.COMPLETE
    assert (tape.plays, tape.beside) == ([], 0)


def test_a_network_that_works_in_place_on_its_batch_is_recorded(recording: Recorders) -> None:
    class InPlace(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.mul_(0.5))

    recording(fails=0)
    eager = curve(made(lambda trial: InPlace(6, 2)))
    tape = recording()
    assert curve(made(lambda trial: InPlace(6, 2))) == eager
    assert tape.plays[1] == STEPS - WARM_UP


def test_an_optimizer_that_must_wait_after_all_is_not_recorded(
    recording: Recorders, caplog: pytest.LogCaptureFixture
) -> None:
    """As torch's fused SGD, where gradients do not lie as their weights."""

    def turned(trial: Any) -> nn.Module:
        net = nn.Linear(6, 2)
        net.weight.register_post_accumulate_grad_hook(turn)
        return net

    def turn(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad = weight.grad.mT.contiguous().mT

    plain = curve(made(turned))
    tape = recording()
    assert_close(plain, curve(made(turned)))
    assert tape.plays == []
    assert "the optimizer's step waits for the device" in caplog.text
