"""How the weights of convolutions lie in memory while they are trained: on a CPU channels last, where that is faster.

Used by the training loop. The weights alone decide: torch's convolutions, norms and pooling go on in their layout,
whatever that of a batch is, and compute the same but for rounding; a dropout of feature maps, which draws in the order
of memory, drops others, which are as good. What is saved lies as people expect it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
# How torch begins to say that a tensor cannot be viewed in another shape; torch.reshape would have copied it.
NO_VIEW = "view size is not compatible"


class Layout:
    """Of one network. `refused_once`: it cannot work with another layout than the usual one.

    An optimizer that is not torch's own may view gradients in other shapes, and half a step cannot be repeated.
    """

    def __init__(self, net: nn.Module, device: torch.device, optimizer: torch.optim.Optimizer) -> None:
        self._net = net
        self._buffers: dict[str, Tensor] = {}
        self._changed = False
        self._wanted = device.type == "cpu" and type(optimizer).__module__.startswith("torch.optim.")
        self.refused_once = False

    def begin(self) -> None:
        """To be called before the first batch; what that changes in the network's buffers can be undone."""
        if self._wanted and not self.refused_once and [*_weights(self._net)]:
            self._changed = True
            self._lay(torch.channels_last)
            self._buffers = {name: buffer.clone() for name, buffer in self._net.named_buffers()}

    def fits(self) -> None:
        """A batch went through."""
        self._buffers.clear()

    def refused(self, error: BaseException) -> bool:
        """Whether the network's code cannot work with it: it views what has the channels last in another shape."""
        return self._changed and NO_VIEW in str(error)

    @torch.no_grad()
    def undo(self) -> None:
        """Lay the weights as usual, and keep them so."""
        self._changed, self.refused_once = False, True
        self._lay(torch.contiguous_format)
        for name, buffer in self._net.named_buffers():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])
        self._buffers.clear()

    def _lay(self, layout: torch.memory_format) -> None:
        for weight in _weights(self._net):
            # Tensor.contiguous would leave one channel's strides, by which torch chooses the layout of what follows.
            weight.data = weight.data.to(memory_format=layout)


def _weights(net: nn.Module) -> Iterator[nn.Parameter]:
    """Those that have channels: a lazy layer's have none yet."""
    for module in net.modules():
        if isinstance(module, CONVOLUTIONS):
            yield from (one for one in module.parameters() if not nn.parameter.is_lazy(one) and one.ndim == 4)
