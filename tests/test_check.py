"""A mistake in an objective is one clear line before any trial is spent; `check` goes on where it can."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn

from search import check as check_module
from search.check import CheckLine, check, duration, first_batch
from search.data import Data
from search.datasets import DataMissing
from search.errors import ObjectiveError
from search.failures import RaisedError
from search.loading import LoadedObjective, resolve
from search.objective import Objective, Task
from search.optimizers import Optimizer
from search.preview import build_task, shapes, spread
from search.schedules import Schedule

ROOT = Path("data")


def two_classes(samples: int = 40) -> Data:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    return Data((inputs, targets), (inputs, targets))


def linear(trial: Any) -> nn.Module:
    return nn.Linear(3, 2)


def made(**changes: Any) -> LoadedObjective:
    """A working objective with these arguments changed, as if loaded from this file."""
    arguments: dict[str, Any] = {
        "model": linear,
        "data": lambda root: two_classes(),
        "loss": nn.CrossEntropyLoss(),
        "batch_sizes": (4, 8),
        "epochs": 3,
        "optimizers": ("adam", "momentum"),
        "schedules": ("constant", "onecycle"),
    }
    objective = Objective(**{**arguments, **changes})
    return LoadedObjective("made", "made", objective, "", Path(__file__).resolve())


def complaint(**changes: Any) -> str:
    """The one line that is said of an objective with these arguments."""
    with pytest.raises(ObjectiveError) as caught:
        first_batch(made(**changes), ROOT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def raising(error: BaseException) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


class Fixed:
    """A metric that computes what it was given."""

    higher_is_better = True

    def __init__(self, value: Any) -> None:
        self.value = value

    def update(self, outputs: Tensor, targets: Tensor, /) -> None: ...

    def compute(self) -> Any:
        return self.value

    def reset(self) -> None: ...


class TestFirstBatch:
    def test_digits_shows_what_it_is(self) -> None:
        preview = first_batch(resolve("digits"), ROOT)
        assert preview.train + preview.valid <= 1797
        assert preview.parameters > 1000
        assert 1.5 < preview.loss < 5.0
        assert list(preview.metrics) == ["accuracy"]
        assert 0.0 <= preview.value <= 0.5

    def test_all_metrics_are_shown_with_the_searched_one_first(self) -> None:
        preview = first_batch(made(metric=("loss", "accuracy")), ROOT)
        assert list(preview.metrics) == ["loss", "accuracy"]
        assert preview.value == preview.metrics["loss"]
        assert preview.parameters == 8

    def test_the_data_root_is_handed_on(self) -> None:
        roots = []

        def data(root: Path) -> Data:
            roots.append(root)
            return two_classes()

        first_batch(made(data=data), ROOT)
        assert roots == [ROOT]

    def test_the_same_model_is_built_every_time(self) -> None:
        def model(trial: optuna.Trial) -> nn.Module:
            return nn.Linear(3, trial.suggest_int("width", 1, 99))

        first, second = (build_task(made(model=model)).net.weight for _ in range(2))
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        assert torch.equal(first, second)

    def test_optuna_logs_no_study(self, caplog: pytest.LogCaptureFixture) -> None:
        optuna.logging.enable_propagation()
        try:
            first_batch(made(), ROOT)
        finally:
            optuna.logging.disable_propagation()
        assert caplog.text == ""

    def test_a_big_validation_split_is_not_evaluated_whole(self) -> None:
        seen = []

        class Counting(Fixed):
            def update(self, outputs: Tensor, targets: Tensor, /) -> None:
                seen.append(len(targets))

        first_batch(made(data=lambda root: two_classes(5000), metric=Counting(1.0)), ROOT)
        assert sum(seen) == 256

    def test_samples_come_from_all_over_a_split(self) -> None:
        (rows,) = spread((torch.arange(1_000_001),), 5)  # type: ignore[misc]
        assert rows.tolist() == [0, 250_000, 500_000, 750_000, 1_000_000]

    def test_a_metric_that_a_few_samples_do_not_suffice_for_gets_all(self) -> None:
        targets = torch.zeros(5000, dtype=torch.long)
        targets[1] = 1
        rows = (torch.randn(5000, 3), targets)
        assert 0.0 <= first_batch(made(data=lambda root: Data(rows, rows), metric="auroc"), ROOT).value <= 1.0

    def test_a_dataset_and_a_task_of_ones_own(self) -> None:
        class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
            def __len__(self) -> int:
                return 300

            def __getitem__(self, index: int) -> dict[str, Tensor]:
                return {"x": torch.full((3,), float(index)) / 300, "y": torch.tensor(index % 2)}

        def model(trial: Any) -> Task:
            def predict(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
                return net(batch["x"]), batch["y"]

            def step(net: nn.Module, batch: Any) -> tuple[Tensor, int]:
                return nn.functional.cross_entropy(*predict(net, batch), reduction="sum"), len(batch["y"])

            return Task(nn.Linear(3, 2), step, predict)

        preview = first_batch(made(model=model, loss=None, data=lambda root: Data(Rows(), Rows())), ROOT)
        assert (preview.train, preview.valid) == (300, 300)
        assert preview.loss == pytest.approx(math.log(2), abs=0.4)


class TestDataIsWrong:
    def test_it_raises(self) -> None:
        said = complaint(data=raising(KeyError("pixels")))
        assert "test_check.py:" in said
        assert said.endswith(": data(): KeyError: 'pixels'")

    def test_it_is_not_a_data(self) -> None:
        assert complaint(data=lambda root: None).startswith("data() must return a Data, but returned nothing")
        assert "returned a tuple" in complaint(data=lambda root: (1, 2))

    def test_it_is_empty_and_the_place_is_named(self) -> None:
        said = complaint(data=lambda root: Data((torch.ones(0, 3), torch.ones(0)), (torch.ones(0),)))
        assert said.endswith("the train split is empty")
        assert "test_check.py:" in said

    def test_missing_files_are_not_the_objectives_mistake(self) -> None:
        missing = DataMissing("no mnist: get it with: curl")
        with pytest.raises(DataMissing) as caught:
            first_batch(made(data=raising(missing)), ROOT)
        assert caught.value is missing

    def test_samples_that_make_no_batch(self) -> None:
        class Ragged(torch.utils.data.Dataset[Tensor]):
            def __len__(self) -> int:
                return 8

            def __getitem__(self, index: int) -> Tensor:
                return torch.zeros(index + 1)

        said = complaint(data=lambda root: Data(Ragged(), Ragged()))
        assert said.startswith("the first training batch: RuntimeError: stack expects each tensor")


class TestTheModelIsWrong:
    def test_it_raises(self) -> None:
        assert complaint(model=raising(ZeroDivisionError("no width"))).endswith(
            ": model(): ZeroDivisionError: no width"
        )
        assert complaint(model=raising(SystemExit(3))).endswith(": model(): SystemExit: 3")

    def test_it_is_no_network(self) -> None:
        assert "must return a torch.nn.Module or a Task, but returned int" in complaint(model=lambda trial: 3)

    def test_it_refuses_every_trial(self) -> None:
        assert complaint(model=raising(optuna.TrialPruned())).startswith("model() refused 8 random trials")

    def test_it_may_refuse_some_trials(self) -> None:
        def model(trial: optuna.Trial) -> nn.Module:
            if trial.number < 3:
                raise optuna.TrialPruned
            return linear(trial)

        assert first_batch(made(model=model), ROOT).parameters == 8

    def test_it_takes_a_name_of_the_recipes(self) -> None:
        def model(trial: optuna.Trial) -> nn.Module:
            trial.suggest_float("warmup", 0.0, 0.5)
            return linear(trial)

        assert "the model suggests 'warmup', a name of the recipe's own" in complaint(model=model)

    def test_it_does_not_take_the_inputs(self) -> None:
        said = complaint(model=lambda trial: nn.Linear(7, 2))
        assert said.startswith("the model on a batch of float32 (4, 3) and int64 (4,): RuntimeError: ")
        assert "shapes cannot be multiplied (4x3 and 7x2)" in said

    def test_it_has_nothing_to_train(self) -> None:
        def model(trial: Any) -> nn.Module:
            return nn.Linear(3, 2).requires_grad_(False)

        assert "no parameter of the network requires a gradient" in complaint(model=model)

    def test_its_step_returns_something_else(self) -> None:
        def model(trial: Any) -> Task:
            return Task(nn.Linear(3, 2), lambda net, batch: net(batch[0]).sum(), lambda net, batch: batch)

        said = complaint(model=model, loss=None)
        assert said == "step must return (sum of losses, weight), but returned a Tensor"

    def test_its_predict_returns_something_else(self) -> None:
        def model(trial: Any) -> Task:
            return Task(nn.Linear(3, 2), lambda net, batch: (net(batch[0]).sum(), 4), lambda net, batch: batch[0])

        said = complaint(model=model, loss=None)
        assert said == "predict must return (outputs, targets), but returned a Tensor"


class TestTheLossIsWrong:
    def test_the_output_does_not_fit_it(self) -> None:
        def data(root: Path) -> Data:
            rows = (torch.zeros(8, 3), torch.zeros(8, 5))
            return Data(rows, rows)

        said = complaint(data=data)
        assert said.startswith("the loss of outputs float32 (4, 2), targets float32 (4, 5): ")

    def test_a_class_number_is_out_of_range(self) -> None:
        def data(root: Path) -> Data:
            rows = (torch.zeros(8, 3), torch.full((8,), 2))
            return Data(rows, rows)

        said = complaint(data=data)
        assert "the loss of outputs float32 (4, 2), targets int64 (4,): IndexError: Target 2 is out" in said

    @pytest.mark.parametrize(
        ("data", "loss", "why"),
        [
            (math.nan, nn.CrossEntropyLoss(), "the inputs already hold nan or infinity"),
            (0.0, lambda outputs, targets: outputs.mean() / 0.0, "so look at the loss and the targets"),
        ],
    )
    def test_the_first_loss_is_not_finite(self, data: float, loss: Any, why: str) -> None:
        rows = (torch.full((8, 3), data), torch.zeros(8, dtype=torch.long))
        said = complaint(data=lambda root: Data(rows, rows), loss=loss)
        assert said.startswith("the first loss is ")
        assert said.endswith(why)

    def test_the_network_itself_makes_it_infinite(self) -> None:
        class Exploding(nn.Linear):
            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(inputs) * math.inf

        assert complaint(model=lambda trial: Exploding(3, 2)).endswith("outputs already hold nan or infinity")

    def test_it_has_no_gradient(self) -> None:
        said = complaint(loss=lambda outputs, targets: outputs.detach().mean())
        assert said.startswith("the first step: RuntimeError: element 0 of tensors does not require grad")

    def test_it_raises_in_a_persons_code(self) -> None:
        with pytest.raises(RaisedError) as caught:
            first_batch(made(loss=raising(ValueError("no such class"))), ROOT)
        assert "test_check.py:" in str(caught.value)
        assert str(caught.value).endswith("targets int64 (4,): ValueError: no such class")
        assert "in fails" in caught.value.frames
        assert "search/objective.py" not in caught.value.frames


class TestAMetricIsWrong:
    def test_it_is_no_number(self) -> None:
        assert complaint(metric=Fixed("good")) == "metric 'fixed' must compute one number, but got 'good'"
        assert "a tensor of shape (3,)" in complaint(metric=Fixed(torch.zeros(3)))

    def test_it_is_nan(self) -> None:
        assert complaint(metric=Fixed(math.nan)).startswith("metric 'fixed' is no number (nan) on 40")

    def test_it_raises(self) -> None:
        class Broken(Fixed):
            update = raising(TypeError("wants strings"))

        assert complaint(metric=Broken(1.0)).endswith(": evaluation: TypeError: wants strings")


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


def test_a_batch_of_any_structure_is_described() -> None:
    batch = {"x": [torch.zeros(2, 3), torch.zeros(2, dtype=torch.uint8)], "names": ["a", "b"]}
    assert shapes(batch) == "x: float32 (2, 3) and uint8 (2,), names: str and str"
    assert shapes(torch.zeros(())) == "float32 ()"


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


def test_what_was_loaded_is_left_as_it_was() -> None:
    loaded = made()
    before = replace(loaded)
    first_batch(loaded, ROOT)
    assert loaded == before
