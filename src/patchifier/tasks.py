"""Kinds of task: targets, loss, predictions and metrics.

Code branches on the kind of a task, never on a data set's name.

==========  ===========  =========================  =======================  =======================
kind        that is      target of a clip           loss                     metric (main one first)
==========  ===========  =========================  =======================  =======================
one-of      multiclass   a name                     cross-entropy            accuracy, or key score
many-of     multilabel   a list of names            binary cross-entropy     macro ROC-AUC, macro AP
numbers     regression   a number for each name     MSE, standardised        R2: mean, and for each
                                                                             name
per-frame   frame-wise   rows [start_s, end_s,      cross-entropy of frames  beats, chords or
                                                                             boundaries
                         label]                                              (mir_eval)
==========  ===========  =========================  =======================  =======================

The kinds are stored in caches and checkpoints. Frame-wise tasks are evaluated by
:mod:`patchifier.evaluate.frames`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from patchifier import statistics
from patchifier.config import RequestError
from patchifier.io import listed

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["one-of", "many-of", "numbers", "per-frame"]
KIND_NAMES: dict[str, Kind] = {
    "multiclass": "one-of",
    "multilabel": "many-of",
    "regression": "numbers",
    "frame-wise": "per-frame",
}
METRICS: dict[Kind, tuple[str, ...]] = {
    "one-of": ("accuracy", "key_score"),
    "many-of": ("roc_auc",),
    "numbers": ("r2",),
    "per-frame": ("beats", "chords", "boundaries"),
}


@dataclass(frozen=True)
class Task:
    """What is predicted of a clip: kind of target, names of the outputs, and main metric.

    Parameters
    ----------
    kind : "one-of", "many-of", "numbers" or "per-frame"
        Multiclass, multilabel or regression; "per-frame" is frame-wise.
    names : tuple of str
        Classes, tags, or the names of the numbers, in the order of the model's outputs.
    metric : str
        The main metric, one of :data:`METRICS`; the first of its kind by default. Higher is better.

    Examples
    --------
    >>> task = Task("many-of", ("calm", "vocal"))
    >>> task.metric, task.kind_name
    ('roc_auc', 'multilabel')
    """

    kind: Kind
    names: tuple[str, ...]
    metric: str = ""

    def __post_init__(self) -> None:
        """Set the metric of the kind where none is given."""
        if not self.metric:
            object.__setattr__(self, "metric", METRICS[self.kind][0])
        if self.metric not in METRICS[self.kind]:
            raise RequestError(
                f"a task of the kind {self.kind!r} has no metric {self.metric!r}, expected one of "
                f"{', '.join(METRICS[self.kind])}."
            )

    @property
    def kind_name(self) -> str:
        """Name of the kind: multiclass, multilabel, regression or frame-wise."""
        return next(name for name, kind in KIND_NAMES.items() if kind == self.kind)


def infer(targets: Sequence[Any]) -> Task | None:
    """Infer the task from the targets of all clips: names, lists of names, or rows of numbers.

    None without targets.

    Examples
    --------
    >>> infer(["rock", "jazz", "rock"]).names
    ('jazz', 'rock')
    >>> infer([["calm"], ["calm", "vocal"]]).kind
    'many-of'
    """
    known = [target for target in targets if target is not None]
    if not known:
        return None
    if all(isinstance(target, str) for target in known):
        return Task("one-of", tuple(sorted(set(known))))
    if all(isinstance(target, int | float) for target in known):
        return Task("numbers", ("value",))
    if all(isinstance(target, list | tuple) for target in known):
        parts = [part for target in known for part in target]
        if all(isinstance(part, str) for part in parts):
            return Task("many-of", tuple(sorted(set(parts))))
        lengths = {len(target) for target in known}
        if len(lengths) == 1 and all(isinstance(part, int | float) for part in parts):
            return Task("numbers", tuple(f"value_{index}" for index in range(lengths.pop())))
    raise RequestError(
        "targets are a mixture, expected for every clip a name, a list of names, or equally many "
        "numbers. In a manifest, a column 'task' says which: multiclass, multilabel or regression."
    )


def alike(names: Iterable[str]) -> list[str]:
    """Names that differ in case or spaces alone, in a text for each such set.

    Examples
    --------
    >>> alike(["Calm", "calm ", "loud", "calm"])
    ["'Calm', 'calm ', 'calm'"]
    """
    found: dict[str, dict[str, None]] = {}
    for name in names:
        found.setdefault("".join(name.casefold().split()), {})[name] = None
    return [", ".join(map(repr, same)) for same in found.values() if len(same) > 1]


def encode_targets(task: Task, targets: Sequence[Any]) -> np.ndarray:
    """Targets as numbers.

    Returns
    -------
    ndarray
        (n,) int64 class indices; (n, C) float32 zeros and ones; or (n, C) float32 values.

    Raises
    ------
    RequestError
        If a clip has no target, or a target that is not one of the task's names.

    Examples
    --------
    >>> task = infer(["rock", "jazz"])
    >>> encode_targets(task, ["rock", "jazz", "rock"])
    array([1, 0, 1])
    """
    if task.kind == "per-frame":
        raise RequestError(
            "a frame-wise task has no target for a whole clip: evaluate it with 'patchifier "
            "compare'."
        )
    if any(target is None for target in targets):
        raise RequestError(
            f"{sum(target is None for target in targets)} of {len(targets)} clips have no target, "
            "expected one for each."
        )
    for target in targets:
        _check_target(task, target)
    index = {name: number for number, name in enumerate(task.names)}
    if task.kind == "one-of":
        return np.array([index[target] for target in targets], np.int64)
    if task.kind == "many-of":
        rows = np.zeros((len(targets), len(index)), np.float32)
        for row, target in zip(rows, targets, strict=True):
            row[[index[name] for name in target]] = 1
        return rows
    return np.array(targets, np.float32).reshape(len(targets), len(index))


def _check_target(task: Task, target: Any) -> None:
    """Refuse a target that is not of the task's kind or not among its names."""
    if task.kind == "numbers":
        values = target if isinstance(target, list | tuple) else [target]
        if len(values) != len(task.names) or not all(
            isinstance(value, int | float) and math.isfinite(value) for value in values
        ):
            raise RequestError(
                f"target {target!r} does not fit the task, expected {len(task.names)} numbers: "
                f"{', '.join(task.names)}."
            )
        return
    if isinstance(target, str) != (task.kind == "one-of") or not isinstance(
        target, str | list | tuple
    ):
        raise RequestError(
            f"target {target!r} does not fit the task, expected "
            f"{'a name' if task.kind == 'one-of' else 'a list of names'}."
        )
    for name in [target] if isinstance(target, str) else target:
        if name not in task.names:
            raise RequestError(
                f"target {name!r} is not one of the task's names: {', '.join(task.names)}."
            )


