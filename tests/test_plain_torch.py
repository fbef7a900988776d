"""A recipe as plain torch code: it trains as Dialin does, bit for bit, where there is no Dialin."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from plain_process import curves
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from training_helpers import Recorder, fit

from search import schedules
from search.data import Data
from search.knobs import floating
from search.objective import Objective
from search.optimizers import OPTIMIZERS, Optimizer
from search.own_source import CannotBeWritten, closure
from search.plain_loop import loop_code, why_not
from search.plain_torch import Plain, in_docstring, recipe_code
from search.schedules import SCHEDULES, Schedule, part
from search.space import Recipe, nearest_params, recipe_from_params

EPOCHS, SEED = 3, 11
# What both sides train: written to a file for the one, imported from it by the other.
DENSE = """
import torch
from torch import nn

POINTS = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
SIDES = (POINTS.sum(1) > 0).long()
TRAIN, VALID, MORE = (POINTS[:101], SIDES[:101]), (POINTS[101:], SIDES[101:]), {}
loss = nn.CrossEntropyLoss()


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(2, 4))

    def forward(self, points):
        return points + self.bias


def make_net():
    wide = nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.LayerNorm((2, 4)), Shift(), nn.Flatten(), nn.ReLU()
    return nn.Sequential(*wide, nn.Dropout(0.2), nn.Linear(8, 2))
"""
IMAGES = """
import torch
from torch import nn

PIXELS = torch.randint(256, (90, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KINDS = (PIXELS.float().mean((1, 2, 3)) > 127).long()
TRAIN = (PIXELS[:60], KINDS[:60])
VALID = (PIXELS[60:].float() / 255, KINDS[60:])
loss = nn.CrossEntropyLoss()


def make_net():
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 2)),
    )
    for frozen in net[:2].parameters():
        frozen.requires_grad_(False)
    return net


def augment(images, generator):
    coins = torch.rand(len(images), 1, 1, 1, generator=generator)
    return torch.where(coins < 0.5, images.flip(-1), images)


def groups(net):
    return [{"params": net[3].parameters(), "lr_scale": 0.5}, {"params": net[6].parameters()}]


MORE = {"augment": augment, "groups": groups}
"""

VIEWING = IMAGES.replace("nn.Flatten()", "View()").replace(
    "def make_net",
    "class View(nn.Module):\n"
    "    def forward(self, maps):\n"
    "        return torch.dropout(maps, 0.2, self.training).view(len(maps), -1)\n\n\ndef make_net",
)


def module(folder: Path, text: str) -> ModuleType:
    """`network.py` in the folder, and what it holds."""
    folder.mkdir(exist_ok=True)
    (folder / "network.py").write_text(text)
    made = ModuleType("network")
    exec(compile(text, str(folder / "network.py"), "exec"), vars(made))
    return made


def objective(network: ModuleType, **options: Any) -> Objective:
    given: dict[str, Any] = {name: network.MORE[name] for name in ("augment",) if name in network.MORE}
    valid = network.VALID if "augment" not in network.MORE else (network.PIXELS[60:], network.KINDS[60:])
    data = Data(network.TRAIN, valid, **given)
    if "groups" in network.MORE:
        options["parameters"] = network.groups
    return Objective(
        model=lambda trial: network.make_net(), data=lambda root: data, loss=network.loss, epochs=EPOCHS, **options
    )


def recipe_of(optimizer: str, schedule: str, searched: Objective, **wanted: Any) -> Recipe:
    chosen = {"optimizer": optimizer, "schedule": schedule, "warmup": 0.07, "batch_size": 32, **wanted}
    return recipe_from_params(nearest_params(chosen, searched), searched)


def plain(recipe: Recipe, **more: Any) -> Plain:
    return Plain("a trial", "a recipe", *recipe.rows, settings=recipe.as_dict(), epochs=EPOCHS, seed=SEED, **more)


def trained(searched: Objective, recipe: Recipe) -> list[list[float]]:
    """Dialin's own curve."""
    recorder = Recorder()
    fit(searched, recorder, recipe, seed=SEED)
    return [[one.metrics["train_loss"], one.metrics["accuracy"]] for one in recorder.results]


def write(folder: Path, told: Plain) -> None:
    (folder / "recipe.py").write_text(recipe_code(told))
    assert why_not(told) == ""
    (folder / "train.py").write_text(loop_code(told))


