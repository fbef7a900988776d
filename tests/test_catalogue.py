"""The built-in objectives on images and text: files in their own formats, what a network sees, what rests."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial
from studies import Inside
from torch import Tensor
from torchvision.models import resnet18
from training_helpers import Recorder, first_recipe, fit

from objectives import adult, cifar10, housing, shakespeare, transfer
from search.data import Data
from search.datasets import DataCorrupt, DataMissing
from search.steps import rest_frozen_norms


def fixed(**knobs: Any) -> Any:
    return FixedTrial(knobs)


def tensors(part: Any) -> tuple[Tensor, ...]:
    assert isinstance(part, tuple)
    return part


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def records(count: int, first: int = 0) -> bytes:
    """CIFAR-10's binary version: a class, then 1,024 red, green and blue bytes; here class k is all of one colour."""
    written = b""
    for number in range(first, first + count):
        kind = number % 10
        written += struct.pack("B", kind) + b"".join(bytes([20 * kind + channel]) * 1024 for channel in range(3))
    return written


class TestCifar10:
    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Files of the real size. (The folder of a class's fixture is kept until pytest's end: 184 MB.)"""
        root = tmp_path_factory.mktemp("data")
        folder = root / cifar10.FOLDER
        folder.mkdir()
        ten = records(10)
        for name in (*cifar10.TRAIN, cifar10.TEST):
            (folder / name).write_bytes(ten * (cifar10.RECORDS // 10))
        return root

    def test_a_record_is_a_class_and_three_planes(self, tmp_path: Path) -> None:
        image = np.arange(3072, dtype=np.int64) % 251
        (tmp_path / "batch.bin").write_bytes(bytes([7, *image.tolist(), *records(1)]))
        images, classes = cifar10.images_and_classes(tmp_path / "batch.bin", records=2)
        assert (images.dtype, images.shape, classes.tolist()) == (torch.uint8, (2, 3, 32, 32), [7, 0])
        # Channel, row, column: the last one runs fastest.
        assert images[0, 1, 2, 3] == (1024 + 2 * 32 + 3) % 251
        assert images[1].flatten(1).tolist() == [[channel] * 1024 for channel in range(3)]

    def test_the_official_images_are_split(self, root: Path) -> None:
        data = cifar10.data(root)
        parts = [tensors(part) for part in (data.train, data.valid, data.test)]
        assert [len(images) for images, _ in parts] == [45_000, 5_000, 10_000]
        for images, classes in parts:
            assert images.dtype == torch.uint8
            assert classes.bincount().tolist() == [len(classes) // 10] * 10
            assert torch.equal(images[:, 0, 0, 0], (20 * classes).to(torch.uint8))

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda content: content[:-1], "bytes, not 30730"),
            (lambda content: content[:-3073], "bytes, not 30730"),
            (lambda content: b"", "0 bytes"),
            (lambda content: b"\x0b" + content[1:], "a class is 11"),
        ],
    )
    def test_a_damaged_file_is_said_in_one_line(
        self, tmp_path: Path, damage: Callable[[bytes], bytes], told: str
    ) -> None:
        path = tmp_path / "data_batch_1.bin"
        path.write_bytes(damage(records(10)))
        with pytest.raises(DataCorrupt, match=told) as error:
            cifar10.images_and_classes(path, records=10)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_truncated_batch_ends_a_command_with_a_line(self, tmp_path: Path, inside: Inside) -> None:
        folder = tmp_path / "data" / cifar10.FOLDER
        folder.mkdir(parents=True)
        for name in (*cifar10.TRAIN, cifar10.TEST):
            (folder / name).write_bytes(records(3))
        ended = inside("run", "cifar10", "--data", "data")
        assert ended.status == 2
        assert "corrupt file" in ended.err
        assert ended.err.count("\n") == 1

    def test_images_are_normalised_by_the_published_numbers(self) -> None:
        mean = (torch.tensor(cifar10.MEAN) * 255).round().to(torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
        assert cifar10.normalised(mean).abs().max() < 0.01
        assert cifar10.normalised(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).amax() == pytest.approx(2.126, 0.01)

    def test_a_crop_is_the_image_shifted_by_up_to_four_pixels_and_perhaps_mirrored(self) -> None:
        count = 400
        image = torch.arange(32 * 32, dtype=torch.float32).view(1, 1, 32, 32).expand(count, 3, 32, 32)
        cropped = cifar10.crop_and_flip(image, seeded())
        assert cropped.shape == image.shape
        found = set()
        for number in range(count):
            one = cropped[number, 0, 8:24, 8:24]  # what no gap can reach
            mirrored = bool(one[0, 1] < one[0, 0])
            row, column = divmod(int(one[0, -1] if mirrored else one[0, 0]), 32)
            plain = image[0, 0, row : row + 16, column : column + 16]
            assert torch.equal(one.flip(1) if mirrored else one, plain)
            found.add((row - 8, column - 8, mirrored))
        shifts = range(-4, 5)
        assert {row for row, _, _ in found} == {column for _, column, _ in found} == {*shifts}
        assert {mirrored for *_, mirrored in found} == {False, True}
        assert len(found) > 120  # of 162

    def test_the_gap_of_a_crop_is_filled_with_the_image_itself(self) -> None:
        images = 1 + torch.rand(50, 3, 32, 32, generator=seeded())
        assert cifar10.crop_and_flip(images, seeded()).amin() >= 1

    def test_the_augmentation_is_its_generators(self) -> None:
        images = torch.rand(20, 3, 32, 32, generator=seeded())
        one, again, other = (cifar10.crop_and_flip(images, seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

    def test_the_stem_keeps_the_pixels(self) -> None:
        net: Any = cifar10.model(fixed(dropout=0.1, zero_init_residual=True)).eval()
        images = torch.zeros(2, 3, 32, 32)
        assert net.maxpool(net.relu(net.bn1(net.conv1(images)))).shape == (2, 64, 32, 32)
        assert net(images).shape == (2, 10)
        # github.com/kuangliu/pytorch-cifar: its ResNet-18 has 11,173,962.
        assert sum(parameter.numel() for parameter in net.parameters()) == 11_173_962

    def test_it_is_learned_from_files_in_its_format(self, root: Path) -> None:
        whole = cifar10.data(root)
        few = [
            tuple(tensor[:count] for tensor in tensors(part)) for part, count in ((whole.train, 32), (whole.valid, 20))
        ]
        objective = replace(
            cifar10.objective, data=lambda _: replace(whole, train=few[0], valid=few[1]), epochs=3, batch_sizes=(8,)
        )
        recipe = first_recipe(objective)
        result = fit(objective, Recorder(), recipe, dropout=0.0, zero_init_residual=False)
        assert result.value is not None
        assert result.value > 0.3


class TestShakespeare:
    KNOBS = (("width", 64), ("depth", 2), ("heads", 2), ("dropout", 0.0))

    def text(self, root: Path, text: bytes) -> Path:
        path = root / "text" / "tinyshakespeare.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        return path

    def test_a_later_character_changes_no_earlier_logit(self) -> None:
        torch.manual_seed(0)
        net = shakespeare.model(fixed(**dict(self.KNOBS))).net.eval()
        text = torch.randint(65, (1, 64), generator=seeded())
        before = net(text)
        for place in (1, 20, 63):
            changed = text.clone()
            changed[0, place] = (text[0, place] + 1) % 65
            after = net(changed)
            assert torch.equal(after[:, :place], before[:, :place])
            assert not torch.allclose(after[:, place:], before[:, place:])

    def test_the_order_of_what_was_read_matters(self) -> None:
        torch.manual_seed(0)
        # Of one layer: in a second one, what a character is also says which came before it.
        net = shakespeare.Transformer(width=64, depth=1, heads=2, dropout=0.0).eval()
        one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])
        assert (net(one) - net(other))[:, -1].abs().max() > 1e-5

    def test_an_untrained_network_knows_nothing_and_its_loss_is_in_nats_a_character(self) -> None:
        task = shakespeare.model(fixed(**dict(self.KNOBS)))
        total, count = task.step(task.net, (torch.randint(65, (8, 65), generator=seeded()),))
        assert count == 8 * 64
        assert total.item() / count == pytest.approx(np.log(65), rel=0.02)

    def test_windows_begin_anywhere_as_the_generator_says(self) -> None:
        stretches = torch.arange(1000)[:, None] + torch.arange(128)
        one, again, other = (shakespeare.from_anywhere(stretches, seeded(seed)) for seed in (1, 1, 2))
        assert one.shape == (1000, 65)
        assert (one.diff(dim=1) == 1).all()
        assert {*(one[:, 0] - stretches[:, 0]).tolist()} == {*range(64)}
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

    def test_the_three_parts_are_stretches_of_the_text_in_their_order(self, tmp_path: Path) -> None:
        self.text(tmp_path, b"a" * 9000 + b"b" * 500 + b"c" * 500)
        data = shakespeare.data(tmp_path)
        found = [
            "".join(shakespeare.ALPHABET[i] for i in tensors(part)[0].unique())
            for part in (data.train, data.valid, data.test)
        ]
        assert found == ["a", "b", "c"]
        assert [tensors(part)[0].shape[1] for part in (data.train, data.valid, data.test)] == [128, 65, 65]

    @pytest.mark.parametrize("text", [b"", b"To be", "Être".encode() * 9999, b"\x00" * 9999])
    def test_another_text_is_said_in_one_line(self, tmp_path: Path, text: bytes) -> None:
        path = self.text(tmp_path, text)
        with pytest.raises(DataCorrupt, match="corrupt file") as error:
            shakespeare.data(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_real_text_is_split_as_nanogpt_does(self, shared_data: Path) -> None:
        data = shakespeare.data(shared_data)
        text = (shared_data / "text" / "tinyshakespeare.txt").read_text()
        first = "".join(shakespeare.ALPHABET[i] for i in tensors(data.train)[0][0])
        held_out = "".join(shakespeare.ALPHABET[i] for i in tensors(data.valid)[0][0])
        assert text.startswith(first)
        assert text[int(0.9 * len(text)) :].startswith(held_out)
        assert {*text} == {*shakespeare.ALPHABET}


class TestTransfer:
    KNOBS = (("rest", 2), ("backbone_lr_scale", 0.1), ("dropout", 0.0))

    @pytest.fixture
    def weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file of weights (made here, not ImageNet's) where torchvision would put it."""
        monkeypatch.setenv("DIALIN_DATA", str(tmp_path))
        path = tmp_path / "hub" / "checkpoints" / transfer.FILE
        path.parent.mkdir(parents=True)
        torch.manual_seed(7)
        torch.save(resnet18().state_dict(), path)
        return path

    def batch(self) -> tuple[Tensor, Tensor]:
        return torch.rand(4, 3, 64, 64, generator=seeded()), torch.tensor([0, 1, 2, 3])

    def state(self, net: Any) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}

    def test_weights_at_hand_are_used(self, weights: Path) -> None:
        stored = torch.load(weights, weights_only=True)
        net = transfer.model(fixed(**dict(self.KNOBS))).net
        assert all(torch.equal(tensor, stored[name]) for name, tensor in self.state(net).items())

    def test_without_weights_it_is_trained_from_scratch_and_says_so_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("DIALIN_DATA", str(tmp_path))
        with caplog.at_level(logging.WARNING):
            tasks = [transfer.model(fixed(**dict(self.KNOBS))) for _ in range(2)]
        (line,) = caplog.messages
        assert f"no {transfer.FILE} in hub/checkpoints of {tmp_path}" in line
        assert "from scratch" in line
        net: Any = tasks[0].net
        before = self.state(net)
        self.train(tasks[0], 1)
        assert not all(torch.equal(tensor, before[name]) for name, tensor in self.state(net).items())

    def train(self, task: Any, batches: int) -> None:
        groups = task.parameters(task.net)
        optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.1)
        task.net.train()
        rest_frozen_norms(task.net)
        for _ in range(batches):
            total, weight = task.step(task.net, self.batch())
            optimizer.zero_grad()
            (total / weight).backward()
            optimizer.step()

    def test_the_backbone_rests_until_the_head_has_learned_then_learns_along(self, weights: Path) -> None:
        task = transfer.model(fixed(**dict(self.KNOBS)))
        net: Any = task.net
        before, head = self.state(net), [parameter.clone() for parameter in net.head.parameters()]
        self.train(task, 2)
        assert all(torch.equal(tensor, before[name]) for name, tensor in self.state(net).items())
        assert not any(map(torch.equal, net.head.parameters(), head))
        self.train(task, 1)
        after = self.state(net)
        assert not torch.equal(after["layer4.1.conv2.weight"], before["layer4.1.conv2.weight"])
        assert not torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])

    def test_a_trial_that_goes_on_does_not_rest_again(self, weights: Path) -> None:
        task, fresh = (transfer.model(fixed(**dict(self.KNOBS))) for _ in range(2))
        self.train(task, 3)
        fresh.net.load_state_dict(task.net.state_dict())
        before = self.state(fresh.net)
        self.train(fresh, 1)
        assert not torch.equal(self.state(fresh.net)["conv1.weight"], before["conv1.weight"])

    def test_evaluation_neither_counts_nor_trains(self, weights: Path) -> None:
        net: Any = transfer.model(fixed(**dict(self.KNOBS))).net.eval()
        with torch.inference_mode():
            assert torch.equal(net(self.batch()[0]), net(self.batch()[0]))
        assert int(net.batches) == 0

    def test_the_backbone_has_a_rate_of_its_own(self, weights: Path) -> None:
        task = transfer.model(fixed(**dict(self.KNOBS)))
        assert task.parameters is not None
        groups = task.parameters(task.net)
        assert [group.get("lr_scale", 1.0) for group in groups] == [1.0, 0.1]
        assert sum(len(group["params"]) for group in groups) == len([*task.net.parameters()])

    @pytest.mark.parametrize("content", [b"", b"no weights", None])
    def test_damaged_weights_are_said_in_one_line(self, weights: Path, content: bytes | None) -> None:
        if content is None:
            torch.save({"fc.weight": torch.zeros(1)}, weights)
        else:
            weights.write_bytes(content)
        with pytest.raises(DataCorrupt, match="holds no ResNet-18") as error:
            transfer.model(fixed(**dict(self.KNOBS)))
        assert "\n" not in str(error.value)

    def test_images_are_as_the_backbone_knows_them(self) -> None:
        images = transfer.as_imagenet(torch.full((2, 1, 28, 28), 255, dtype=torch.uint8))
        assert images.shape == (2, 3, 64, 64)
        # A white pixel, (1 - mean) / spread: torchvision's Normalize of the same weights.
        assert images[0, :, 5, 5].tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)

    def test_few_images_train_and_the_official_ones_test(self, shared_data: Path) -> None:
        data = transfer.data(shared_data)
        parts = [tensors(part) for part in (data.train, data.valid, data.test)]
        assert [len(images) for images, _ in parts] == [2000, 1000, 10_000]
        assert parts[0][1].bincount().tolist() == [200] * 10


