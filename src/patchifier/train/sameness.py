"""Predictions that are the same for every clip, or the same as those of another model."""

from collections.abc import Sequence

import numpy as np

from patchifier.tasks import Task


def constant_prediction(
    task: Task, targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray]
) -> str:
    """Say what models that learnt nothing predict for every clip; empty if one has learnt.

    Parameters
    ----------
    task : Task
        The task.
    targets : sequence of ndarray, shape (n, ...)
        Of the test clips of each model, as :func:`patchifier.tasks.encode_targets` gives them.
    predictions : sequence of ndarray, shape (n, C)
        Of each model.

    Examples
    --------
    >>> task = Task("one-of", ("jazz", "rock"))
    >>> constant_prediction(task, [np.array([0, 1])], [np.array([[0.6, 0.4], [0.7, 0.3]])])
    'every clip is called jazz'
    """
    pairs = zip(targets, predictions, strict=True)
    if not all(_is_constant(task, *pair) for pair in pairs):
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
    """Whether predictions (n, C) are one class, or one value of each output, and targets are not.

    Numbers are equal within a hundredth of the targets' deviation.
    """
    if not np.ptp(targets, axis=0).any():
        return False
    if task.kind == "one-of":
        return not np.ptp(predictions.argmax(1))
    spread = 0.01 * targets.std(0) if task.kind == "numbers" else 1e-6
    return bool((np.ptp(predictions, axis=0) <= spread).all())


def equal_predictions(task: Task, one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether all runs of two models predict the same: classes, or values (n, C).

    Examples
    --------
    >>> task = Task("one-of", ("jazz", "rock"))
    >>> equal_predictions(task, [np.array([[0.6, 0.4]])], [np.array([[0.9, 0.1]])])
    True
    """

    def decided(run: np.ndarray) -> np.ndarray:
        return run.argmax(1) if task.kind == "one-of" else run

    first, *others = map(decided, (*one, *other))
    return all(np.array_equal(first, run) for run in others)