def pairs() -> Iterator[tuple[str, str]]:
    """Every optimizer and every schedule of the catalogue at least once."""
    rows, shapes = [*OPTIMIZERS], [*SCHEDULES]
    for number in range(max(len(rows), len(shapes))):
        yield rows[number % len(rows)], shapes[number % len(shapes)]
    yield "adamw", "onecycle"


def test_every_optimizer_and_schedule_of_the_catalogue_trains_the_same_without_dialin(tmp_path: Path) -> None:
    expected = {}
    for optimizer, schedule in pairs():
        folder = tmp_path / f"{optimizer}-{schedule}"
        searched = objective(module(folder, DENSE))
        recipe = recipe_of(optimizer, schedule, searched)
        write(folder, plain(recipe))
        expected[folder.name] = trained(searched, recipe)
    assert {name.partition("-")[0] for name in expected} == {*OPTIMIZERS}
    assert {name.partition("-")[2] for name in expected} == {*SCHEDULES}
    assert curves(*sorted(tmp_path.iterdir())) == expected


OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "accumulate": (DENSE, {"accumulate": 3}, {}),
    "clip_norm": (DENSE, {"clip_norm": 0.5, "accumulate": 2}, {}),
    "bf16": (DENSE, {"precision": "bf16"}, {}),
    "images": (IMAGES, {}, {"groups": True, "shaped_by": ("augment",), "bytes_in": True}),
    "viewing": (VIEWING, {}, {"groups": True, "shaped_by": ("augment",), "bytes_in": True}),
}


def test_what_else_training_has_is_in_the_code_too(tmp_path: Path) -> None:
    expected = {}
    for name, (text, options, more) in OPTIONS.items():
        folder = tmp_path / name
        searched = objective(module(folder, text), **options)
        recipe = recipe_of("nesterov", "cosine", searched)
        write(folder, plain(recipe, options=options, **more))
        expected[name] = trained(searched, recipe)
    found = curves(*(tmp_path / name for name in OPTIONS))
    # Here nothing validates under autocast, and there it is done so: training is what must be the same.
    for both in (expected, found):
        both["bf16"] = [one[:1] for one in both["bf16"]]
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"written": "task"}, "a Task, whose step is its own"),
        ({"written": "loop"}, "a training loop of its own"),
        ({"options": {"ema": 0.99, "patience": 3}}, "it was trained with ema"),
        ({"options": {"precision": "fp16"}}, "it was trained with precision fp16"),
        ({"shaped_by": ("augment", "weights")}, "it was trained with weights"),
        ({"tensors": False}, "its data are no tensors"),
        ({"in_parts": True}, "batches were trained in parts"),
    ],
)
def test_a_loop_that_is_not_written_down_says_why(changes: dict[str, Any], said: str) -> None:
    searched = Objective(model=lambda trial: nn.Linear(1, 1), data=lambda root: None, loss=nn.MSELoss())  # type: ignore[arg-type, return-value]  # no data is loaded
    assert said in why_not(plain(recipe_of("adam", "step", searched), **changes))


def test_the_code_imports_nothing_but_torch_and_pythons_own(tmp_path: Path) -> None:
    searched = objective(module(tmp_path / "one", DENSE))
    for optimizer, schedule in pairs():
        told = plain(recipe_of(optimizer, schedule, searched))
        for text in (recipe_code(told), loop_code(told)):
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
            names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
            roots = {name.partition(".")[0] for name in names}
            assert roots - {*sys.stdlib_module_names} <= {"torch", "numpy", "recipe"}, text


# -- Rows of an objective's own


TENTH = 10


def halved(steps: int) -> int:
    return part(1 / TENTH, steps)


