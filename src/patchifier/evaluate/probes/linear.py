"""Probes on frozen embeddings: logistic regression for classes and tags, ridge for regression.

The standardiser is fitted on training clips only and applied to all.
"""

import numpy as np

from patchifier import tasks
from patchifier.datasets.splits import Splits, inner_folds
from patchifier.evaluate.probes.protocol import Probed, check
from patchifier.io import Progress, silent
from patchifier.tasks import Task

# Strong regularisation for hundreds of features and tens of clips; the same for every encoder.
LOGISTIC_C = 0.1
RIDGE_ALPHAS = np.logspace(-2, 4, 13)  # chosen by leave-one-out on the training clips
# C, and alpha
STRENGTHS = {kind: np.logspace(-4, 2, 7) for kind in ("one-of", "many-of")} | {
    "numbers": RIDGE_ALPHAS
}
INNER_FOLDS = 5


def linear(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    splits: Splits,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Probed:
    """Logistic or ridge regression whose strength is chosen by validation; for small sets.

    With a validation split, the strength is that which does best there; without, on folds of the
    training clips, by group. Then the probe is fitted again on training and validation clips
    together: on small sets more clips are worth more than a clip held out.

    Logistic regression (C from 1e-4 to 100) for multiclass and multilabel tasks, ridge regression
    (alpha from 0.01 to 10,000) for regression. Parameters and errors are those of
    :func:`patchifier.evaluate.probes.probe`; `seed` has no effect.

    Returns
    -------
    Probed
        `chosen` has the strength, C or alpha, and its validation score.
    """
    check(task, features, targets, splits)
    fitted = np.concatenate([splits.train, splits.valid]).astype(np.int64)
    folds = [(splits.train, splits.valid)]
    if not len(splits.valid):
        folds = inner_folds(splits, count=INNER_FOLDS)
    strengths, figures = STRENGTHS[task.kind].tolist(), {}
    for strength in strengths:
        figures[strength] = _score(task, features, targets, folds, strength)
        progress(len(figures), len(strengths), f"strength {strength:.3g}")
    # The stronger of equals: the smallest C, the largest alpha.
    best = max(
        figures,
        key=lambda strength: (figures[strength], strength if task.kind == "numbers" else -strength),
    )
    predictions = fit_predict(
        task, features[fitted], targets[fitted], features[splits.test], strength=best
    )
    return Probed(
        predictions,
        {"alpha" if task.kind == "numbers" else "C": best, f"valid_{task.metric}": figures[best]},
    )


def _score(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    strength: float,
) -> float:
    """Score a strength on the held-out clips of all folds together.

    Strengths without a score are ranked last.
    """
    parts = [
        fit_predict(task, features[fitted], targets[fitted], features[held], strength=strength)
        for fitted, held in folds
    ]
    value = tasks.main_score(
        task, targets[np.concatenate([held for _, held in folds])], np.concatenate(parts)
    )
    return value if np.isfinite(value) else -np.inf


def fit_predict(
    task: Task,
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    *,
    strength: float | None = None,
) -> np.ndarray:
    """Fit a probe on training features and predict test clips.

    Parameters
    ----------
    task : Task
        Multiclass and multilabel: logistic regression (C = 0.1, one against the rest for tags);
        regression: ridge.
    train : ndarray, shape (n, E)
        Features of training clips.
    targets : ndarray, shape (n, ...)
        As :func:`patchifier.tasks.encode_targets` gives them.
    test : ndarray, shape (m, E)
        Features of test clips.
    strength : float
        C or alpha; by default C is 0.1, and alpha is chosen by leave-one-out.

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
        return (
            RidgeCV(RIDGE_ALPHAS if strength is None else [strength])
            .fit(train, targets)
            .predict(test)
            .reshape(len(test), -1)
        )
    strength = LOGISTIC_C if strength is None else strength
    if task.kind == "one-of":
        if len(np.unique(targets)) == 1:  # one class only
            return majority(task, targets, len(test))
        model = LogisticRegression(C=strength, max_iter=5000).fit(train, targets)
        predictions = np.zeros((len(test), len(task.names)))
        predictions[:, model.classes_] = model.predict_proba(test)
        return predictions
    columns = []
    for column in targets.T:
        constant = column.min() == column.max()
        tag = None if constant else LogisticRegression(C=strength, max_iter=5000).fit(train, column)
        columns.append(
            np.full(len(test), column[0]) if tag is None else tag.predict_proba(test)[:, 1]
        )
    return np.stack(columns, axis=1)


def name(task: Task) -> str:
    """Name of the probe's model in tables: "ridge" for regression, else "logistic"."""
    return "ridge" if task.kind == "numbers" else "logistic"


def majority(task: Task, targets: np.ndarray, count: int) -> np.ndarray:
    """Proportions of classes or tags in the training targets, or means, repeated: (count, C)."""
    shares = (
        np.bincount(targets, minlength=len(task.names)) / len(targets)
        if task.kind == "one-of"
        else targets.mean(0)
    )
    return np.tile(shares, (count, 1))
