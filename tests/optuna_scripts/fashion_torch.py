"""A feed-forward network on Fashion-MNIST whose layers, dropout, optimizer and rate are searched.

After the idea of Optuna's example for PyTorch. The data lie in the current folder.
"""

import os

import optuna
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH_SIZE = 128
EPOCHS = 3
TRAIN_SAMPLES = BATCH_SIZE * 30
VALID_SAMPLES = BATCH_SIZE * 10


class Net(nn.Module):
    def __init__(self, trial):
        super().__init__()
        layers, inputs = [], 28 * 28
        for i in range(trial.suggest_int("n_layers", 1, 3)):
            outputs = trial.suggest_int(f"n_units_l{i}", 4, 128)
            dropout = trial.suggest_float(f"dropout_l{i}", 0.2, 0.5)
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, 10))

    def forward(self, images):
        return F.log_softmax(self.layers(images.flatten(1)), dim=1)


def loaders():
    return [
        DataLoader(
            datasets.FashionMNIST(os.getcwd(), train=train, download=True, transform=transforms.ToTensor()),
            batch_size=BATCH_SIZE,
            shuffle=True,
        )
        for train in (True, False)
    ]


def objective(trial):
    model = Net(trial).to(DEVICE)
    name = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    optimizer = getattr(optim, name)(model.parameters(), lr=lr)
    train_loader, valid_loader = loaders()

    accuracy = 0.0
    for epoch in range(EPOCHS):
        model.train()
        for number, (images, labels) in enumerate(train_loader):
            if number * BATCH_SIZE >= TRAIN_SAMPLES:
                break
            optimizer.zero_grad()
            loss = F.nll_loss(model(images.to(DEVICE)), labels.to(DEVICE))
            loss.backward()
            optimizer.step()

        model.eval()
        correct = seen = 0
        with torch.no_grad():
            for number, (images, labels) in enumerate(valid_loader):
                if number * BATCH_SIZE >= VALID_SAMPLES:
                    break
                correct += (model(images.to(DEVICE)).argmax(1).cpu() == labels).sum().item()
                seen += len(labels)
        accuracy = correct / seen

        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.exceptions.TrialPruned()

    return accuracy


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=100, timeout=600)

    pruned = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.PRUNED])
    print("finished:", len(study.trials), "pruned:", len(pruned))
    print("best:", study.best_trial.value, study.best_trial.params)
