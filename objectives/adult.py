"""Adult census income: a tabular network on 32,561 people, numbers and categories, with values missing.

A category that is missing (`?`) or that no training row has is category 0 of its column. A missing number counts as
its column's mean, with an indicator beside it. Means, spreads and categories are the training rows' (70%; 15% validate,
15% test). Numbers are embedded by sines of trained frequencies, after Gorishniy et al. 2022 (On Embeddings, "PLR").
"""

from __future__ import annotations

from itertools import pairwise
from math import tau
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from optuna import Trial
from torch import Tensor, nn

from search import Data, DataCorrupt, Objective, find_dataset, split

SITE = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/adult.data"
GET = f"curl --fail --create-dirs -o '{{cache}}/tabular/adult.data' {SITE}"
COLUMNS = ["age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"]
COLUMNS += ["race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"]
# How many categories UCI's adult.names lists.
CATEGORIES = {"workclass": 8, "education": 16, "marital-status": 7, "occupation": 14, "relationship": 6}
CATEGORIES |= {"race": 5, "sex": 2, "native-country": 41}
NUMBERS = [name for name in COLUMNS[:-1] if name not in CATEGORIES]
SKEWED = ["fnlwgt", "capital-gain", "capital-loss"]  # sums of money and of people, over several powers of ten
FREQUENCIES, NUMBER_WIDTH, CATEGORY_WIDTH = 32, 8, 8


class Embedding(nn.Module):
    """Numbers (N, 2K), values then missing indicators, and categories (N, C) become features (N, F)."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        count = len(NUMBERS)
        self.frequencies = nn.Parameter(sigma * torch.randn(count, FREQUENCIES))
        self.weight = nn.Parameter(torch.randn(count, 2 * FREQUENCIES, NUMBER_WIDTH) / (2 * FREQUENCIES) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(count, NUMBER_WIDTH))
        self.tables = nn.ModuleList(nn.Embedding(1 + size, CATEGORY_WIDTH) for size in CATEGORIES.values())
        self.features = count * (NUMBER_WIDTH + 2) + len(CATEGORIES) * CATEGORY_WIDTH

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        angles = tau * numbers[:, : len(NUMBERS), None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=2)
        embedded = (torch.einsum("nkf,kfw->nkw", waves, self.weight) + self.bias).relu()
        looked_up = [table(codes) for table, codes in zip(self.tables, categories.T, strict=True)]
        return torch.cat([numbers, embedded.flatten(1), *looked_up], dim=1)


class Network(nn.Module):
    def __init__(self, width: int, layers: int, dropout: float, sigma: float) -> None:
        super().__init__()
        self.embedding = Embedding(sigma)
        widths = [self.embedding.features, *[width] * layers]
        blocks = [(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)) for before, after in pairwise(widths)]
        self.body = nn.Sequential(*(layer for block in blocks for layer in block), nn.Linear(width, 2))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        return self.body(self.embedding(numbers, categories))


def model(trial: Trial) -> nn.Module:
    return Network(
        width=trial.suggest_int("width", 64, 256, log=True),
        layers=trial.suggest_int("layers", 1, 3),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
        sigma=trial.suggest_float("sigma", 0.5, 20.0, log=True),  # of the sines' first frequencies
    )


def people(path: Path) -> pd.DataFrame:
    """The rows of a file as UCI publishes it, NaN where `?` stands. DataCorrupt: it is not such a file."""
    try:
        frame = pd.read_csv(path, names=COLUMNS, index_col=False, skipinitialspace=True, na_values="?")
        frame[NUMBERS] = frame[NUMBERS].astype("float32")
        bad = ~frame["income"].isin(["<=50K", ">50K"])
        many = [name for name, size in CATEGORIES.items() if frame[name].nunique() > size]
        if frame.empty or bad.any() or many:
            where = f"row {bad.argmax() + 1} does not end in an income" if bad.any() else f"too many kinds of {many}"
            raise ValueError("it is empty" if frame.empty else where)
    except ValueError as error:
        raise DataCorrupt(f"corrupt file {path}: {str(error).splitlines()[0]}; get it again") from error
    return frame


def encoded(frame: pd.DataFrame, training: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (N, 2K) and category codes (N, C) of all rows, by the statistics of the rows `training`."""
    values = torch.tensor(frame[NUMBERS].assign(**{name: np.log1p(frame[name]) for name in SKEWED}).to_numpy("float64"))
    missing = values.isnan()
    mean = values[training].nanmean(0)
    values = torch.where(missing, mean, values) - mean
    values /= values[training].square().mean(0).sqrt().clamp(min=1e-6)
    known = frame.iloc[training.numpy()]
    codes = [pd.Index(sorted(known[name].dropna().unique())).get_indexer(frame[name]) + 1 for name in CATEGORIES]
    return torch.cat([values, missing], dim=1).float(), torch.tensor(np.column_stack(codes)).long()


def data(root: Path) -> Data:
    frame = people(find_dataset("tabular", [("adult.data", None)], root, get=GET) / "tabular" / "adult.data")
    income = torch.tensor((frame["income"] == ">50K").to_numpy("int64", copy=True))
    parts = split(torch.arange(len(frame)), income, valid=0.15, test=0.15, stratify=True)
    rows = [part[0] for part in (parts.train, parts.valid, parts.test) if isinstance(part, tuple)]
    numbers, categories = encoded(frame, rows[0])
    train, valid, test = ((numbers[part], categories[part], income[part]) for part in rows)
    return Data(train, valid, test)


objective = Objective(
    model=model,
    data=data,
    loss=nn.CrossEntropyLoss(),
    metric=("accuracy", "auroc", "loss"),
    batch_sizes=(128, 256, 512),
    epochs=15,
)