def loss(task: Task) -> "Callable[[Tensor, Tensor], Tensor]":
    """Loss of outputs (B, C) against encoded targets, numbers being standardised."""
    from torch.nn import functional

    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "one-of": functional.cross_entropy,
        "many-of": functional.binary_cross_entropy_with_logits,
        "numbers": functional.mse_loss,
    }
    return losses[task.kind]


def activate(task: Task, outputs: "Tensor") -> "Tensor":
    """Probabilities or values of outputs (..., C); they are averaged over windows of a clip."""
    if task.kind == "one-of":
        return outputs.softmax(-1)
    return outputs.sigmoid() if task.kind == "many-of" else outputs


def scores(task: Task, targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Compute the metrics of a whole test set; R2 is never averaged over batches.

    Parameters
    ----------
    task : Task
        The task.
    targets : ndarray
        As :func:`encode_targets` gives them.
    predictions : ndarray, shape (n, C)
        Probabilities or values.

    Returns
    -------
    dict
        The main metric first. A tag that is present in all clips or in none has no ROC-AUC, and a
        number that is the same for all clips has no R2: each is left out of the mean
        (:func:`undefined_note` names them). Without any other the score is NaN.

    Examples
    --------
    >>> task = infer(["rock", "jazz"])
    >>> scores(task, np.array([1, 0]), np.array([[0.2, 0.8], [0.4, 0.6]]))
    {'accuracy': 0.5}
    """
    main = {task.metric: main_score(task, targets, predictions)}
    if task.kind == "many-of":
        from sklearn import metrics

        varied, precision = _varied(targets), math.nan
        if varied.any():
            precision = metrics.average_precision_score(targets[:, varied], predictions[:, varied])
        return main | {"average_precision": float(precision)}
    if task.kind == "numbers":
        each = zip(task.names, _r2(targets, predictions), strict=True)
        return main | {f"r2_{name}": float(value) for name, value in each}
    return main | {"accuracy": float((predictions.argmax(1) == targets).mean())}


def main_score(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Compute the main metric alone; fast, because a bootstrap calls it thousands of times."""
    if task.kind == "one-of":
        chosen = predictions.argmax(1)
        if task.metric == "accuracy":
            return float((chosen == targets).mean())
        return float(key_score_matrix(task.names)[targets, chosen].mean())
    varied = _varied(targets)
    if not varied.any():
        return math.nan
    targets, predictions = targets[:, varied], predictions[:, varied]
    if task.kind == "numbers":
        return float(np.mean(_r2(targets, predictions)))
    from scipy import stats

    targets = targets.astype(bool)
    ranks = stats.rankdata(predictions, axis=0)  # (n, C), ties share their mean rank
    positive = targets.sum(0)
    # Mann and Whitney's U over the number of pairs is the area under the ROC curve.
    areas = ((ranks * targets).sum(0) - positive * (positive + 1) / 2) / (
        positive * (len(targets) - positive)
    )
    return float(areas.mean())


@functools.lru_cache(maxsize=8)
def key_score_matrix(names: tuple[str, ...]) -> np.ndarray:
    """MIREX's weighted score of every estimated key (column) against every true one (row): (C, C).

    1 for the key itself, 0.5 a fifth above in the same mode, 0.3 for the relative, 0.2 for the
    parallel key, else 0. A name that is not a key such as "Eb minor" is refused.
    """
    from mir_eval import key

    try:
        return np.array(
            [[key.weighted_score(true, estimate) for estimate in names] for true in names]
        )
    except ValueError as error:
        raise RequestError(f"{error} Expected keys such as 'C major' and 'Eb minor'.") from error


def undefined_note(task: Task, targets: np.ndarray) -> str:
    """Name the tags or numbers that have no score on these clips; empty if there are none.

    Examples
    --------
    >>> undefined_note(Task("numbers", ("bpm",)), np.array([[120.0], [120.0]]))
    'bpm: the same for all 2 tested clips, so there is no R2. It is left out of the mean.'
    """
    if task.kind not in ("many-of", "numbers"):
        return ""
    names = [task.names[index] for index in np.flatnonzero(~_varied(targets))]
    if not names:
        return ""
    what = "It is" if len(names) == 1 else "They are"
    metric = "R2" if task.kind == "numbers" else "ROC-AUC"
    return (
        f"{listed(names, 5)}: the same for all {len(targets)} tested clips, so there is no "
        f"{metric}. {what} left out of the mean."
    )


def _varied(targets: np.ndarray) -> np.ndarray:
    """Tags or numbers (n, C) that are not the same for all clips: (C,) bool."""
    return targets.max(0) != targets.min(0)


def _r2(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """R2 of each column, 1 - SSE / SST; NaN for a constant one, where scikit-learn has 0 or 1."""
    squared = ((targets - predictions).astype(np.float64) ** 2).sum(0)
    total = ((targets - targets.mean(0, dtype=np.float64)) ** 2).sum(0)
    found = np.full(targets.shape[1], math.nan)
    np.divide(squared, total, out=found, where=_varied(targets))
    return 1 - found


def evaluate(
    task: Task, targets: np.ndarray, predictions: Sequence[np.ndarray], groups: Sequence[str]
) -> statistics.Score:
    """Compute the main metric, mean over runs, with an interval by bootstrap over groups.

    Parameters
    ----------
    task : Task
        The task.
    targets : ndarray, shape (n, ...)
        As :func:`encode_targets` gives them.
    predictions : sequence of ndarray, shape (n, C)
        Predictions of each run (seed).
    groups : sequence of str, length n
        Group of each clip.

    Examples
    --------
    >>> task = Task("one-of", ("jazz", "rock"))
    >>> predictions = np.eye(2)[[0, 1, 1, 1]]
    >>> score = evaluate(task, np.array([0, 1, 0, 1]), [predictions], ["a", "b", "c", "d"])
    >>> score.value, score.low < score.value < score.high
    (0.75, True)
    """
    return statistics.estimate(task.metric, groups, mean_score(task, targets, predictions))


def mean_score(
    task: Task, targets: np.ndarray, predictions: Sequence[np.ndarray]
) -> statistics.Statistic:
    """Main metric as a statistic of clips, mean over runs."""

    def statistic(indices: np.ndarray) -> float:
        return float(
            np.mean([main_score(task, targets[indices], run[indices]) for run in predictions])
        )

    return statistic
