"""The training loop of a trial as plain torch code, for `train.py`: what `search.curve` does of it, and no more.

It stands on `recipe.py` (`search.plain_torch`). A trial whose training has what is not written down here has none.
"""

from __future__ import annotations

from search.plain_torch import Plain, in_docstring

# Options of an objective that the loop has, and those by which a trial ends or is judged: whoever runs it sees to them.
WRITTEN = ("clip_norm", "accumulate", "precision")
FOR_THE_CALLER = ("patience", "value")
DOORS = {"task": "a Task, whose step is its own", "loop": "a training loop of its own", "function": "a function"}

HEAD = '''\
"""{title} in plain torch: with its seed, its order of samples and its steps.

    {recipe}

    from train import train

    for epoch, net, train_loss in train(make_net, loss, images, labels):
        ...                              # net.eval(), and see how good it is; train() sets it to training mode again

make_net() builds the network as the objective's model() does; it is seeded before. loss(outputs, targets) is the mean.
The tensors are those of the training split, the last of them the targets.{explained}
"""

import random

import numpy
import torch
from recipe import {names}
{nn}

def order(epoch, samples):
    """Rows of each batch of an epoch, counted from 1. A last batch of one sample is left out, for BatchNorm's sake."""
    generator = torch.Generator().manual_seed(random.Random(f"order {{SEED}} {{epoch}}").getrandbits(63))
    batches = torch.randperm(samples, generator=generator).split(BATCH_SIZE)
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 < BATCH_SIZE else batches


def rest_frozen_norms(net):
    """Norm layers in parts that are frozen keep their statistics."""
    for part in net.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            for module in part.modules():
                if "running_mean" in dict(module.named_buffers(recurse=False)):
                    module.eval()
'''
TRAIN = '''\


def train(make_net, loss, *tensors, device="cpu"{arguments}):
    """Yields (epoch, network, training loss) after each epoch."""
    random.seed(SEED)
    numpy.random.seed(SEED % 2**32)
    torch.manual_seed(SEED)
    net = make_net().to(device)
    optimizer = make_optimizer(net{groups})
    tensors = [tensor.to(device) for tensor in tensors]
    samples = len(tensors[-1])
'''
EXPLAINED = {
    "scale": "\nscale(inputs), as the objective's Data has it.",
    "augment": "\naugment(inputs, generator), as the objective's Data has it.",
    "groups": "\ngroups(net): torch's parameter groups, as the objective's `parameters` has them.",
}
CHANNELS_LAST = '''\


def lay_channels_last(net, *inputs):
    """As it was trained on a CPU: faster, and rounded as it was. A network that views its inputs otherwise cannot."""
    convolutions = [one for one in net.modules() if isinstance(one, (nn.Conv2d, nn.ConvTranspose2d))]
    random_state, buffers = torch.get_rng_state(), [buffer.clone() for buffer in net.buffers()]
    try:
        for one in convolutions:
            one.to(memory_format=torch.channels_last)
        net(*inputs)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        for one in convolutions:
            one.to(memory_format=torch.contiguous_format)
    torch.set_rng_state(random_state)
    for buffer, before in zip(net.buffers(), buffers):
        buffer.data.copy_(before)
'''
GENERATOR = """\
        generator = torch.Generator(device).manual_seed(random.Random(f"augment {SEED} {epoch}").getrandbits(63))
"""
# The loss of a batch as the trial had it: the sum of losses over their number, which is their mean but for rounding.
STEP = """\
            total = {mean} * len(targets)
            optimizer.zero_grad()
            (total / len(targets)).backward()  # as it was trained: the mean, but for rounding
{clip}            optimizer.step()
            schedule.step()
"""
STEPS = """\
            total = {mean} * len(targets)
            if not pending:
                optimizer.zero_grad()
                unit, weight = len(targets), 0
            (total / unit).backward()
            pending, weight = pending + 1, weight + len(targets)
            if pending == ACCUMULATE or number == len(batches):
                for parameter in net.parameters() if pending > 1 else ():
                    if parameter.grad is not None:
                        parameter.grad.mul_(unit / weight)
{clip}                optimizer.step()
                schedule.step()
                pending = 0
"""
CLIP = """\
weights = [weight for group in optimizer.param_groups for weight in group["params"]]
nn.utils.clip_grad_norm_(weights, CLIP_NORM)
"""


