"""Statistics of an evaluation.

Bootstrap over groups, paired differences, p values, Holm's correction.

A statistic is a function of indices of clips (with repetition) that returns a number. The bootstrap
draws whole groups, because the clips of a group (a track, a piece) are not independent.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchifier.io import Progress, silent

Statistic = Callable[[np.ndarray], float]
SHOWN_S = 0.5  # seconds between two reports of progress


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval.

    Parameters
    ----------
    metric : str
        Name of the metric.
    value, low, high : float
        The score and its interval.
    n : int
        Number of clips.
    p : float or None
        Two-sided p value of a paired difference, not corrected; None where it is not defined.

    Examples
    --------
    >>> score = Score("accuracy", 0.82, 0.75, 0.88, n=100)
    >>> f"{score.metric} {score.value} [{score.low}, {score.high}]"
    'accuracy 0.82 [0.75, 0.88]'
    >>> score.row("mfcc", "linear")["encoder"]
    'mfcc'
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def row(self, encoder: str, method: str) -> dict[str, Any]:
        """Return the score as a row of a results table."""
        names = {"encoder": encoder, "method": method, "metric": self.metric}
        return names | {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def resample(
    groups: Sequence[str],
    statistic: Statistic,
    *,
    draws: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> np.ndarray:
    """Draw the bootstrap distribution of a statistic by resampling whole groups with replacement.

    Parameters
    ----------
    groups : sequence of str, length n
        Group of each clip.
    statistic : callable
        Takes indices of clips (with repetition) and returns a number.
    draws, seed : int
        Number of draws, and the seed of the generator.
    progress : callable
        Called with draws done, draws in all and an empty note, at most twice a second.

    Returns
    -------
    ndarray, shape (draws,)
    """
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(np.asarray(groups) == group) for group in dict.fromkeys(groups)]
    values: list[float] = []
    shown_s = time.monotonic()
    for _ in range(draws):
        if time.monotonic() - shown_s > SHOWN_S:
            shown_s = time.monotonic()
            progress(len(values), draws, "")
        drawn = generator.integers(0, len(members), len(members))
        values.append(statistic(np.concatenate([members[group] for group in drawn])))
    return np.array(values)


def interval(
    draws: np.ndarray, quantiles: tuple[float, float] = (0.025, 0.975)
) -> tuple[float, float]:
    """Percentile interval of draws, by default of 95 %; NaN is left out, and NaN if all are."""
    if np.isnan(draws).all():
        return math.nan, math.nan
    low, high = np.nanquantile(draws, quantiles)
    return float(low), float(high)


def bootstrap(
    groups: Sequence[str],
    statistic: Statistic,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    progress: Progress = silent,
) -> tuple[float, float]:
    """Percentile interval of a statistic, by :func:`resample`.

    Examples
    --------
    >>> values = np.array([0.0, 1.0, 1.0, 1.0])
    >>> bootstrap(["a", "b", "c", "d"], lambda clips: values[clips].mean())
    (0.25, 1.0)
    """
    values = resample(groups, statistic, draws=draws, seed=seed, progress=progress)
    return interval(values, ((1 - level) / 2, (1 + level) / 2))


def estimate(
    metric: str, groups: Sequence[str], statistic: Statistic, *, progress: Progress = silent
) -> Score:
    """Score all clips by a statistic, with its interval by :func:`bootstrap`."""
    low, high = bootstrap(groups, statistic, progress=progress)
    return Score(metric, statistic(np.arange(len(groups))), low, high, len(groups))


def paired(
    metric: str,
    groups: Sequence[str],
    first: Statistic,
    second: Statistic,
    *,
    progress: Progress = silent,
) -> Score:
    """Score the difference `first` - `second` on the same clips: paired interval and p value.

    `first` is better than `second` where the interval leaves out 0.

    Examples
    --------
    >>> first, second = np.array([1.0, 0.9, 0.8]), np.array([0.5, 0.6, 0.4])
    >>> score = paired(
    ...     "accuracy", ["a", "b", "c"], lambda i: first[i].mean(), lambda i: second[i].mean()
    ... )
    >>> f"{score.value:.2f}", score.low > 0
    ('0.40', True)
    """

    def difference(indices: np.ndarray) -> float:
        return first(indices) - second(indices)

    draws, n = resample(groups, difference, progress=progress), len(groups)
    return Score(metric, difference(np.arange(n)), *interval(draws), n, two_sided_p(draws))


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of independent trials (Wilson 1927).

    `n` may be an effective number of trials, which is not whole.

    Unlike a bootstrap, it is not empty where all trials succeed.

    Examples
    --------
    >>> [round(bound, 2) for bound in wilson(10, 10)]
    [0.72, 1.0]
    """
    z = 1.959964  # quantile of the normal distribution
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def two_sided_p(draws: np.ndarray) -> float | None:
    """Two-sided p value of bootstrap draws of a difference; None if all are NaN.

    The observed sample counts as one more draw. Draws without a score (NaN) are left out.
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return None
    tail = min(np.sum(draws <= 0), np.sum(draws >= 0)) + 1
    return float(min(1.0, 2 * tail / (len(draws) + 1)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Correct the p values of a family of comparisons by Holm's method (1979).

    A comparison without a p value (None) is not of the family.

    Examples
    --------
    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    corrected: list[float | None] = [None] * len(values)
    largest, known = 0.0, [(value, i) for i, value in enumerate(values) if value is not None]
    for rank, (value, index) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        corrected[index] = largest
    return corrected
