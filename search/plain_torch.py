"""A recipe written down as plain torch code, which imports nothing of this project: `recipe.py`.

`search.export` writes it. What builds a schedule is taken from the catalogue's own rows, by their source, so that a new
row is written down with nothing to add here (tests/test_plain_torch.py runs them all).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from search.optimizers import NORMS, Momentum, Optimizer
from search.own_source import CannotBeWritten, Written, closure, imported, literal
from search.schedules import Schedule
from storage.first_trials import is_plain
from storage.words import in_one_line

MAKE_OPTIMIZER = '''\
def make_optimizer(net):
    """{text}

    No weight decay on biases, norm layers and whatever else has one dimension.
    """
    spared = {{
        id(parameter)
        for module in net.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, ({norms})) or "bias" in name.split("_")
    }}
    decayed, others = [], []
    for parameter in net.parameters():
        if parameter.requires_grad:
            (others if parameter.ndim <= 1 or id(parameter) in spared else decayed).append(parameter)
    groups = [{{"params": decayed}}, {{"params": others, "weight_decay": 0.0}}]
    return {call}([group for group in groups if group["params"]], lr=LR, **OPTIMIZER)
'''
MAKE_OPTIMIZER_FOR_GROUPS = '''\
def make_optimizer(net, groups=None):
    """{text}

    No weight decay on biases, norm layers and whatever else has one dimension.
    groups: torch's parameter groups in place of all parameters; "lr_scale" in one is its rate relative to LR.
    """
    spared = {{
        id(parameter)
        for module in net.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, ({norms})) or "bias" in name.split("_")
    }}
    halves = []
    for group in groups or [{{"params": net.parameters()}}]:
        options = {{name: value for name, value in group.items() if name not in ("params", "lr_scale")}}
        options["lr"] = LR * group.get("lr_scale", 1.0)
        decayed, others = [], []
        for parameter in group["params"]:
            if parameter.requires_grad:
                (others if parameter.ndim <= 1 or id(parameter) in spared else decayed).append(parameter)
        halves += [{{**options, "params": decayed}}, {{**options, "weight_decay": 0.0, "params": others}}]
    return {call}([half for half in halves if half["params"]], lr=LR, **OPTIMIZER)
'''
MAKE_SCHEDULE = '''\
def make_schedule(optimizer, steps):
    """{text}

    steps: the optimizer's in the whole run; call step() after each of them.
    """
    if steps == 1:
        return lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    # torch's own scheduler, driven over the run on an optimizer whose rate is 1: a factor of LR for each step.
    driven = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = {build}(driven, SCHEDULE, steps)
    driven.step()
    factors = [driven.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        scheduler.step()
        factors.append(driven.param_groups[0]["lr"])
{warm_up}    return lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, steps - 1)])
'''
WARM_UP = """\
    length = max(1, math.floor(WARMUP * steps + 1e-9))
    factors = [factor * min(1.0, (step + 1) / length) for step, factor in enumerate(factors)]
"""


# What the code knows by these names.
USUAL = {
    "torch": "import torch",
    "nn": "from torch import nn",
    "lr_scheduler": "from torch.optim import lr_scheduler",
    "math": "import math",
}
# Options of an objective that code has under a name.
IN_CODE = ("accumulate", "clip_norm")


@dataclass(frozen=True)
class Plain:
    """A trial, as far as its training can be told in plain torch.

    Attributes:
        title: which trial of which study. recipe: in words.
        optimizer, schedule: the rows. settings: the recipe's real values, as `Recipe.as_dict` has them.
        epochs: of the whole run. seed: of the trial.
        written: how the objective is: "network" (and a loss), "task", "loop".
        groups: the optimizer may have been given groups of parameters.
        options: of the objective, those that differ from the usual ones. shaped_by: what shaped its batches.
        tensors: its data are tensors; bytes_in: of which the inputs are bytes.
        in_parts: batches were trained in parts. on_cpu: it was trained on a CPU.
    """

    title: str
    recipe: str
    optimizer: Optimizer
    schedule: Schedule
    settings: Mapping[str, Any]
    epochs: int
    seed: int
    written: str = "network"
    groups: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    shaped_by: tuple[str, ...] = ()
    tensors: bool = True
    bytes_in: bool = False
    in_parts: bool = False
    on_cpu: bool = True


def recipe_code(plain: Plain) -> str:
    """`recipe.py`: the optimizer and the schedule of a trial, to be called from any training loop.

    Raises:
        CannotBeWritten: a row of the objective's own cannot be written down, or what is on record is no recipe.
    """
    _refuse_strange(plain)
    warmup = float(plain.settings.get("warmup", 0.0))
    constants = _constants(plain, warmup)
    taken = USUAL | dict.fromkeys(("make_optimizer", "make_schedule", *constants), "")
    call, built = _factory(plain.optimizer), closure(plain.schedule.build, taken)
    modules = {name: line for name, line in USUAL.items() if name != "math" or warmup}
    modules |= {**call.imports, **built.imports}
    make = MAKE_OPTIMIZER_FOR_GROUPS if plain.groups else MAKE_OPTIMIZER
    norms = ", ".join(f"nn.{norm.__name__}" for norm in NORMS)
    parts = [
        _docstring(plain),
        _sorted(modules.values()),
        "".join(f"{name} = {_code(value)}\n" for name, value in constants.items()),
        *call.definitions,
        make.format(text=in_docstring(plain.optimizer.text), norms=norms, call=call.name),
        *built.definitions,
        MAKE_SCHEDULE.format(
            text=in_docstring(plain.schedule.text), build=built.name, warm_up=WARM_UP if warmup else ""
        ),
    ]
    return _joined(parts)


def _refuse_strange(plain: Plain) -> None:
    """Raises CannotBeWritten: what is on record, where anybody may have written it, is nothing that a recipe has."""
    for name, value in {**plain.settings, **plain.options}.items():
        several = isinstance(value, list)
        right = all(map(is_plain, value if several else [value])) and several == (name == "betas")
        if not right or (name == "warmup" and not isinstance(value, float | int)):
            raise CannotBeWritten(f"{in_one_line(name)} on record is {value!r:.60}, which no recipe has")


def _factory(row: Optimizer) -> Written:
    """What makes the torch optimizer: a class of torch's by its usual name, or whatever an import finds."""
    name = getattr(row.factory, "__name__", "")
    if getattr(torch.optim, name, None) is row.factory:
        return Written(f"torch.optim.{name}")
    return imported(row.factory, f"the optimizer {row.name!r}")


