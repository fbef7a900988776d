"""Tiny Shakespeare: a small causal transformer on 1.1 million characters, its loss in nats a character.

The first 90% of the text train, as in nanoGPT; of the last 10%, which nanoGPT validates on, the first half validates
here and the second half is the test split. A training sample is 65 characters from a random place, 64 to read and
64 to predict; the held-out text is cut into such windows once. The block is GPT-2's (Radford et al. 2019), with
rotary positions (Su et al. 2021) in place of learned ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from optuna import Trial
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from search import Data, DataCorrupt, Objective, Task, find_dataset

SITE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
GET = f"curl --fail --create-dirs -o '{{cache}}/text/tinyshakespeare.txt' {SITE}"
ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTEXT = 64
BASE = 1000.0  # the slowest rotation's period over tau: well beyond the context


def rotated(x: Tensor) -> Tensor:
    """Queries or keys (N, heads, T, 2D), each pair of halves turned by an angle that grows with its position."""
    speed = BASE ** -torch.linspace(0, 1, x.shape[-1] // 2, device=x.device)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * speed
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """Attention to what came before, then two layers on each character: (N, T, width) to the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.narrow(nn.functional.gelu(self.wide(self.norms[1](x)))))


class Transformer(nn.Module):
    """Characters (N, T) to the logits of each next one (N, T, 65)."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET), bias=False)
        self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # GPT-2: 0.02, and less where many layers are summed
                summed = name.endswith(("out.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if summed else 0.02)

    def forward(self, characters: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(characters))))


def step(net: nn.Module, batch: tuple[Tensor]) -> tuple[Tensor, int]:
    (windows,) = batch
    logits, following = net(windows[:, :-1]), windows[:, 1:]
    return cross_entropy(logits.mT, following, reduction="sum"), following.numel()


def model(trial: Trial) -> Task:
    width, depth = trial.suggest_int("width", 64, 128, step=32), trial.suggest_int("depth", 2, 4)
    heads, dropout = trial.suggest_categorical("heads", [2, 4]), trial.suggest_float("dropout", 0.0, 0.2)
    return Task(Transformer(width, depth, heads, dropout), step)


def from_anywhere(stretches: Tensor, generator: torch.Generator) -> Tensor:
    """One window (N, 65) of each stretch (N, 128), from a random one of its 64 places."""
    start = torch.randint(CONTEXT, (len(stretches), 1), device=stretches.device, generator=generator)
    return stretches.gather(1, start + torch.arange(CONTEXT + 1, device=stretches.device))


def characters(path: Path) -> Tensor:
    """The text as places in ALPHABET, uint8. DataCorrupt: it is too short or has other characters."""
    codes = torch.tensor([*path.read_bytes()], dtype=torch.long)
    table = torch.full((256,), 255, dtype=torch.uint8)
    table[torch.tensor([*ALPHABET.encode()])] = torch.arange(len(ALPHABET), dtype=torch.uint8)
    text = table[codes]
    if len(text) < 100 * CONTEXT or bool((text == 255).any()):
        raise DataCorrupt(f"corrupt file {path}: too short, or with characters that are not its own; get it again")
    return text


def data(root: Path) -> Data:
    folder = find_dataset("text", [("tinyshakespeare.txt", None)], root, get=GET) / "text"
    text = characters(folder / "tinyshakespeare.txt")
    train, valid, test = text.tensor_split([int(0.9 * len(text)), int(0.95 * len(text))])
    windows = [part.unfold(0, CONTEXT + 1, CONTEXT) for part in (valid, test)]
    stretches = train.unfold(0, 2 * CONTEXT, CONTEXT)
    return Data((stretches,), (windows[0],), (windows[1],), scale=Tensor.long, augment=from_anywhere)


objective = Objective(
    model=model,
    data=data,
    metric="loss",
    clip_norm=1.0,
    batch_sizes=(16, 32, 64),
    optimizers=("adamw", "adam", "nadam", "radam"),
    epochs=2,
)
