"""A mistake in an objective is one clear line before any trial is spent."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from made_objectives import ROOT, linear, made, raising, two_classes
from torch import Tensor, nn

from search.data import Data
from search.datasets import DataMissing
from search.errors import ObjectiveError
from search.failures import RaisedError
from search.loading import resolve
from search.objective import Task
from search.preview import build_task, first_batch, shapes, spread


def complaint(**changes: Any) -> str:
    """The one line that is said of an objective with these arguments."""
    with pytest.raises(ObjectiveError) as caught:
        first_batch(made(**changes), ROOT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        assert 0.0 <= preview.metrics["accuracy"] <= 0.5

    def test_all_metrics_are_shown_with_the_searched_one_first(self) -> None:
        preview = first_batch(made(metric=("loss", "accuracy")), ROOT)
        assert list(preview.metrics) == ["loss", "accuracy"]
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
        assert (
            0.0 <= first_batch(made(data=lambda root: Data(rows, rows), metric="auroc"), ROOT).metrics["auroc"] <= 1.0
        )

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
        assert "made_objectives.py:" in said
        assert said.endswith(": data(): KeyError: 'pixels'")

    def test_it_is_not_a_data(self) -> None:
        assert complaint(data=lambda root: None).startswith("data() must return a Data, but returned nothing")
        assert "returned a tuple" in complaint(data=lambda root: (1, 2))

    def test_it_is_empty_and_the_place_is_named(self) -> None:
        said = complaint(data=lambda root: Data((torch.ones(0, 3), torch.ones(0)), (torch.ones(0),)))
        assert said.endswith("the train split is empty")
        assert "test_preview.py:" in said

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
        assert "made_objectives.py:" in str(caught.value)
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


def test_a_batch_of_any_structure_is_described() -> None:
    batch = {"x": [torch.zeros(2, 3), torch.zeros(2, dtype=torch.uint8)], "names": ["a", "b"]}
    assert shapes(batch) == "x: float32 (2, 3) and uint8 (2,), names: str and str"
    assert shapes(torch.zeros(())) == "float32 ()"


def test_what_was_loaded_is_left_as_it_was() -> None:
    loaded = made()
    before = replace(loaded)
    first_batch(loaded, ROOT)
    assert loaded == before
