"""What every probe takes and gives."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