def why_not(plain: Plain) -> str:
    """Why the loop of a trial is not written down; empty where it is."""
    if plain.written != "network":
        return f"the objective has {DOORS.get(plain.written, 'a door that is not known')}"
    others = [name for name in plain.options if name not in (*WRITTEN, *FOR_THE_CALLER)]
    others += ["precision fp16"] if plain.options.get("precision") == "fp16" else []
    others += [name for name in plain.shaped_by if name not in ("scale", "augment")]
    if others:
        return f"it was trained with {', '.join(others)}"
    if not plain.tensors:
        return "its data are no tensors, or folds"
    return "memory was wanting, and batches were trained in parts" if plain.in_parts else ""


def loop_code(plain: Plain) -> str:
    """`train.py`. To be called where `why_not` has nothing to say."""
    uses: list[str] = [name for name in ("scale", "augment") if name in plain.shaped_by]
    uses += ["groups"] if plain.groups else []
    names = ["BATCH_SIZE", "EPOCHS", "SEED", "make_optimizer", "make_schedule"]
    names += [name.upper() for name in ("accumulate", "clip_norm") if name in plain.options]
    head = HEAD.format(
        title=in_docstring(plain.title),
        recipe=in_docstring(plain.recipe),
        explained="".join(EXPLAINED[name] for name in uses),
        names=", ".join(sorted(names)),
        nn="from torch import nn\n" if _laid(plain) or "clip_norm" in plain.options else "",
    )
    train = TRAIN.format(
        arguments="".join(f", {name}" for name in uses), groups=", groups(net)" if plain.groups else ""
    )
    return "".join([head, CHANNELS_LAST if _laid(plain) else "", train, *_run(plain)])


def _run(plain: Plain) -> list[str]:
    """From the schedule on."""
    several = "accumulate" in plain.options
    steps = "-(-len(order(1, samples)) // ACCUMULATE)" if several else "len(order(1, samples))"
    rows = "number, rows in enumerate(batches, 1)" if several else "rows in order(epoch, samples)"
    return [
        f"    schedule = make_schedule(optimizer, EPOCHS * {steps})\n",
        *_lay(plain),
        "    for epoch in range(1, EPOCHS + 1):\n        net.train()\n        rest_frozen_norms(net)\n",
        GENERATOR if "augment" in plain.shaped_by else "",
        "        summed, count = 0.0, 0\n",
        "        batches, pending = order(epoch, samples), 0\n" if several else "",
        f"        for {rows}:\n",
        "            *inputs, targets = (tensor[rows.to(device)] for tensor in tensors)\n",
        *_shaped(plain),
        _step(plain, several),
        "            summed, count = summed + total.detach().double(), count + len(targets)\n",
        "        yield epoch, net, float(summed) / count\n",
    ]


def _laid(plain: Plain) -> bool:
    """Whether `search.layout` laid the weights of convolutions, if there were any."""
    return plain.on_cpu and str(plain.optimizer.factory.__module__).startswith("torch.optim")


def _lay(plain: Plain) -> list[str]:
    """As the first batch goes through the network."""
    if not _laid(plain):
        return []
    first = ["*inputs, _ = (tensor[order(1, samples)[0]] for tensor in tensors)", *_scaled(plain)]
    lines = [*first, "lay_channels_last(net, *inputs)"]
    return ['    if device == "cpu":\n', *(f"        {line}\n" for line in lines)]


def _scaled(plain: Plain) -> list[str]:
    if "scale" in plain.shaped_by:
        return ["inputs[0] = scale(inputs[0])"]
    return ["inputs[0] = inputs[0].float().div_(255)"] if plain.bytes_in else []


def _shaped(plain: Plain) -> list[str]:
    """What becomes of the inputs of a batch before the network has them, and of what it says."""
    lines = _scaled(plain)
    if "augment" in plain.shaped_by:
        lines.append("inputs[0] = augment(inputs[0], generator)")
    if plain.options.get("precision") == "bf16":
        lines += ["with torch.autocast(torch.device(device).type, torch.bfloat16):", "    outputs = net(*inputs)"]
    return [f"            {line}\n" for line in lines]


def _step(plain: Plain, several: bool) -> str:
    rounded = plain.options.get("precision") == "bf16"
    mean = "loss(outputs.float(), targets)" if rounded else "loss(net(*inputs), targets)"
    indent = " " * (16 if several else 12)
    clip = "".join(f"{indent}{line}\n" for line in CLIP.splitlines()) if "clip_norm" in plain.options else ""
    return (STEPS if several else STEP).format(mean=mean, clip=clip)
