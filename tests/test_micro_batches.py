"""A batch that does not fit is trained in parts: the same curve, where that is exact; else it says why not."""

from __future__ import annotations

import contextlib
import copy
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrow import POINTS, SIDES, Room, fitted, narrow, objective
from torch import Tensor, nn
from training_helpers import Recorder

from search.exactness import Comparison, compare
from search.micro_batch_size import MicroBatchSize
from search.micro_batches import WontFit, count, cut
from search.objective import Task, supervised
from search.reporting import Interrupted
from storage.outcomes import Outcome


class Table:
    """Sizes by model, as the database keeps them."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def find(self, model: str) -> int | None:
        return self.rows.get(model)

    def keep(self, model: str, samples: int) -> None:
        self.rows[model] = samples


class Known(Table):
    """Another trial has found so many samples to fit, of whatever model."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples

    def find(self, model: str) -> int | None:
        return self.samples


class TestTraining:
    @pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
    @pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1, "ema": 0.9}, {"precision": "bf16"}])
    def test_the_curve_is_that_of_whole_batches(self, options: dict[str, Any], back: bool) -> None:
        whole, parts = Recorder(), Recorder()
        fitted(objective(lambda: narrow(nn.Tanh(), samples=10), **options), whole)
        result = fitted(objective(lambda: narrow(nn.Tanh(), samples=3, back=back), **options), parts)
        assert result.outcome is Outcome.COMPLETE
        rough = 2e-2 if "precision" in options else 1e-4
        for one, other in zip(whole.results, parts.results, strict=True):
            assert other.metrics == pytest.approx(one.metrics, rel=rough, abs=rough)
            assert other.samples == one.samples

    def test_samples_that_weigh_nothing_may_make_a_part(self) -> None:
        """As where a loss ignores a class: a part of nothing else is no division by zero."""

        def make(samples: int) -> Task:
            net = narrow(nn.Tanh(), samples=samples)

            def step(_net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
                inputs, classes = batch
                total = nn.functional.cross_entropy(net(inputs), classes, ignore_index=0, reduction="sum")
                return total, (classes != 0).sum()

            return Task(net, step, supervised(net, nn.CrossEntropyLoss()).predict)

        whole, parts = Recorder(), Recorder()
        fitted(objective(lambda: make(10)), whole)
        assert fitted(objective(lambda: make(2)), parts).outcome is Outcome.COMPLETE
        for one, other in zip(whole.results, parts.results, strict=True):
            assert other.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-4)

    def test_halves_are_tried_until_one_fits_and_kept_for_the_next_trial(self) -> None:
        nets: list[nn.Sequential] = []

        def make() -> nn.Module:
            nets.append(narrow(samples=2))
            return nets[-1]

        table = Table()
        for _ in range(2):
            assert fitted(objective(make), micro_batch=MicroBatchSize(table)).outcome is Outcome.COMPLETE
        assert [*table.rows.values()] == [2]
        rooms = [net[1] for net in nets]
        # Of ten, five and three; to compare, a batch of five and then of two.
        assert [room.refused for room in rooms if isinstance(room, Room)] == [4, 1]

    def test_a_size_that_is_known_gives_the_curve_of_one_that_is_found_out(self) -> None:
        """Random numbers too: a batch that goes through again has those that it began with."""
        table, found_out, known = Table(), Recorder(), Recorder()
        for recorder in (found_out, known):
            fitted(objective(lambda: nn.Sequential(nn.Dropout(0.5), narrow())), recorder, MicroBatchSize(table))
        assert known.curve == found_out.curve

    def test_batches_of_a_step_that_had_fitted_go_through_again(self) -> None:
        class Late(Room):
            """Memory is wanting from the second batch on."""

            def forward(self, inputs: Tensor) -> Tensor:
                self.samples, inputs = 3, super().forward(inputs)
                return inputs

        def made(room: nn.Module) -> Callable[[], nn.Module]:
            return lambda: nn.Sequential(nn.Linear(3, 4), room, nn.Linear(4, 2))

        whole, parts = Recorder(), Recorder()
        fitted(objective(made(nn.Identity()), accumulate=2), whole)
        fitted(objective(made(Late(10, back=True)), accumulate=2), parts)
        for one, other in zip(whole.results, parts.results, strict=True):
            assert other.metrics == pytest.approx(one.metrics, rel=1e-4)

    def test_a_trial_that_goes_on_has_the_curve_of_the_undisturbed_one(self) -> None:
        made = objective(lambda: narrow(nn.Dropout(0.5)), epochs=3)
        undisturbed, first, second = Recorder(keep=(1,)), Recorder(keep=(1,)), Recorder()
        fitted(made, undisturbed)
        first.stop_after = 8  # an epoch is 5 batches and one to evaluate
        with pytest.raises(Interrupted):
            fitted(made, first)
        second.restored = first.states[1]
        fitted(made, second, MicroBatchSize(Known(1)))
        assert first.curve + second.curve == undisturbed.curve

    def test_a_batch_that_a_network_changes_in_place_is_not_trained_again(self) -> None:
        class InPlace(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                return inputs.mul_(2)

        result = fitted(objective(lambda: nn.Sequential(InPlace(), narrow())))
        assert result.outcome is Outcome.OUT_OF_MEMORY
        assert "changed its batch in place" in result.reason

    def test_one_sample_too_many_is_an_outcome(self) -> None:
        table = Table()
        nets = iter([narrow(samples=2), narrow(samples=0)])
        fitted(objective(lambda: next(nets)), micro_batch=MicroBatchSize(table))
        result = fitted(objective(lambda: next(nets)), micro_batch=MicroBatchSize(table))
        assert result.outcome is Outcome.OUT_OF_MEMORY
        assert result.reason.startswith("out of memory at batch size 10: CUDA out of memory. Tried to allocate 9 GiB; ")


class TestEvaluation:
    class Small(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            if not self.training and len(inputs) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inputs

    def test_it_is_the_same_in_smaller_batches(self) -> None:
        whole, parts, micro_batch = Recorder(), Recorder(), MicroBatchSize()
        metrics = ("loss", "accuracy", "f1")
        fitted(objective(lambda: narrow(samples=10), metric=metrics), whole)
        fitted(objective(lambda: narrow(self.Small(), samples=10), metric=metrics), parts, micro_batch)
        assert (micro_batch.size, micro_batch.evaluated) == (None, 13)
        for one, other in zip(whole.results, parts.results, strict=True):
            assert other.metrics == pytest.approx(one.metrics, rel=1e-6)


class TestAfterAKill:
    def test_the_next_owner_takes_half(self) -> None:
        table = Table()
        for kills, size in [(1, 5), (1, 3), (1, 2), (1, 1)]:
            assert fitted(objective(lambda: narrow(samples=10)), micro_batch=MicroBatchSize(table, kills)).outcome is (
                Outcome.COMPLETE
            )
            assert [*table.rows.values()] == [size]

    def test_with_one_sample_at_a_time_there_is_nothing_left_to_try(self) -> None:
        table = Table()
        made = objective(lambda: narrow(samples=10))
        fitted(made, micro_batch=MicroBatchSize(table, 1))
        table.rows = dict.fromkeys(table.rows, 1)
        result = fitted(made, micro_batch=MicroBatchSize(table, 1))
        assert result.outcome is Outcome.OUT_OF_MEMORY
        assert result.reason.endswith("killed for want of memory while it trained on one sample at a time")

    def test_what_cannot_be_cut_is_tried_whole_once_more(self) -> None:
        made = objective(lambda: narrow(nn.BatchNorm1d(4), samples=10))
        assert fitted(made, micro_batch=MicroBatchSize(kills=1)).outcome is Outcome.COMPLETE
        result = fitted(made, micro_batch=MicroBatchSize(kills=2))
        assert result.outcome is Outcome.OUT_OF_MEMORY
        assert "killed for want of memory 2 times in a row; trained in parts" in result.reason

    @pytest.mark.parametrize("known", [8, 1])
    def test_what_cannot_be_cut_halves_no_size(self, known: int) -> None:
        table = Known(known)
        made = objective(lambda: narrow(nn.BatchNorm1d(4), samples=10))
        assert fitted(made, micro_batch=MicroBatchSize(table, kills=1)).outcome is Outcome.COMPLETE
        assert table.rows == {}

    def test_a_comparison_that_kills_is_of_a_smaller_part_the_next_time(self) -> None:
        compared = []

        def compare_part(part: Any) -> Any:
            compared.append(count(part))
            return Comparison(False)

        for kills in (1, 2):
            with contextlib.suppress(WontFit):
                MicroBatchSize(kills=kills).begin("a", (POINTS[:32], SIDES[:32]), compare_part)
        assert compared == [16, 8]


def contrastive(net: nn.Module, batch: Any) -> tuple[Tensor, float]:
    points = nn.functional.normalize(net(batch[0]), dim=1)
    return nn.functional.cross_entropy(points @ points.T, torch.arange(len(points))) * len(points), len(points)


def mixed(net: nn.Module, batch: Any) -> tuple[Tensor, float]:
    inputs, targets = batch
    outputs = net((inputs + inputs[torch.randperm(len(inputs))]) / 2)
    return nn.functional.cross_entropy(outputs, targets, reduction="sum"), len(targets)


def noisy(net: nn.Module, batch: Any) -> tuple[Tensor, float]:
    inputs, targets = batch
    outputs = net(inputs + torch.randn_like(inputs))
    return nn.functional.cross_entropy(outputs, targets, reduction="sum"), len(targets)


def plain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2))


