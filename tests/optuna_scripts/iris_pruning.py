"""A linear classifier trained step by step on the irises; trials that fall behind are pruned.

After the idea of Optuna's example for pruning.
"""

import numpy as np
import optuna
import sklearn.datasets
import sklearn.linear_model
import sklearn.model_selection

IRIS = sklearn.datasets.load_iris()


def objective(trial: optuna.Trial) -> float:
    classes = list(range(len(IRIS.target_names)))
    x_train, x_valid, y_train, y_valid = sklearn.model_selection.train_test_split(
        IRIS.data, IRIS.target, test_size=0.25, random_state=0
    )
    alpha = trial.suggest_float("alpha", 1e-5, 1e-1, log=True)
    classifier = sklearn.linear_model.SGDClassifier(alpha=alpha, random_state=0)

    error = 1.0
    for step in range(20):
        classifier.partial_fit(x_train, y_train, classes=np.array(classes))
        error = 1.0 - classifier.score(x_valid, y_valid)
        trial.report(error, step)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return error


if __name__ == "__main__":
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=12)

    states = [trial.state for trial in study.trials]
    print("pruned:", states.count(optuna.trial.TrialState.PRUNED))
    print("best:", study.best_trial.params, study.best_value)
