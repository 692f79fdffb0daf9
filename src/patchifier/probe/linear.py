"""Probes on frozen embeddings: logistic regression for names, ridge for numbers.

The standardiser is fitted on training clips only and applied to all.
"""

from collections.abc import Sequence

import numpy as np

from patchifier.tasks import Task

LOGISTIC_C = 0.1  # strong, for hundreds of features and tens of clips; fixed beforehand, the same for every encoder
RIDGE_ALPHAS = np.logspace(-2, 4, 13)  # chosen by leave-one-out on the training clips


def fit_predict(task: Task, train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Fit a probe on training features and predict test clips.

    Parameters
    ----------
    task : Task
        One-of and many-of: logistic regression (C = 0.1, one against the rest for tags); numbers: ridge.
    train : ndarray, shape (n, E)
        Features of training clips.
    targets : ndarray, shape (n, ...)
        As :func:`patchifier.tasks.encode_targets` gives them.
    test : ndarray, shape (m, E)
        Features of test clips.

    Returns
    -------
    ndarray, shape (m, C)
        Probabilities, or values.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if task.kind == "numbers":
        return RidgeCV(RIDGE_ALPHAS).fit(train, targets).predict(test).reshape(len(test), -1)
    if task.kind == "one-of":
        model = LogisticRegression(C=LOGISTIC_C, max_iter=5000).fit(train, targets)
        predictions = np.zeros((len(test), len(task.names)))
        predictions[:, model.classes_] = model.predict_proba(test)
        return predictions
    columns = []
    for column in targets.T:
        constant = column.min() == column.max()
        tag = None if constant else LogisticRegression(C=LOGISTIC_C, max_iter=5000).fit(train, column)
        columns.append(np.full(len(test), column[0]) if tag is None else tag.predict_proba(test)[:, 1])
    return np.stack(columns, axis=1)


def name(task: Task) -> str:
    """What the probe of a task is called in tables."""
    return "ridge" if task.kind == "numbers" else "logistic"


def majority(task: Task, targets: np.ndarray, count: int) -> np.ndarray:
    """Share of each class or tag among training targets, or the mean of each number, for every test clip: (count, C)."""
    shares = np.bincount(targets, minlength=len(task.names)) / len(targets) if task.kind == "one-of" else targets.mean(0)
    return np.tile(shares, (count, 1))


def cross_validate(task: Task, features: np.ndarray, targets: np.ndarray, folds: Sequence[int]) -> np.ndarray:
    """Predict each fold from a probe fitted on the others: (n, C)."""
    return _over_folds(task, targets, folds, lambda train, test: fit_predict(task, features[train], targets[train], features[test]))


def cross_validate_majority(task: Task, targets: np.ndarray, folds: Sequence[int]) -> np.ndarray:
    """Predict each fold by the majority, or the mean, of the others: (n, C)."""
    return _over_folds(task, targets, folds, lambda train, test: majority(task, targets[train], int(test.sum())))


def _over_folds(task: Task, targets: np.ndarray, folds: Sequence[int], predict):  # type: ignore[no-untyped-def]
    predictions = np.zeros((len(targets), len(task.names)))
    for fold in sorted(set(folds)):
        test = np.asarray(folds) == fold
        predictions[test] = predict(~test, test)
    return predictions
