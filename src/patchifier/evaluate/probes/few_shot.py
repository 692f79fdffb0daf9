"""Few-shot probes: logistic regression on a few labelled clips of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.evaluate.probes.heads import moments
from patchifier.evaluate.probes.linear import LOGISTIC_C
from patchifier.evaluate.probes.protocol import check
from patchifier.io import Progress, silent
from patchifier.seeding import generator
from patchifier.statistics import interval
from patchifier.tasks import Task


def few_shot(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    splits: Splits,
    *,
    shots: Sequence[int] = (1, 2, 5, 10),
    draws: int = 50,
    seed: int = 0,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Test logistic regression on k clips of each class, drawn repeatedly from the training split.

    A class's clips are drawn from different groups as far as there are so many. The standardiser is
    fitted on the features of all training clips: it needs no label. Draws depend on seed, training
    split and its targets alone, so that encoders are compared on the same ones.

    Parameters
    ----------
    task : Task
        Multiclass.
    features : ndarray, shape (n, E)
        Of all clips.
    targets : ndarray, shape (n,)
        As :func:`patchifier.tasks.encode_targets` gives them.
    splits : Splits
        Validation clips are not used; C is fixed at 0.1.
    shots : sequence of int
        Clips of each class.
    draws : int
        For each of `shots`.
    seed : int
        Of the draws.
    progress : callable
        Called with draws done, draws in all, and a note, after every draw.

    Returns
    -------
    list of dict
        For each of `shots`: "k", "metric", "value" (mean over draws), "low" and "high" (between
        which 95 % of the draws lie) and "draws".

    Raises
    ------
    RequestError
        If the task is of another kind, or a class of the task has fewer training clips than the
        largest of `shots`.

    Examples
    --------
    >>> task, rng = Task("one-of", ("low", "high")), np.random.default_rng(0)
    >>> targets = np.arange(40) % 2
    >>> features = rng.normal(size=(40, 4)) + 4 * targets[:, None]
    >>> index = np.arange(40)
    >>> splits = Splits(index[:20], index[:0], index[20:], groups=index.astype(str))
    >>> [row["k"] for row in few_shot(task, features, targets, splits, shots=(1, 2), draws=3)]
    [1, 2]
    """
    if task.kind != "one-of":
        raise RequestError(
            "few-shot draws clips of each class, so it takes one-of tasks: this one is "
            f"{task.kind}."
        )
    if not shots or min(shots) < 1 or draws < 1:
        raise RequestError(
            f"few-shot has {draws} draws of {tuple(shots)} clips, expected at least one of at "
            "least one."
        )
    check(task, features, targets, splits)
    if len(task.names) < 2:
        raise RequestError(f"the task has {len(task.names)} class, expected at least two.")
    counts = np.bincount(targets[splits.train], minlength=len(task.names))
    if counts.min() < max(shots):
        raise RequestError(
            f"class {task.names[int(counts.argmin())]!r} has {counts.min()} training clips, "
            f"expected at least {max(shots)}: ask for fewer shots, or leave the class out."
        )
    mean, scale = moments(np.asarray(features, np.float64)[splits.train])
    scaled, rows = (features - mean) / scale, []
    for number, k in enumerate(shots):
        figures = []
        for draw in range(draws):
            rng = generator(seed, f"few-shot {k}", draw, scope="probe/")
            figures.append(_one_draw(task, scaled, targets, splits, k, rng))
            progress(number * draws + draw + 1, len(shots) * draws, f"{k} clips of each class")
        low, high = interval(np.array(figures))
        row = {"k": k, "metric": task.metric, "value": float(np.mean(figures))}
        rows.append(row | {"low": low, "high": high, "draws": draws})
    return rows


def _one_draw(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    splits: Splits,
    k: int,
    rng: np.random.Generator,
) -> float:
    from sklearn.linear_model import LogisticRegression

    chosen = np.concatenate(
        [
            draw_clips(splits.train[targets[splits.train] == index], splits.groups, k, rng)
            for index in range(len(task.names))
        ]
    )
    model = LogisticRegression(C=LOGISTIC_C, max_iter=5000).fit(features[chosen], targets[chosen])
    return tasks.main_score(task, targets[splits.test], model.predict_proba(features[splits.test]))


def draw_clips(
    clips: np.ndarray, groups: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw k of a class's clips.

    First one of every group, in random order, then a second of every group, and so on.
    """
    order = rng.permutation(clips)
    seen: dict[Any, int] = {}
    turns = []
    for clip in order:
        seen[groups[clip]] = seen.get(groups[clip], 0) + 1
        turns.append(seen[groups[clip]])
    return order[np.argsort(turns, kind="stable")[:k]]