@pytest.mark.parametrize("module", [adult, cifar10, housing, shakespeare, transfer])
def test_missing_data_is_said_in_one_line_that_ends_in_a_command(module: Any, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"get it with: (curl|mkdir|python)") as error:
        module.data(tmp_path)
    assert "\n" not in str(error.value)


SEARCHES = [("adult", "accuracy", 0.8), ("housing", "rmse", 90_000)]


@pytest.mark.parametrize(("name", "metric", "good"), SEARCHES)
def test_a_short_search_of_real_data(
    inside: Inside, shared_data: Path, sqlite_url: str, name: str, metric: str, good: float
) -> None:
    # Two workers, so that each has one thread: threads that wait for each other on a busy machine take minutes.
    size = ("--trials", 2, "--epochs", 2, "--workers", 2)
    ended = inside("run", name, *size, "--data", shared_data, "--storage", sqlite_url)
    assert ended.status == 0, ended.err
    told = inside("best", "--format", "json", "--storage", sqlite_url).out
    assert f'"metric": "{metric}"' in told
    value = float(told.split('"value": ')[1].split(",")[0])
    assert value > good if good < 1 else value < good


def test_a_few_steps_of_real_text_are_learned(shared_data: Path) -> None:
    whole: Data = shakespeare.data(shared_data)
    part = replace(whole, train=(tensors(whole.train)[0][::10],), valid=(tensors(whole.valid)[0][::10],))
    objective = replace(shakespeare.objective, data=lambda _: part, epochs=1)
    result = fit(objective, Recorder(), first_recipe(objective), width=64, depth=2, heads=2, dropout=0.0)
    assert result.value is not None
    assert result.value < 3.2  # the frequencies of single characters come to 3.3
