"""What an author writes: the simple door in under 30 lines, a Task, and mistakes said in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn
from training_helpers import Recorder, fit

import search
from search.data import Data, split
from search.errors import ObjectiveError
from search.metrics import Accuracy, NamedMetric
from search.objective import Objective, Task, supervised
from search.optimizers import OPTIMIZERS
from search.schedules import SCHEDULES
from storage.outcomes import Outcome

SIMPLE = '''"""Which side of a line a point is on."""
import torch
from torch import nn

from search import Objective, split


def model(trial):
    width = trial.suggest_int("width", 4, 16)
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))


def data(root):
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    return split(points, (points.sum(1) > 0).long(), valid=0.25, stratify=True)


objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), metric="accuracy", epochs=4)
'''

TASK = '''"""Two views of a point, in a dict, with a loss on each and a frozen first layer."""
import torch
from torch import nn
from torch.utils.data import Dataset

from search import Data, Objective, Task


class Views(Dataset):
    def __init__(self, count):
        self.points = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        point = self.points[index]
        return {"views": (point, -point), "side": (point.sum() > 0).long()}


def step(net, batch):
    loss = nn.CrossEntropyLoss(reduction="sum")
    first, second = batch["views"]
    return loss(net(first), batch["side"]) + loss(net(second), 1 - batch["side"]), 2 * len(first)


def predict(net, batch):
    return net(batch["views"][0]), batch["side"]


def noise(batch, generator):
    first, second = batch["views"]
    return batch | {"views": (first + 0.01 * torch.randn(first.shape, generator=generator), second)}


def groups(net):
    net[0].requires_grad_(False)
    return [{"params": net[2].parameters(), "lr_scale": 0.5}]


def model(trial):
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    return Task(net, step, predict, augment=noise, parameters=groups)


def data(root):
    return Data(Views(300), Views(101))


objective = Objective(model=model, data=data, metric=("accuracy", "loss"), epochs=8, batch_sizes=(16,))
'''


def written(source: str) -> Objective:
    module: dict[str, Any] = {"__name__": "written"}
    exec(compile(source, "written.py", "exec"), module)
    objective: Objective = module["objective"]
    return objective


def test_the_simple_door_is_under_30_lines_with_its_network() -> None:
    assert len(SIMPLE.splitlines()) < 30
    objective = written(SIMPLE)
    assert objective.description == "Which side of a line a point is on."
    recorder = Recorder()
    result = fit(objective, recorder, width=8)
    assert result.outcome is Outcome.COMPLETE
    assert result.value is not None
    assert result.value > 0.9
    assert [set(epoch.metrics) for epoch in recorder.results] == [{"accuracy", "train_loss", "lr"}] * 4


def test_a_task_trains_on_batches_of_its_own_structure() -> None:
    objective = written(TASK)
    recorder = Recorder()
    result = fit(objective, recorder)
    assert result.value is not None
    assert result.value > 0.9
    assert recorder.results[-1].metrics["loss"] < recorder.results[0].metrics["loss"]
    assert result.weights is not None
    torch.manual_seed(0)
    untrained = objective.task(optuna.trial.FixedTrial({})).net.state_dict()
    assert torch.equal(result.weights["0.weight"], untrained["0.weight"])
    assert not torch.equal(result.weights["2.weight"], untrained["2.weight"])


def test_all_optimizers_and_schedules_are_searched_by_default() -> None:
    objective = written(SIMPLE)
    assert objective.optimizers == tuple(OPTIMIZERS)
    assert objective.schedules == tuple(SCHEDULES)


def no_model(trial: optuna.trial.Trial) -> nn.Module:
    """A model that is never made."""
    raise AssertionError


def no_data(root: Path) -> Data:
    raise AssertionError


def made(**arguments: Any) -> Objective:
    return Objective(**{"model": no_model, "data": no_data, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model must be a function, but got 3"),
        ({"data": None}, "data must be a function, but got None"),
        ({"loss": "mse"}, "loss must be a function of .outputs, targets., but got 'mse'"),
        ({"loss": nn.MSELoss(reduction="sum")}, "its reduction is 'sum'"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, but got 0"),
        ({"epochs": 2.5}, "epochs must be an integer of at least 1, but got 2.5"),
        ({"trials": -1}, "trials must be an integer of at least 1, but got -1"),
        ({"patience": 0}, "patience must be an integer of at least 1, but got 0"),
        ({"batch_sizes": ()}, r"batch_sizes must be a tuple of at least one, but got \(\)"),
        ({"batch_sizes": (32, 0)}, "each of batch_sizes must be an integer of at least 1, but got 0"),
        ({"batch_sizes": (32, 32)}, "batch_sizes must be different"),
        ({"optimizers": ("adamm",)}, "'adamm'.*adamw"),
        ({"schedules": "cosine"}, "schedules must be a tuple of at least one, but got 'cosine'"),
        ({"schedules": ("cosin",)}, "'cosin'.*cosine"),
        ({"metric": "accurate"}, "but got 'accurate'"),
        ({"metric": ()}, "metric must name at least one"),
        ({"metric": ("accuracy", "accuracy")}, "two metrics have one name"),
        ({"direction": "minimize"}, "'accuracy' is to maximize"),
        ({"loss": nn.MSELoss}, r"loss must be an object, but got the class: write loss=nn.MSELoss\(\)"),
        ({"value": "final"}, "value must be one of 'best', 'last', but got 'final'"),
        ({"precision": "fp8"}, "precision must be one of 'float32', 'bf16', 'fp16', but got 'fp8'"),
        ({"clip_norm": 0}, "clip_norm must be a number above 0, but got 0"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, but got 0"),
        ({"ema": 1.0}, "ema must be a number between 0 and 1, but got 1.0"),
        ({"epoch_batches": 2.5}, "epoch_batches must be an integer of at least 1, but got 2.5"),
        ({"parameters": [{}]}, "parameters must be a function of the network, but got"),
        ({"batch_size": 32}, "Objective has no argument 'batch_size': did you mean 'batch_sizes'"),
        ({"xyz": 1}, "Objective has no argument 'xyz': it has model, data, loss, "),
        ({"metrics": "accuracy"}, "Objective has no argument 'metrics': did you mean 'metric'"),
    ],
)
def test_a_mistake_is_said_in_one_line_with_what_was_given(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message) as error:
        made(**arguments)
    assert "\n" not in str(error.value)


def test_the_first_metric_is_searched_and_the_direction_is_its() -> None:
    objective = made(metric=["loss", NamedMetric("top", "maximize", Accuracy()), "error"])
    assert [named.name for named in objective.metrics] == ["loss", "top", "error"]
    assert objective.searched.direction == "minimize"


def test_metrics_are_fresh_at_each_call() -> None:
    objective = made(metric=("accuracy", NamedMetric("mine", "maximize", Accuracy())))
    for first, second in zip(objective.metrics, objective.metrics, strict=True):
        assert first.metric is not second.metric


def test_the_description_is_the_models_where_its_module_has_none() -> None:
    source = SIMPLE.replace('"""Which side of a line a point is on."""\n', "")
    assert written(source.replace("(trial):\n", '(trial):\n    """\n    A line.\n    """\n')).description == "A line."
    assert written(source).description == ""


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (lambda trial: nn.Linear(2, 2), {}, "model returned a network, so the objective needs a loss"),
        (lambda trial: None, {}, "model must return a torch.nn.Module or a Task, but returned NoneType"),
        (lambda trial: Task(nn.Linear(2, 2), lambda n, b: (b, 1)), {}, "no predict.*'accuracy'"),
    ],
)
def test_a_model_that_cannot_be_trained_is_said(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        made(model=model, **arguments).task(optuna.trial.FixedTrial({}))


def test_a_task_measured_by_its_loss_alone_needs_no_predict() -> None:
    def step(net: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return (net(batch[0]) - 1).square().sum(), len(batch[0])

    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    objective = made(
        model=lambda trial: Task(nn.Linear(2, 1), step),
        data=lambda root: split(points),
        metric="loss",
        epochs=3,
        batch_sizes=(8,),
    )
    recorder = Recorder()
    assert fit(objective, recorder).outcome is Outcome.COMPLETE
    assert recorder.values[-1] < recorder.values[0]


class Sum(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


def test_all_tensors_of_a_batch_but_the_last_go_into_the_network() -> None:
    task = supervised(Sum(), nn.MSELoss())
    batch = (torch.ones(3), torch.ones(3), torch.full((3,), 4.0))
    total, weight = task.step(task.net, batch)
    assert (float(total), weight) == (12.0, 3)


def test_a_loss_for_each_sample_is_refused() -> None:
    task = supervised(nn.Identity(), lambda outputs, targets: outputs - targets)
    with pytest.raises(ObjectiveError, match=r"loss must be one number.*\(3,\)"):
        task.step(task.net, (torch.zeros(3), torch.zeros(3)))


def test_importing_search_imports_neither_torch_nor_optuna() -> None:
    code = "import sys, search; print({'torch', 'optuna', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", search.__all__)
def test_every_name_promised_by_search_is_there(name: str) -> None:
    assert getattr(search, name).__name__ == name
    assert name in dir(search)


def test_a_name_that_search_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'search' has no attribute 'Objectiv'"):
        _ = search.Objectiv
