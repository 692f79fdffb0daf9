"""What every probe returns, and which inputs it refuses."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.tasks import Task


@dataclass(frozen=True)
class Probed:
    """Predictions of the test clips, (n_test, C), and the setting that was chosen without them.

    Examples
    --------
    >>> found = Probed(np.array([[0.9, 0.1], [0.2, 0.8]]), {"C": 1.0})
    >>> found.predictions.argmax(axis=1).tolist(), found.chosen
    ([0, 1], {'C': 1.0})
    """

    predictions: np.ndarray
    chosen: dict[str, Any] = field(default_factory=dict)


def check(task: Task, features: np.ndarray, targets: np.ndarray, splits: Splits) -> None:
    """Refuse inputs that no probe can work on."""
    if task.kind == "per-frame":
        raise RequestError(
            "the task is frame-wise: a probe of clips takes multiclass, multilabel or regression "
            "tasks."
        )
    if features.ndim != 2 or not features.shape[1]:
        raise RequestError(
            f"features have shape {features.shape}, expected (clips, size) with at least one "
            "column."
        )
    if not len(features) == len(targets) == len(splits.groups):
        raise RequestError(
            f"there are {len(features)} features, {len(targets)} targets and {len(splits.groups)} "
            "groups, expected one of each for a clip."
        )
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise RequestError(
            f"features of {len(broken)} clips are not finite numbers, the first is clip "
            f"{broken[0]}: leave these clips out or embed them again."
        )
    parts = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    for split, chosen in parts.items():
        if split != "valid" and not len(chosen):
            raise RequestError(
                f"the {split} split is empty, expected at least one clip: choose another split."
            )
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(features):
            raise RequestError(
                f"the {split} split has clips {chosen.min()} to {chosen.max()}, expected 0 to "
                f"{len(features) - 1}."
            )
    together = np.concatenate([np.asarray(chosen, np.int64) for chosen in parts.values()])
    twice = np.flatnonzero(np.bincount(together) > 1)
    if len(twice):
        raise RequestError(
            f"{len(twice)} clips are listed twice in the splits, the first is clip {twice[0]}: a "
            "clip is in one split, once."
        )
