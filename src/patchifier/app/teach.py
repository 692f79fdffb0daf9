"""Train a head on the stored vectors of a few songs of each label, and say how well it predicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.heads import Head, require_names, unit, unstandardised
from patchifier.statistics import wilson

MOST_LABELS = 10
REGULARISATION_C = 0.1  # of the logistic regression, on standardised vectors
ENOUGH, FOLDS = 8, 5  # songs of each label that allow cross-validation, and its folds
N_DOUBTFUL = 12


@dataclass(frozen=True)
class Taught:
    """A trained head and its cross-validation.

    Attributes
    ----------
    head : Head
        Trained on all labelled songs.
    accuracy : float
        Share of labelled songs whose label was predicted by a head that was trained without them.
    interval : tuple of float
        95 % interval of the accuracy (Wilson).
    n : int
        Number of labelled songs.
    method : str
        "5-fold cross-validation" or "leave one out".
    enough : bool
        Whether there are eight songs of every label.
    note : str
        What to keep in mind; empty for nothing.
    confusion : ndarray, shape (C, C), int
        Songs by label (row) and prediction (column).
    probabilities : ndarray, shape (n of the library, C), float32
        Of every song of the library.
    doubtful : tuple of int
        Rows of the library without a label whose two most probable labels are nearest, first the
        most doubtful.
    """

    head: Head
    accuracy: float
    interval: tuple[float, float]
    n: int
    method: str
    enough: bool
    note: str
    confusion: np.ndarray
    probabilities: np.ndarray
    doubtful: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """What is known about the head, without what concerns single songs."""
        return {
            "names": list(self.head.names),
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "n": self.n,
            "method": self.method,
            "enough": self.enough,
            "note": self.note,
            "confusion": self.confusion.tolist(),
        }


def teach(
    vectors: np.ndarray, labels: Mapping[str, Sequence[int]], *, identity: str, model: str
) -> Taught:
    """Train a head on labelled rows of a library.

    Parameters
    ----------
    vectors : ndarray, shape (n, E)
        One row for each song of the library. They are scaled to length 1, and their mean and
        deviation standardise them.
    labels : mapping of str to sequence of int
        Rows with each label; a song has one label.
    identity, model : str
        Of the model that made the vectors.

    Returns
    -------
    Taught

    Raises
    ------
    RequestError
        For fewer than two or more than ten labels, a label with fewer than two songs, or a song
        with two labels.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> vectors = rng.normal(size=(40, 4)) + 3 * (np.arange(40) < 20)[:, None]
    >>> labels = {"high": range(10), "low": range(20, 30)}
    >>> taught = teach(vectors, labels, identity="x", model="patchifier-base")
    >>> taught.method, taught.accuracy > 0.8, taught.head.names
    ('5-fold cross-validation', True, ('high', 'low'))
    """
    names, rows, targets = _examples(labels, len(vectors))
    vectors = unit(vectors)
    mean, deviation = vectors.mean(0), vectors.std(0)
    scale = 1 / np.maximum(deviation, 1e-6 * max(1e-12, float(deviation.max())))
    examples = (vectors[rows] - mean) * scale  # (labelled, E)
    fewest = int(np.bincount(targets).min())
    enough = fewest >= ENOUGH
    predicted = _held_out(examples, targets, FOLDS if enough else None)
    right = int((predicted == targets).sum())
    weight, bias = _fit(examples, targets, len(names))
    facts = {"songs": {name: len(labels[name]) for name in names}}
    head = Head(names, *unstandardised(weight, bias, mean, scale), identity, model, facts)
    probabilities = head.probabilities(vectors)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (targets, predicted), 1)
    return Taught(
        head,
        right / len(targets),
        wilson(right, len(targets)),
        len(targets),
        f"{FOLDS}-fold cross-validation" if enough else "leave one out",
        enough,
        "" if enough else _too_few(names, targets),
        confusion,
        probabilities,
        _doubtful(probabilities, rows),
    )


def _examples(
    labels: Mapping[str, Sequence[int]], n_songs: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of the labels, rows of the labelled songs, and the number of each one's label."""
    names = tuple(labels)
    if len(names) > 1:
        require_names(names)
    if not 2 <= len(names) <= MOST_LABELS:
        raise RequestError(
            f"there are {len(names)} labels, expected 2 to {MOST_LABELS}: add a label, or remove "
            "some."
        )
    for name in names:
        if len(labels[name]) < 2:
            raise RequestError(
                f"the label {name!r} has {len(labels[name])} songs, expected at least 2: add one."
            )
    rows = np.concatenate([np.asarray(list(labels[name]), int) for name in names])
    if len(np.unique(rows)) < len(rows):
        raise RequestError("a song has two labels, or one twice: keep one.")
    if rows.min() < 0 or rows.max() >= n_songs:
        raise RequestError("a labelled song is not in this library: remove it from its label.")
    return names, rows, np.repeat(np.arange(len(names)), [len(labels[name]) for name in names])


def _held_out(examples: np.ndarray, targets: np.ndarray, folds: int | None) -> np.ndarray:
    """Predicted labels of examples, each by a head that was trained without it."""
    from sklearn.model_selection import LeaveOneOut, StratifiedKFold

    splitter = LeaveOneOut()
    if folds:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    predicted = np.zeros_like(targets)
    for train, test in splitter.split(examples, targets):
        weight, bias = _fit(examples[train], targets[train], int(targets.max()) + 1)
        predicted[test] = (examples[test] @ weight.T + bias).argmax(1)
    return predicted


def _fit(examples: np.ndarray, targets: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, E) and bias (C,) of a multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    # labels weigh alike, however many songs each has
    model = LogisticRegression(C=REGULARISATION_C, class_weight="balanced", max_iter=1000)
    model.fit(examples, targets)
    if n_labels == 2:  # one row of weights: the logit of the second label
        half_weight, half_bias = model.coef_[0] / 2, model.intercept_[0] / 2
        return np.stack([-half_weight, half_weight]), np.array([-half_bias, half_bias])
    return model.coef_, model.intercept_


def _too_few(names: Sequence[str], targets: np.ndarray) -> str:
    counts = np.bincount(targets, minlength=len(names))
    small = ", ".join(f"{name} {count}" for name, count in zip(names, counts) if count < ENOUGH)
    return (
        f"Too few songs to say how well this works ({small}): give at least {ENOUGH} of each label."
    )


def _doubtful(probabilities: np.ndarray, labelled: np.ndarray) -> tuple[int, ...]:
    """Rows without a label, by the difference of their two largest probabilities."""
    two = np.sort(probabilities, axis=1)[:, -2:]
    margin = two[:, 1] - two[:, 0]
    margin[labelled] = math.inf
    order = np.argsort(margin, kind="stable")[:N_DOUBTFUL]
    return tuple(int(row) for row in order if math.isfinite(margin[row]))
