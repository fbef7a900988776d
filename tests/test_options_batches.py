"""Epochs of so many batches, streams, weighted samples, collate functions and a loader's processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from loader_items import Drawing, Flow, Noisy, as_dict
from made_objectives import ROOT, made
from options_helpers import HELD_OUT, TRAINED, data, digits, goes_on_the_same, network, on_digits, recipe
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from training_helpers import CPU, Recorder, fit

from search import balanced
from search.batches import TrainingBatches
from search.data import Data, split
from search.errors import ObjectiveError
from search.objective import Task
from search.preview import first_batch
from storage.outcomes import Outcome

NUMBERS = torch.arange(103)


def batches(given: Data, batch_size: int = 10, seed: int = 0, epoch_batches: int | None = None) -> TrainingBatches:
    return TrainingBatches(given, None, batch_size, seed=seed, device=CPU, epoch_batches=epoch_batches)


def taken(found: TrainingBatches, epochs: Any) -> list[list[int]]:
    return [batch[0].tolist() for epoch in epochs for batch in found.epoch(epoch)]


# Epochs of so many batches


@pytest.mark.parametrize("epoch_batches", [4, 11, 25])
def test_epochs_of_n_batches_are_cut_from_an_endless_stream_of_passes(epoch_batches: int) -> None:
    given = Data((NUMBERS,), (NUMBERS,))
    natural = taken(batches(given), range(1, 11))
    found = batches(given, epoch_batches=epoch_batches)
    stream = taken(found, range(1, 5))
    assert len(found) == epoch_batches
    assert stream == natural[: 4 * epoch_batches]
    assert sorted(row for batch in natural[:11] for row in batch) == NUMBERS.tolist()
    assert [found.samples(epoch) for epoch in (1, 2, 3, 4)] == [
        sum(len(batch) for batch in stream[epoch * epoch_batches : (epoch + 1) * epoch_batches]) for epoch in range(4)
    ]


def test_a_trial_has_so_many_steps_an_epoch_as_the_objective_says() -> None:
    objective = on_digits(epoch_batches=5, schedules=("linear",))
    recorder, plan = Recorder(keep=(3,)), recipe(objective)
    fit(objective, recorder, plan)
    assert recorder.states[3]["step"] == 15
    assert [epoch.metrics["lr"] for epoch in recorder.results] == (plan.lr * plan.factors(15)).tolist()[4::5]
    assert [epoch.samples for epoch in recorder.results] == [160, 4 * 32 + 6, 160]


def flow(root: Path = Path(), loader_workers: int = 0) -> Data:
    plain = data()
    assert isinstance(plain.train, tuple)
    return replace(plain, train=Flow(*plain.train), loader_workers=loader_workers)


def noisy(root: Path = Path(), loader_workers: int = 0) -> Data:
    plain = data()
    assert isinstance(plain.train, tuple)
    return replace(plain, train=Noisy(*plain.train), loader_workers=loader_workers)


@pytest.mark.parametrize(("make", "loader_workers"), [(data, 0), (noisy, 0), (noisy, 2), (flow, 0), (flow, 2)])
def test_it_goes_on_bit_for_bit_in_the_middle_of_a_pass(make: Any, loader_workers: int, tmp_path: Path) -> None:
    dropping = nn.Sequential(nn.Dropout(0.1), network())
    states = {name: tensor.clone() for name, tensor in dropping.state_dict().items()}

    def model(trial: Any) -> nn.Module:
        dropping.load_state_dict(states)
        return dropping

    given = make() if make is data else make(loader_workers=loader_workers)
    objective = on_digits(model=model, data=lambda root: given, epochs=4, epoch_batches=5)
    recorder = goes_on_the_same(objective, tmp_path, after=2)
    assert len({epoch.metrics["train_loss"] for epoch in recorder.results}) == 4


# Streams


class Counting(IterableDataset[int]):
    """0 to 22, and how often it was begun."""

    def __init__(self, count: int = 23) -> None:
        self.count, self.begun = count, 0

    def __iter__(self) -> Iterator[int]:
        self.begun += 1
        yield from range(self.count)


def stream_of(dataset: IterableDataset[Any], batch_size: int, epoch_batches: int | None) -> TrainingBatches:
    return batches(Data(dataset, (NUMBERS,)), batch_size, epoch_batches=epoch_batches)


def test_a_stream_goes_on_over_epochs_and_begins_again_when_it_ends() -> None:
    numbers = Counting()
    found = stream_of(numbers, 5, 4)
    epochs = [[batch.tolist() for batch in found.epoch(epoch)] for epoch in (1, 2, 3)]
    whole = [*range(20)], [20, 21, 22, *range(15)], [*range(15, 23), *range(10)]
    assert [[row for batch in epoch for row in batch] for epoch in epochs] == [*whole]
    assert numbers.begun == 3
    assert (len(found), found.samples(1)) == (4, 20)


def test_a_stream_is_found_again_at_its_place_after_a_restart() -> None:
    found, again = stream_of(Counting(), 5, 4), stream_of(Counting(), 5, 4)
    last = [[batch.tolist() for batch in found.epoch(epoch)] for epoch in (1, 2, 3)][-1]
    assert [batch.tolist() for batch in again.epoch(3)] == last


def test_a_single_sample_at_the_end_of_a_stream_is_left_out() -> None:
    found = stream_of(Counting(11), 5, 3)
    assert [batch.tolist() for batch in found.epoch(1)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]
    assert [batch.tolist() for batch in stream_of(Counting(1), 5, 2).epoch(1)] == [[0], [0]]


def test_what_a_stream_draws_is_its_own() -> None:
    """The same whatever else is drawn in between, and nothing else notices."""
    given = flow()
    plain = [batch[0] for batch in batches(given, epoch_batches=30).epoch(1)]
    before = torch.get_rng_state()
    disturbed = []
    for batch in batches(given, epoch_batches=30).epoch(1):
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        before = torch.get_rng_state()
        disturbed.append(batch[0])
    assert all(torch.equal(one, other) for one, other in zip(plain, disturbed, strict=True))
    assert not torch.equal(plain[0], next(batches(given, seed=1, epoch_batches=30).epoch(1))[0])
    assert not torch.equal(plain[0], plain[23])  # the second pass has an order of its own


def test_a_stream_trains() -> None:
    objective = on_digits(data=flow, epoch_batches=8, epochs=6)
    recorder = Recorder()
    result = fit(objective, recorder, recipe(objective))
    assert result.outcome is Outcome.COMPLETE
    assert recorder.results[-1].metrics["loss"] < recorder.results[0].metrics["loss"]
    preview = first_batch(made(model=network, data=flow, epoch_batches=8, batch_sizes=(16, 32)), ROOT)
    assert (preview.train, preview.valid) == (8 * 16, HELD_OUT)


def test_a_stream_without_a_length_of_its_epochs_is_refused() -> None:
    with pytest.raises(ObjectiveError, match=r"the train split Flow is an IterableDataset.*epoch_batches"):
        first_batch(made(model=network, data=flow), ROOT)


def test_a_stream_that_gives_nothing_is_said() -> None:
    with pytest.raises(ObjectiveError, match="the train split Counting gave nothing in pass 1"):
        next(stream_of(Counting(0), 5, 4).epoch(1))


# Weighted samples


def test_samples_are_drawn_in_proportion_to_their_weights() -> None:
    count = 2000
    rows = torch.arange(count)
    weights = torch.where(rows % 2 == 0, 3.0, 1.0)
    weights[:100] = 0
    found = batches(Data((rows,), (rows,), weights=weights), 100)
    drawn = [row for batch in taken(found, (1, 2)) for row in batch]
    assert len(drawn) == 2 * count
    assert min(drawn) >= 100
    assert sum(row % 2 == 0 for row in drawn) / len(drawn) == pytest.approx(0.75, abs=0.03)
    again = batches(Data((rows,), (rows,), weights=weights), 100)
    assert taken(found, (2,)) == taken(again, (2,)) != taken(found, (1,))


def test_balanced_classes_are_drawn_equally_often() -> None:
    labels = torch.tensor([3] * 900 + [7] * 90 + [8] * 10)
    weights = balanced(labels)
    assert weights.tolist() == pytest.approx([1 / 900] * 900 + [1 / 90] * 90 + [1 / 10] * 10)
    found = batches(Data((labels,), (labels,), weights=weights), 100)
    classes = torch.cat([batch[0] for batch in found.epoch(1)])
    shares = [float((classes == label).float().mean()) for label in (3, 7, 8)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)


def test_balance_in_a_split_and_in_its_folds_is_of_each_training_part() -> None:
    labels = (torch.arange(100) % 10 == 0).long()
    whole = split(NUMBERS[:100], labels, balance=True)
    for one in (whole, *split(NUMBERS[:100], labels, folds=3, balance=True).folds):
        assert one.weights is not None
        assert torch.equal(one.weights, balanced(one.train[1]))
    assert split(NUMBERS[:100], labels).weights is None


def test_a_training_with_balanced_classes_finds_the_rare_ones() -> None:
    """Digits with hardly any but the ones: their recall goes up when every class is drawn equally often."""
    images, labels = digits()
    kept = (labels == 1) | (torch.arange(len(labels)) % 24 == 0)
    valid = (images[1::6], labels[1::6])

    def rare(weighted: bool) -> float:
        images_kept, labels_kept = images[kept], labels[kept]
        given = Data((images_kept, labels_kept), valid, weights=balanced(labels_kept) if weighted else None)
        objective = on_digits(data=lambda root: given, metric="balanced_accuracy", epochs=4, value="last")
        value = fit(objective, Recorder(), recipe(objective)).value
        assert value is not None
        return value

    assert rare(weighted=True) > rare(weighted=False) + 0.1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(102), r"weights must be a tensor of shape \(103,\).*but got shape \(102,\)"),
        ([1.0] * 103, "but got list"),
        (torch.zeros(103), "not all 0"),
        (-torch.ones(103), "none below 0"),
        (torch.full((103,), float("nan")), "finite"),
    ],
)
def test_weights_that_cannot_be_are_said(weights: Any, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        Data((NUMBERS,), (NUMBERS,), weights=weights)


def test_a_stream_cannot_be_weighted_and_a_float_is_no_class() -> None:
    with pytest.raises(ObjectiveError, match="but the train split is an IterableDataset"):
        Data(Counting(), (NUMBERS,), weights=torch.ones(23))
    with pytest.raises(ObjectiveError, match=r"balanced needs class labels.*got torch\.float32"):
        balanced(torch.rand(3))


# Collate functions and a loader's processes


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_collate_function_makes_the_batches_that_a_task_trains_on(loader_workers: int) -> None:
    plain = data()
    assert isinstance(plain.train, tuple)
    assert isinstance(plain.valid, tuple)
    given = Data(Noisy(*plain.train), Noisy(*plain.valid), collate=as_dict, loader_workers=loader_workers)

    def step(net: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        loss = nn.functional.cross_entropy(net(batch["images"]), batch["labels"], reduction="sum")
        return loss, len(batch["labels"])

    objective = on_digits(
        model=lambda trial: Task(network(), step, lambda net, batch: (net(batch["images"]), batch["labels"])),
        data=lambda root: given,
        loss=None,
        epochs=2,
    )
    recorder = Recorder()
    fit(objective, recorder, recipe(objective))
    assert recorder.results[1].metrics["loss"] < recorder.results[0].metrics["loss"]
    assert recorder.results[0].samples == TRAINED


def test_a_collate_function_makes_the_batches_of_a_stream_too() -> None:
    found = batches(replace(flow(), collate=as_dict), epoch_batches=2)
    assert [{name: len(tensor) for name, tensor in batch.items()} for batch in found.epoch(1)] == [
        {"images": 10, "labels": 10}
    ] * 2


def test_a_collate_function_for_tensors_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="collate is for the items of a Dataset, but both splits are tensors"):
        Data((NUMBERS,), (NUMBERS,), collate=as_dict)


def test_each_process_of_a_loader_draws_its_own_numbers_in_each_epoch_the_same_each_time() -> None:
    """From torch's, NumPy's and Python's global generators, as transforms do."""

    def drawn(seed: int, epoch: int) -> tuple[Tensor, int]:
        given = Data(Drawing(), Drawing(), loader_workers=2)
        found = list(batches(given, 4, seed).epoch(epoch))
        order = torch.cat([rows for rows, _, _ in found]).argsort()
        in_order = torch.cat([numbers for _, numbers, _ in found])[order]
        return in_order, len({int(process) for *_, processes in found for process in processes})

    first, processes = drawn(0, 1)
    assert processes == 2
    again, next_epoch, other_seed = drawn(0, 1)[0], drawn(0, 2)[0], drawn(1, 1)[0]
    assert torch.equal(first, again)
    for one, other in pairwise((first, next_epoch, other_seed, first)):
        assert not bool((one == other).any())
    for generator in range(3):
        assert len(first[:, generator].unique()) == 24, "two processes drew the same numbers"
