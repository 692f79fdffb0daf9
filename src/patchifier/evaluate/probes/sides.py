"""What every probe takes and gives, what it refuses, and where its chance comes from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.seeding import generator
from patchifier.tasks import Task


@dataclass(frozen=True)
class Sides:
    """Indices of training, validation and test clips.

    Parameters
    ----------
    train, valid, test : ndarray of int
        `valid` may be empty: a protocol that needs some then takes them from `train`, by group.
    groups : ndarray of str, shape (n,)
        Of all clips; clips of one group never stand on two sides.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Probed:
    """Predictions of the test clips, (n_test, C), and the setting that was chosen without them."""

    predictions: np.ndarray
    chosen: dict[str, Any] = field(default_factory=dict)


def check(task: Task, features: np.ndarray, targets: np.ndarray, sides: Sides) -> None:
    """Refuse what no probe can work on.

    Raises
    ------
    RequestError
        If the task is not about clips, features are not finite rows of numbers, lengths differ, a side points outside, two sides
        share a clip, or training or test side is empty.
    """
    if task.kind == "per-frame":
        raise RequestError(
            "this task asks about moments within a clip: a probe of clips takes one-of, many-of or numbers."
        )
    if features.ndim != 2 or not features.shape[1]:
        raise RequestError(
            f"features have shape {features.shape}, expected (clips, size) with at least one column."
        )
    if not len(features) == len(targets) == len(sides.groups):
        raise RequestError(
            f"there are {len(features)} features, {len(targets)} targets and {len(sides.groups)} groups, expected one of each for a clip."
        )
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise RequestError(
            f"features of {len(broken)} clips are not finite numbers, the first is clip {broken[0]}: leave these clips out or embed them again."
        )
    parts = {"train": sides.train, "valid": sides.valid, "test": sides.test}
    for side, chosen in parts.items():
        if side != "valid" and not len(chosen):
            raise RequestError(
                f"the {side} side is empty, expected at least one clip: choose another split."
            )
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(features):
            raise RequestError(
                f"the {side} side points at clips {chosen.min()} to {chosen.max()}, expected 0 to {len(features) - 1}."
            )
    together = np.concatenate([np.asarray(chosen, np.int64) for chosen in parts.values()])
    twice = np.flatnonzero(np.bincount(together) > 1)
    if len(twice):
        raise RequestError(
            f"{len(twice)} clips are named twice by the sides, the first is clip {twice[0]}: a clip has one side, once."
        )


def with_validation(sides: Sides, seed: int) -> Sides:
    """Take whole groups, a tenth of the training clips or just above, as validation side where a split has none.

    Raises
    ------
    RequestError
        If all training clips are of one group.
    """
    if len(sides.valid):
        return sides
    groups = sides.groups[sides.train]
    names = np.unique(groups)
    if len(names) < 2:
        raise RequestError(
            "the split has no validation side and its training clips are of one group: expected at least two groups to take validation from."
        )
    order = generator(seed, "validation", 0, scope="probe/").permutation(names)
    sizes = np.array([(groups == name).sum() for name in order])
    count = min(int(np.searchsorted(sizes.cumsum(), len(groups) / 10)) + 1, len(names) - 1)
    held = np.isin(groups, order[:count])
    return Sides(sides.train[~held], sides.train[held], sides.test, sides.groups)
