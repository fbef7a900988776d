"""California housing: the median price of 20,640 districts from the 1990 census, an error in dollars.

Whatever is standardised, inputs and target, is by the mean and spread of the training rows (70%; 15% validate and 15%
test). `total_bedrooms` has gaps: a gap counts as the mean, with an indicator beside it. The loss is of standardised
prices; `predict` turns them back, so every metric is in dollars. Numbers are embedded by sines of trained
frequencies, after Gorishniy et al. 2022 (On Embeddings for Numerical Features, "PLR").
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
from torch.nn.functional import mse_loss

from search import Data, DataCorrupt, Objective, Task, find_dataset, split

SITE = "https://raw.githubusercontent.com/ageron/handson-ml2/master/datasets/housing/housing.csv"
GET = f"curl --fail --create-dirs -o '{{cache}}/tabular/california_housing.csv' {SITE}"
PLACE, PRICE, SHORE = ["longitude", "latitude"], "median_house_value", "ocean_proximity"
# Over several powers of ten, so their logarithms are used; differences of those are ratios.
AMOUNTS = ["total_rooms", "total_bedrooms", "population", "households", "median_income"]
NUMBERS = [*PLACE, "housing_median_age", *AMOUNTS]
RATIOS = [("total_rooms", "households"), ("total_bedrooms", "total_rooms"), ("population", "households")]
SHORES = ["<1H OCEAN", "INLAND", "ISLAND", "NEAR BAY", "NEAR OCEAN"]
FEATURES = len(NUMBERS) + len(RATIOS)
FREQUENCIES, NUMBER_WIDTH = 32, 16


class Network(nn.Module):
    """Standardised numbers (N, 11), their missing indicators (N, 11) and shores (N, 5) side by side: prices (N,)."""

    def __init__(self, width: int, layers: int, dropout: float, sigma: float) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(sigma * torch.randn(FEATURES, FREQUENCIES))
        self.weight = nn.Parameter(torch.randn(FEATURES, 2 * FREQUENCIES, NUMBER_WIDTH) / (2 * FREQUENCIES) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(FEATURES, NUMBER_WIDTH))
        widths = [FEATURES * (NUMBER_WIDTH + 2) + len(SHORES), *[width] * layers]
        blocks = [(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)) for before, after in pairwise(widths)]
        self.body = nn.Sequential(*(layer for block in blocks for layer in block), nn.Linear(width, 1), nn.Flatten(0))

    def forward(self, inputs: Tensor) -> Tensor:
        angles = tau * inputs[:, :FEATURES, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=2)
        embedded = (torch.einsum("nkf,kfw->nkw", waves, self.weight) + self.bias).relu()
        return self.body(torch.cat([inputs, embedded.flatten(1)], dim=1))


# A batch: inputs (N, 27), prices in dollars (N,), and the unit they are learned in (N, 2), mean and spread.
Batch = tuple[Tensor, Tensor, Tensor]


def step(net: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    inputs, dollars, unit = batch
    return mse_loss(net(inputs), (dollars - unit[:, 0]) / unit[:, 1], reduction="sum"), len(dollars)


def predict(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Predicted and true prices (N,), in dollars."""
    inputs, dollars, unit = batch
    return net(inputs) * unit[:, 1] + unit[:, 0], dollars


def model(trial: Trial) -> Task:
    net = Network(
        width=trial.suggest_int("width", 64, 256, log=True),
        layers=trial.suggest_int("layers", 2, 4),
        dropout=trial.suggest_float("dropout", 0.0, 0.3),
        sigma=trial.suggest_float("sigma", 0.1, 2.0, log=True),  # of the sines' first frequencies
    )
    return Task(net, step, predict)


def districts(path: Path) -> pd.DataFrame:
    """The rows of the published file, NaN in the gaps. DataCorrupt: it is not such a file."""
    try:
        frame = pd.read_csv(path)
        frame = frame[[*NUMBERS, PRICE]].astype("float64").assign(**{SHORE: frame[SHORE]})
    except (KeyError, ValueError) as error:
        raise DataCorrupt(f"corrupt file {path}: {str(error).splitlines()[0]}; get it again") from error
    bad = frame[PRICE].isna() | ~frame[SHORE].isin(SHORES)
    if frame.empty or bad.any():
        where = "it is empty" if frame.empty else f"row {bad.argmax() + 1} lacks its price or {SHORE}"
        raise DataCorrupt(f"corrupt file {path}: {where}; get it again")
    return frame


def inputs_of(frame: pd.DataFrame, training: Tensor) -> Tensor:
    """All rows as inputs (N, 27), by the statistics of the rows `training`."""
    numbers = frame[NUMBERS].assign(**{name: np.log(frame[name]) for name in AMOUNTS})
    ratios = [numbers[above] - numbers[below] for above, below in RATIOS]
    values = torch.tensor(np.column_stack([numbers, *ratios]))
    missing = values.isnan()
    mean = values[training].nanmean(0)
    values = torch.where(missing, mean, values) - mean
    values /= values[training].square().mean(0).sqrt().clamp(min=1e-6)
    shores = torch.tensor(np.column_stack([frame[SHORE] == shore for shore in SHORES]))
    return torch.cat([values, missing, shores], dim=1).float()


def data(root: Path) -> Data:
    folder = find_dataset("tabular", [("california_housing.csv", None)], root, get=GET) / "tabular"
    frame = districts(folder / "california_housing.csv")
    prices = torch.tensor(frame[PRICE].to_numpy("float32", copy=True))
    parts = split(torch.arange(len(frame)), valid=0.15, test=0.15)
    rows = [part[0] for part in (parts.train, parts.valid, parts.test) if isinstance(part, tuple)]
    inputs = inputs_of(frame, rows[0])
    unit = torch.stack([prices[rows[0]].mean(), prices[rows[0]].std()])
    train, valid, test = ((inputs[part], prices[part], unit.expand(len(part), 2)) for part in rows)
    return Data(train, valid, test)


objective = Objective(model=model, data=data, metric=("rmse", "mae", "r2"), batch_sizes=(32, 64, 128, 256), epochs=40)