def staircase(optimizer: torch.optim.Optimizer, shape: schedules.Shape, steps: int) -> LRScheduler:
    # It goes down by halves.
    every = halved(steps)
    return LambdaLR(optimizer, lambda step: shape["staircase_factor"] ** (step // every))


def test_rows_of_ones_own_are_written_down_where_an_import_or_their_source_finds_them(tmp_path: Path) -> None:
    own = Schedule("staircase", "Down by steps.", staircase, (floating("staircase_factor", 0.1, 0.9, 0.5, "each"),))
    adamax = Optimizer("adamax", torch.optim.Adamax, 0.002, "Adam with an infinity norm.")
    folder = tmp_path / "own"
    searched = objective(module(folder, DENSE), optimizers=(adamax,), schedules=(own,))
    recipe = recipe_of("adamax", "staircase", searched)
    write(folder, plain(recipe))
    text = (folder / "recipe.py").read_text()
    assert "    # It goes down by halves.\n" in text
    assert "TENTH = 10\n" in text
    assert curves(folder) == {"own": trained(searched, recipe)}


def test_what_no_import_and_no_source_finds_is_said(tmp_path: Path) -> None:
    searched = objective(module(tmp_path / "one", DENSE))
    recipe = recipe_of("sgd", "constant", searched)
    local = replace(recipe.optimizer, name="mine", factory=lambda *a, **k: torch.optim.SGD(*a, **k))
    with pytest.raises(CannotBeWritten, match="the optimizer 'mine' is <function"):
        recipe_code(plain(replace(recipe, optimizer=local)))
    with pytest.raises(CannotBeWritten, match="is no plain function"):
        closure(lambda optimizer: optimizer)
    with pytest.raises(CannotBeWritten, match="uses CASES, which is"):
        closure(of_a_table)
    with pytest.raises(CannotBeWritten, match="would need the name LR"):
        recipe_code(replace(plain(recipe), schedule=Schedule("mine", "Of a rate of its own.", of_a_rate)))


CASES: dict[str, Tensor] = {}


def of_a_table(optimizer: Any, shape: Any, steps: int) -> Any:
    return CASES[str(steps)]


LR = 0.5


def of_a_rate(optimizer: torch.optim.Optimizer, shape: schedules.Shape, steps: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: LR)


lr_scheduler = LR
# Functions as people write them, too.
SHORT = """
from torch.optim.lr_scheduler import LambdaLR

HALF, NEVER = 2, float("inf")

def halved(value): return value // HALF

def build(optimizer, shape, steps):  # by halves
    from math import floor
    try:
        every = halved(floor(min(steps, NEVER)))
    except OverflowError as error:
        raise ValueError(str(error)) from error
    return LambdaLR(optimizer, lambda step: 0.5 ** (step // every))
"""


def of_another_module(optimizer: torch.optim.Optimizer, shape: schedules.Shape, steps: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: lr_scheduler)


def of_dialins(optimizer: torch.optim.Optimizer, shape: schedules.Shape, steps: int) -> LRScheduler:
    from search.schedules import part

    return LambdaLR(optimizer, lambda step: part(0.5, steps))


def test_functions_are_written_down_whole_and_their_names_mean_what_they_meant(tmp_path: Path) -> None:
    own = Schedule("mine", "By halves.", module(tmp_path / "rows", SHORT).build)
    searched = objective(module(tmp_path / "own", DENSE), schedules=(own,))
    recipe = recipe_of("sgd", "mine", searched)
    write(tmp_path / "own", plain(recipe))
    assert curves(tmp_path / "own") == {"own": trained(searched, recipe)}
    for build, said in ((of_another_module, "would need the name lr_scheduler"), (of_dialins, "imports Dialin")):
        with pytest.raises(CannotBeWritten, match=said):
            recipe_code(replace(plain(recipe), schedule=replace(own, build=build)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", {'a": print("run")}  #': 1}),
        ("lr", float("nan")),
        ("batch_size", [32]),
        ("batch_size", [[{"a": 1}]]),
        ("betas", 0.9),
        ("warmup", "all"),
    ],
)
def test_what_is_no_recipe_is_not_written_as_code(name: str, value: Any) -> None:
    """It is from a database, where anybody may have written it."""
    searched = Objective(model=lambda trial: nn.Linear(1, 1), data=lambda root: None, loss=nn.MSELoss())  # type: ignore[arg-type, return-value]  # no data is loaded
    told = plain(recipe_of("adam", "step", searched))
    with pytest.raises(CannotBeWritten, match=f"{name} on record is "):
        recipe_code(replace(told, settings={**told.settings, name: value}))
    with pytest.raises(CannotBeWritten, match="clip_norm on record is "):
        recipe_code(replace(told, options={"clip_norm": {"a": 1}}))


def test_a_name_from_the_database_stays_in_the_docstring() -> None:
    name = 'x"""\nimport os\\'
    assert '"' not in in_docstring(name)
    searched = Objective(model=lambda trial: nn.Linear(1, 1), data=lambda root: None, loss=nn.MSELoss())  # type: ignore[arg-type, return-value]  # no data is loaded
    told = replace(plain(recipe_of("adam", "step", searched)), title=name)
    for text in (recipe_code(told), loop_code(told)):
        tree = ast.parse(text)
        assert (ast.get_docstring(tree) or "").startswith("x''' import os/ in plain torch")
        assert "os" not in {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
