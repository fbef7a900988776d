"""A training loop of a person's own on the bundled digits; with a file `slow` in the working folder an epoch takes a
third of a second. What it prints goes to the trial's log, and each epoch leaves a line in the trial's own folder."""

import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from search import Objective, Run

X, Y = load_digits(return_X_y=True)
IMAGES, DIGITS = torch.tensor(X[:600], dtype=torch.float32) / 16, torch.tensor(Y[:600])


def train(run: Run) -> None:
    width = run.trial.suggest_int("width", 8, 32)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10)).to(run.device)
    loader = DataLoader(TensorDataset(IMAGES[:500], DIGITS[:500]), run.recipe.batch_size, shuffle=True)
    optimizer = run.recipe.optimizer(net)
    schedule = run.recipe.schedule(optimizer, steps_per_epoch=len(loader))
    run.keep(net=net, optimizer=optimizer, schedule=schedule)
    for epoch in run.epochs:
        net.train()
        for images, digits in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), digits).backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            accuracy = (net(IMAGES[500:]).argmax(1) == DIGITS[500:]).float().mean()
        with open(run.dir / "epochs.txt", "a") as file:
            file.write(f"{epoch}\n")
        print("epoch", epoch, "has ended")
        if Path("slow").exists():
            time.sleep(0.3)
        run.report(accuracy=accuracy, rate=schedule.get_last_lr()[0])


objective = Objective(train=train, metric="accuracy", epochs=6, trials=4)
