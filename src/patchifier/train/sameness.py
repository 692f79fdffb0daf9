"""Predictions that are the same for every clip, or the same as those of another model."""

import itertools
from collections.abc import Sequence

import numpy as np

from patchifier.tasks import Task

NOISE = 1e-5  # share of a number within which numbers are equal, for float32
HARDLY = 0.01  # share of the targets' deviation that is no answer of its own


def constant_prediction(
    task: Task, targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray]
) -> str:
    """Say what models that learnt nothing predict for every clip; empty if one has learnt.

    Also empty without clips, for targets that are all the same, and where a prediction is not
    finite. Each model has its test clips: targets (n, ...) and predictions (n, C).

    Examples
    --------
    >>> task = Task("one-of", ("jazz", "rock"))
    >>> constant_prediction(task, [np.array([0, 1])], [np.array([[0.6, 0.4], [0.9, 0.1]])])
    'every clip is called jazz'
    """
    pairs = list(zip(targets, predictions, strict=True))
    if not pairs or not all(_is_constant(task, *pair) for pair in pairs):
        return ""
    if task.kind == "one-of":
        named = dict.fromkeys(task.names[int(run[0].argmax())] for run in predictions)
        return f"every clip is called {' or '.join(named)}"
    if task.kind == "many-of":
        return "every clip is given the same probabilities"
    means = np.mean([run.mean(0) for run in predictions], axis=0)
    values = [f"{name} {value:.3g}" for name, value in zip(task.names, means, strict=True)]
    return f"every clip is given about {', '.join(values)}"


def _is_constant(task: Task, targets: np.ndarray, predictions: np.ndarray) -> bool:
    """Whether predictions (n, C) hardly vary where targets do.

    Of a multiclass task the class never changes, however sure of it each answer is. Probabilities
    of a multilabel task are equal but for rounding, since its metrics rank them.
    Numbers vary by less than a hundredth of the usual deviation of their targets: the median, so
    that no outlier makes the others look alike.
    """
    if not len(targets) or not np.isfinite(predictions).all():
        return False
    varied = np.ptp(targets, axis=0) > 0
    if not varied.any():
        return False
    if task.kind == "one-of":
        return not np.ptp(predictions.argmax(1))
    predictions = predictions[:, varied]
    limits = NOISE * np.abs(predictions).mean(0)
    if task.kind == "numbers":
        deviations = np.abs(targets - np.median(targets, axis=0))[:, varied]
        limits = np.maximum(limits, HARDLY * np.median(deviations, axis=0))
    return bool((np.ptp(predictions, axis=0) <= limits).all())


def equal_predictions(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether two models predict the same values (n, C), but for rounding.

    Runs are compared in pairs; of different numbers of runs, each with each.
    Equal classes are not enough, since other metrics use the probabilities. Nor is one clip.

    Examples
    --------
    >>> one, other = np.array([[0.6, 0.4], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> equal_predictions([one], [one]), equal_predictions([one], [other])
    (True, False)
    """
    pairs = list(zip(one, other)) if len(one) == len(other) else list(itertools.product(one, other))
    return all(
        len(run) > 1 and run.shape == same.shape and np.allclose(run, same, rtol=NOISE, atol=0)
        for run, same in pairs
    )
