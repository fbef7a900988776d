"""The table of optimizers, and how a recipe and a network become a torch optimizer.

Read by `space.py` (what can be sampled) and by the trainer, which calls `build_for` once and `set_rate` at
every step. Adding an optimizer is adding one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from search.errors import ObjectiveError
from search.fused import can_be_fused, see_to_layout
from search.knobs import Knob, floating, rows_by_name

if TYPE_CHECKING:
    from search.objective import Task
    from search.space import Recipe

# 1 - momentum on a log scale, after Choi et al. 2019 (On Empirical Comparisons of Optimizers), narrowed to
# what practice uses: 0.9 almost everywhere, 0.5 at the start and 0.99 at the end of Sutskever et al. 2013;
# 0.999 is Adam's default (Kingma & Ba 2015), 0.95 and 0.9 serve large batches.
ONE_MINUS_MOMENTUM = floating("one_minus_momentum", 0.01, 0.5, 0.1, "1 - momentum", log=True)
ONE_MINUS_BETA1 = floating("one_minus_beta1", 0.01, 0.5, 0.1, "1 - beta1, decay of the mean gradient", log=True)
ONE_MINUS_BETA2 = floating("one_minus_beta2", 0.001, 0.1, 0.001, "1 - beta2, decay of the mean square", log=True)

# The norm layers whose parameters can have several dimensions; those of all others have one.
NORMS = (nn.LayerNorm, nn.RMSNorm)


class Momentum(StrEnum):
    """What an optimizer remembers of past gradients that a recipe may sample."""

    NONE = "none"
    MOMENTUM = "momentum"
    BETAS = "betas"


_MOMENTUM_KNOBS: Mapping[Momentum, tuple[Knob, ...]] = {
    Momentum.NONE: (),
    Momentum.MOMENTUM: (ONE_MINUS_MOMENTUM,),
    Momentum.BETAS: (ONE_MINUS_BETA1, ONE_MINUS_BETA2),
}


@dataclass(frozen=True)
class Optimizer:
    """A row.

    `factory(groups, lr=..., weight_decay=..., **fixed, ...)` makes the torch optimizer; `base_lr` is the rate
    that practice starts from; `momentum` says which of momentum and betas it takes; `decoupled` that its
    weight decay is not an L2 term of the gradient (Loshchilov & Hutter 2019); `fixed` are arguments that are
    always the same; `extra` are knobs of its own, each named `<row>_<argument>` (`rmsprop_alpha` is passed as
    `alpha`); `fused`: torch has one kernel for its step; `recorded`: the arguments with which its step on a GPU asks
    for no number, not even for its rate, and can be recorded in a CUDA graph, None where it cannot.
    """

    name: str
    factory: Callable[..., torch.optim.Optimizer]
    base_lr: float
    text: str
    momentum: Momentum = Momentum.NONE
    decoupled: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict, hash=False)
    extra: tuple[Knob, ...] = ()
    fused: bool = False
    recorded: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not self.base_lr > 0:
            raise ObjectiveError(f"optimizer {self.name!r}: base_lr must be positive, but got {self.base_lr}")
        for knob in self.extra:
            if not knob.name.startswith(f"{self.name}_"):
                raise ObjectiveError(f"optimizer {self.name!r}: its knob {knob.name!r} must be named '{self.name}_...'")

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """What is sampled under this optimizer only or with its like."""
        return (*_MOMENTUM_KNOBS[self.momentum], *self.extra)


_SGD = torch.optim.SGD
# Where the rate is a tensor, torch's fused SGD reads it on the device, and so do the others if they are told to.
_AS_IT_IS: Mapping[str, Any] = {}
_CAPTURABLE = {"capturable": True}
_ROWS = (
    # Bengio 2012 (Practical Recommendations): 0.01 with momentum 0.9 moves as far as 0.1 without.
    Optimizer("sgd", _SGD, 0.1, "Plain stochastic gradient descent.", fused=True, recorded=_AS_IT_IS),
    Optimizer(
        "momentum", _SGD, 0.01, "SGD with heavy-ball momentum.", Momentum.MOMENTUM, fused=True, recorded=_AS_IT_IS
    ),
    Optimizer(
        "nesterov",
        _SGD,
        0.01,
        "SGD with Nesterov's momentum.",
        Momentum.MOMENTUM,
        fixed={"nesterov": True},
        fused=True,
        recorded=_AS_IT_IS,
    ),
    # The defaults of torch and of the papers; the Adam family near 0.001 (Kingma & Ba 2015).
    Optimizer("adagrad", torch.optim.Adagrad, 0.01, "Rates that shrink with each weight's summed squared gradients."),
    Optimizer(
        "rmsprop",
        torch.optim.RMSprop,
        0.001,
        "Rates divided by each weight's recent gradient size.",
        recorded=_CAPTURABLE,
    ),
    Optimizer(
        "adam",
        torch.optim.Adam,
        0.001,
        "RMSprop with momentum, bias corrected; L2 in the gradient.",
        Momentum.BETAS,
        fused=True,
        recorded=_CAPTURABLE,
    ),
    Optimizer(
        "adamw",
        torch.optim.AdamW,
        0.001,
        "Adam with decoupled weight decay.",
        Momentum.BETAS,
        decoupled=True,
        fused=True,
        recorded=_CAPTURABLE,
    ),
    Optimizer(
        "nadam", torch.optim.NAdam, 0.001, "Adam with Nesterov's momentum.", Momentum.BETAS, recorded=_CAPTURABLE
    ),
    Optimizer(
        "radam",
        torch.optim.RAdam,
        0.001,
        "Adam that rectifies its first, noisy steps.",
        Momentum.BETAS,
        recorded=_CAPTURABLE,
    ),
)
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType({row.name: row for row in _ROWS})


def resolve(optimizer: str | Optimizer) -> Optimizer:
    """The row of that name, or the row itself. Raises ObjectiveError naming the known ones."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise ObjectiveError(f"unknown optimizer {optimizer!r}: known are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[optimizer]


