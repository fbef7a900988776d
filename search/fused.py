"""One kernel for an optimizer's step instead of one an operation: half its time on small networks, or less.

Used by `optimizers.build`. torch's fused steps read weights, gradients and state as they lie in memory, without a look
at their strides, and know no sparse gradients. What makes that safe goes with the optimizer as a hook before its step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

DEVICES = ("cpu", "cuda")
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def can_be_fused(weights: Iterable[Tensor]) -> bool:
    """Whether all are plain floating tensors on a CPU or a GPU. What a lazy layer's will be is not known yet."""
    return all(
        type(one) in (nn.Parameter, Tensor) and one.is_floating_point() and one.device.type in DEVICES
        for one in weights
    )


def see_to_layout(optimizer: torch.optim.Optimizer, _args: object = None, _kwargs: object = None) -> None:
    """To be called before every step, as a hook. State that lies otherwise than its weight is laid as that.

    Where a gradient does not lie as its weight the optimizer is fused no more, which its state_dict keeps.
    """
    for group in optimizer.param_groups:
        if group["fused"] and not all(_go_together(one, group, optimizer) for one in group["params"]):
            for each in optimizer.param_groups:
                each["fused"] = False
            return


def _go_together(weight: Tensor, group: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    gradient, layout = weight.grad, _layout(weight)
    if gradient is None:
        return True
    if layout is None or gradient.layout is not torch.strided or not gradient.is_contiguous(memory_format=layout):
        return False
    # torch's SGD makes the momentum of all weights at once; zero is what one without a gradient so far begins with.
    if group.get("momentum") and optimizer.state[weight].get("momentum_buffer") is None:
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    state = optimizer.state.get(weight, {})
    for name, kept in state.items():
        if isinstance(kept, Tensor) and kept.shape == weight.shape:
            state[name] = kept.contiguous(memory_format=layout)  # itself, nearly always
    return True


def _layout(weight: Tensor) -> torch.memory_format | None:
    """How it lies in memory; None: with gaps or in another order."""
    if weight.is_contiguous():
        return torch.contiguous_format
    layout = _LAYOUTS.get(weight.ndim)
    return layout if layout is not None and weight.is_contiguous(memory_format=layout) else None