def task_of(net: nn.Module, step: Callable[..., Any] | None = None, loss: Any = None) -> Task:
    return Task(net, step) if step is not None else supervised(net, loss or nn.CrossEntropyLoss())


EXACT = {
    "plain": lambda: task_of(plain()),
    "dropout": lambda: task_of(plain(nn.Dropout(0.5))),
    "noise": lambda: task_of(plain(), noisy),
    "layer norm": lambda: task_of(plain(nn.LayerNorm(4))),
    "lazy": lambda: task_of(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))),
    "attention": lambda: task_of(nn.Sequential(nn.Unflatten(1, (3, 1)), Attention(), nn.Flatten(), nn.Linear(12, 2))),
    "recurrent": lambda: task_of(nn.Sequential(nn.Unflatten(1, (3, 1)), Recurrent(), nn.Linear(4, 2))),
}
DIFFERENT = {
    "BatchNorm1d '1' (and 1 more) mixes the samples of a batch": lambda: task_of(
        plain(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    ),
    "the loss of a batch is not the sum of its samples' losses": lambda: task_of(plain(), contrastive),
    "not the sum of its samples": lambda: task_of(plain(), loss=nn.CrossEntropyLoss(weight=torch.tensor([0.1, 2.0]))),
    "its step mixes the samples": lambda: task_of(plain(), mixed),
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs.expand(-1, -1, 4))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LSTM(1, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, _ = self.net(inputs)
        return outputs[:, -1]


class TestExactness:
    def compared(self, task: Task) -> Any:
        task.net.train()
        return compare(task.net, lambda batch: task.step(task.net, batch), (POINTS[:16], SIDES[:16]))

    @pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
    def test_samples_that_go_through_alone_are_exact_in_parts(self, make: Callable[[], Task]) -> None:
        found = self.compared(make())
        assert (found.exact, found.why) == (True, "")

    @pytest.mark.parametrize(("why", "make"), DIFFERENT.items(), ids=DIFFERENT)
    def test_what_mixes_the_samples_of_a_batch_is_named(self, why: str, make: Callable[[], Task]) -> None:
        found = self.compared(make())
        assert not found.exact
        assert why in found.why

    def test_what_cannot_be_compared_is_not_exact(self) -> None:
        def broken(net: nn.Module, batch: Any) -> Any:
            raise ValueError("no such colour")

        assert self.compared(task_of(plain(), broken)).why == "comparing the two raises ValueError: no such colour"

    def test_batch_norm_at_rest_is_exact(self) -> None:
        net = plain(nn.BatchNorm1d(4))
        task = task_of(net)
        net.eval()
        assert compare(net, lambda batch: task.step(net, batch), (POINTS, SIDES)).exact

    def test_network_and_generators_are_left_as_they_were(self) -> None:
        task = task_of(plain(nn.BatchNorm1d(4), nn.Dropout()))
        before, random = copy.deepcopy(task.net.state_dict()), torch.get_rng_state()
        self.compared(task)
        assert all(torch.equal(one, before[name]) for name, one in task.net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(parameter.grad is None for parameter in task.net.parameters())


class TestBatches:
    Pair = namedtuple("Pair", "image label")

    @pytest.mark.parametrize(
        "batch",
        [
            torch.arange(7),
            (torch.arange(7), torch.zeros(7, 2)),
            {"a": torch.arange(7), "b": [torch.zeros(7), torch.tensor(1.0)], "names": [*"abcdefg"]},
            Pair(torch.arange(7), torch.zeros(7, 2)),
        ],
        ids=["tensor", "pair", "dict", "named"],
    )
    def test_a_batch_is_cut_into_even_parts(self, batch: Any) -> None:
        parts = cut(batch, 3)
        assert (count(batch), [count(part) for part in parts]) == (7, [2, 2, 3])
        assert [type(part) for part in parts] == [type(batch)] * 3
        if isinstance(batch, dict):
            assert [part["names"] for part in parts] == [["a", "b"], ["c", "d"], ["e", "f", "g"]]

    @pytest.mark.parametrize(
        "batch", [(torch.arange(7), torch.arange(6)), (torch.arange(7), object()), torch.tensor(1.0), ["a", "b"]]
    )
    def test_what_has_no_samples_in_common_cannot_be_cut(self, batch: Any) -> None:
        assert count(batch) is None
