"""Statistics of an evaluation.

Bootstrap over groups, paired differences, p values, Holm's correction.

A statistic is a function of indices of clips (with repetition) that returns a number. The bootstrap
draws whole groups, because the clips of a group (a track, a piece) are not independent.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from patchifier.io import Progress, Steps, silent

Statistic = Callable[[np.ndarray], float]
SHOWN_S = 0.5  # seconds between two reports of progress
SHARES = frozenset(  # metrics from 0 to 1
    {"accuracy", "key_score", "roc_auc", "beats", "chords", "boundaries"}
)
NONE_DIFFERS = "no group of clips differs"  # of a difference that is 0 in every group


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
    agree : bool
        Whether all groups have this very score, so that a bootstrap has nothing to draw from: the
        interval is then by :func:`agreeing_interval`.

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
    agree: bool = False

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

    `groups` has the group of each clip. Progress counts draws, at most twice a second.
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
    """Score all clips by a statistic, with its interval by :func:`bootstrap`.

    Where all groups agree, as where every clip is right, that interval would be empty. A metric
    from 0 to 1 then has that of :func:`agreeing_interval`.

    Examples
    --------
    >>> right = np.ones(48)
    >>> groups = [str(clip) for clip in range(48)]
    >>> print(estimate("accuracy", groups, lambda clips: right[clips].mean()))
    accuracy 1.000 [0.926, 1.000]
    """
    low, high = bootstrap(groups, statistic, progress=progress)
    value = statistic(np.arange(len(groups)))
    agree = _is_empty(metric, low, high)
    if agree:
        low, high = agreeing_interval(value, len(set(groups)))
    return Score(metric, value, low, high, len(groups), agree=agree)


def _is_empty(metric: str, low: float, high: float) -> bool:
    """Whether an interval by bootstrap is a point, and the metric one from 0 to 1."""
    return metric in SHARES and math.isclose(low, high, abs_tol=1e-9)


def agreeing_interval(value: float, n_groups: int, *, least: float = 0.0) -> tuple[float, float]:
    """95 % interval of a score that is the same in all groups of the test.

    Other groups may not agree: a share of them up to Wilson's bound for none of `n_groups`. These
    may have any score from `least` to 1. Where all are right or all wrong, it is :func:`wilson`.

    Examples
    --------
    >>> [round(bound, 3) for bound in agreeing_interval(1.0, 48)]
    [0.926, 1.0]
    >>> [round(bound, 3) for bound in agreeing_interval(0.0, 48, least=-1.0)]  # of a difference
    [-0.074, 0.074]
    """
    others = wilson(0, n_groups)[1]
    return value - others * (value - least), value + others * (1 - value)


def paired(
    metric: str,
    groups: Sequence[str],
    first: Statistic,
    second: Statistic,
    *,
    progress: Progress = silent,
) -> Score:
    """Score the difference `first` - `second` on the same clips: paired interval and p value.

    `first` is better than `second` where the interval leaves out 0. Where all groups have the same
    difference, interval and p value are not by bootstrap, as in :func:`estimate`.

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
    value, (low, high), p = difference(np.arange(n)), interval(draws), two_sided_p(draws)
    agree = _is_empty(metric, low, high)
    if agree:
        n_groups = len(set(groups))
        low, high = agreeing_interval(value, n_groups, least=-1.0)
        p = max(p or 0.0, 2 * 0.5**n_groups) if n_groups > 1 else 1.0  # of the sign test
    return Score(metric, value, low, high, n, p, agree)


def paired_rows(
    metric: str,
    groups: Sequence[str],
    pairs: Sequence[tuple[tuple[str, Statistic], tuple[str, Statistic]]],
    *,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Rows of paired differences, each between two named statistics of the same clips.

    They hold ``first``, ``second``, the fields of :func:`paired`, and ``p_holm``, corrected for the
    number of pairs.
    """
    steps, scores = Steps(progress, len(pairs)), list[Score]()
    for (name, one), (other_name, other) in pairs:
        shown = steps.next(f"{name} and {other_name}", "draws")
        scores.append(paired(metric, groups, one, other, progress=shown))
    if pairs:
        steps.finish()
    corrected = holm([score.p for score in scores])
    return [
        {"first": first, "second": second} | asdict(score) | {"p_holm": p}
        for ((first, _), (second, _)), score, p in zip(pairs, scores, corrected, strict=True)
    ]


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