def _docstring(plain: Plain) -> str:
    steps = "len(batches)" if "accumulate" not in plain.options else "-(-len(batches) // ACCUMULATE)"
    return f'''"""{in_docstring(plain.title)} in plain torch: nothing of Dialin's is needed.

    {in_docstring(plain.recipe)}

    optimizer = make_optimizer(net)                        # net as it will be trained, on its device
    schedule = make_schedule(optimizer, EPOCHS * {steps})
    for epoch in range(EPOCHS):
        for inputs, targets in batches:                    # shuffled, BATCH_SIZE samples each
            optimizer.zero_grad()
            loss(net(inputs), targets).backward()
            optimizer.step()
            schedule.step()
"""
'''


def in_docstring(text: str) -> str:
    """Names come from a database, where anybody may have written them: they must not end what they stand in."""
    return in_one_line(text).translate({34: 39, 92: 47})


def _constants(plain: Plain, warmup: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "EPOCHS": plain.epochs,
        "BATCH_SIZE": plain.settings["batch_size"],
        "SEED": plain.seed,
        "LR": plain.settings["lr"],
        "OPTIMIZER": _arguments(plain),
        "SCHEDULE": {knob.name: plain.settings[knob.name] for knob in plain.schedule.knobs},
    }
    values |= {"WARMUP": warmup} if warmup else {}
    return values | {name.upper(): plain.options[name] for name in IN_CODE if name in plain.options}


def _code(value: Any) -> str:
    """As a person would write it: a line for each item."""
    if not isinstance(value, dict) or not value:
        return literal(value) if value != {} else "{}"
    return "{\n" + "".join(f"    {json.dumps(name)}: {literal(one)},\n" for name, one in value.items()) + "}"


def _arguments(plain: Plain) -> dict[str, Any]:
    """What torch's optimizer gets beside the rate, as `search.optimizers.build` gives it."""
    row, settings = plain.optimizer, plain.settings
    found: dict[str, Any] = {"weight_decay": settings["weight_decay"], **row.fixed}
    if row.momentum is Momentum.MOMENTUM:
        found["momentum"] = settings["momentum"]
    if row.momentum is Momentum.BETAS:
        found["betas"] = tuple(settings["betas"])
    found |= {knob.name.removeprefix(f"{row.name}_"): settings[knob.name] for knob in row.extra}
    return found | ({"fused": True} if row.fused else {})


def _sorted(imports: Iterable[str]) -> str:
    """Python's own first, as people sort them."""
    lines = sorted(set(imports), key=lambda line: (line.startswith("from"), line))
    own = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    others = [line for line in lines if line not in own]
    return "".join(f"{line}\n" for line in own) + ("\n" if own and others else "") + "".join(f"{x}\n" for x in others)


def _joined(parts: Iterable[str]) -> str:
    """Docstring, imports and constants a line apart, definitions two."""
    texts = [part.strip("\n") for part in parts if part.strip("\n")]
    head = "\n\n".join(text for text in texts if not text.startswith(("def ", "class ")))
    definitions = [text for text in texts if text.startswith(("def ", "class "))]
    return "\n\n\n".join([head, *definitions]) + "\n"