def resolve_all(optimizers: Iterable[str | Optimizer]) -> dict[str, Optimizer]:
    """Rows by name, in the order given. Raises ObjectiveError when there are none, or two of one name."""
    return rows_by_name("optimizer", map(resolve, optimizers), OPTIMIZERS)


def build_for(task: Task, recipe: Recipe, recorded: bool = False) -> torch.optim.Optimizer:
    """`build` for a task's network, with the task's own parameter groups where it has any."""
    return build(recipe, task.net, task.parameters(task.net) if task.parameters else None, recorded)


def build(
    recipe: Recipe, net: nn.Module, groups: Iterable[Mapping[str, Any]] | None = None, recorded: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer for `net`, its rate set for the recipe's full rate.

    `groups` are a Task's own parameter groups as torch has them, else there is one with every parameter. A
    group may have `lr_scale`, its rate relative to the recipe's; any other option of its own goes to torch
    and wins over the recipe's. Each becomes two: decayed, and not decayed (biases, every parameter of a norm
    layer, and whatever has at most one dimension: He et al. 2019, Bag of Tricks). Frozen parameters are left
    out. `recorded`: for steps that are recorded in a CUDA graph, where the row has a way to do that.

    Raises ObjectiveError when nothing can be trained, or a group has no `params` or an `lr`.
    """
    row = recipe.optimizer
    spared = _never_decayed(net)
    if groups is None:
        groups = [{"params": net.parameters()}]
    split = [half for group in groups for half in _halves(group, spared)]
    if not split:
        raise ObjectiveError("nothing to train: no parameter of the network requires a gradient")
    arguments: dict[str, Any] = {"weight_decay": recipe.weight_decay, **row.fixed}
    if row.momentum is Momentum.MOMENTUM:
        arguments["momentum"] = recipe.momentum
    if row.momentum is Momentum.BETAS:
        arguments["betas"] = recipe.betas
    arguments |= {name.removeprefix(f"{row.name}_"): value for name, value in recipe.extra.items()}
    fused = row.fused and can_be_fused(weight for half in split for weight in half["params"])
    how: dict[str, Any] = {"fused": True} if fused else {}
    recorded = recorded and row.recorded is not None and fused == row.fused
    if recorded:
        how |= row.recorded or {}
    optimizer = row.factory(split, lr=recipe.lr, **arguments, **how)
    if any(group.get("fused") for group in optimizer.param_groups):  # a person's own row may ask for it
        optimizer.register_step_pre_hook(see_to_layout)
    if recorded:
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=torch.float32, device=group["params"][0].device)
    set_rate(optimizer, recipe.lr)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets every group's learning rate to `rate`, times the group's `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        scaled = rate * group.get("lr_scale", 1.0)
        if _reads_on_device(group):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def can_be_recorded(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of it asks the device for no number: it was built so, and has not met what it cannot do so."""
    return all(map(_reads_on_device, optimizer.param_groups))


def _reads_on_device(group: Mapping[str, Any]) -> bool:
    return isinstance(group["lr"], torch.Tensor) and bool(group.get("fused") or group.get("capturable"))


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from a state_dict that an optimizer of the same recipe made, perhaps on another kind of device.

    How it computes is its own, and not the state's. But what was not fused stays so, which rounds otherwise.
    """
    groups = []
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        groups.append(saved | {key: own[key] for key in ("lr", "foreach", "capturable") if key in own})
        if saved.get("fused"):
            groups[-1]["fused"] = own["fused"]
    optimizer.load_state_dict({**state, "param_groups": groups})


def _never_decayed(net: nn.Module) -> set[int]:
    """Identities of the biases and norm parameters of `net`, whatever their dimensions."""
    return {
        id(parameter)
        for module in net.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or "bias" in name.split("_")
    }


def _halves(group: Mapping[str, Any], spared: set[int]) -> list[dict[str, Any]]:
    """A parameter group as up to two: the decayed parameters, then the others with a decay of 0."""
    if "params" not in group:
        raise ObjectiveError(f"a parameter group has no 'params', only {', '.join(group) or 'nothing'}")
    if "lr" in group:
        raise ObjectiveError("a parameter group's rate is relative to the sampled one: give 'lr_scale' instead of 'lr'")
    options = {key: value for key, value in group.items() if key != "params"}
    decayed: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for parameter in _trainable(group["params"]):
        kept = parameter.ndim <= 1 or id(parameter) in spared
        (others if kept else decayed).append(parameter)
    halves = [{**options, "params": decayed}, {**options, "weight_decay": 0.0, "params": others}]
    return [half for half in halves if half["params"]]


def _trainable(params: Any) -> list[torch.Tensor]:
    """What `params` of a group holds that is not frozen: one tensor, tensors, or (name, tensor) pairs."""
    if isinstance(params, set):
        raise ObjectiveError("a parameter group's 'params' is a set, which has no order: give a list")
    given = [params] if isinstance(params, torch.Tensor) else list(params)
    tensors = [item[1] if isinstance(item, tuple) else item for item in given]
    return [tensor for tensor in tensors if tensor.requires_grad]
