"""Why two files are alike: parts of their vectors that agree, and stretches that match.

Shapes: E numbers of a vector, k and l stretches of two files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from patchifier.embed import Embedding
from patchifier.library.search.metric import SLACK, Metric

LEAST_LENGTH = 1e-9  # of what has a direction


@dataclass(frozen=True)
class Stretches:
    """Two stretches, one of each of two files, in seconds, and their cosine.

    Examples
    --------
    >>> found = Stretches(10.0, 15.0, 40.0, 45.0, score=0.98)
    >>> found.second_start_s - found.first_start_s
    30.0
    """

    first_start_s: float
    first_end_s: float
    second_start_s: float
    second_end_s: float
    score: float


def agreement(
    first: np.ndarray, second: np.ndarray, slices: Mapping[str, slice]
) -> dict[str, float]:
    """Cosine of each slice of two vectors.

    Parameters
    ----------
    first, second : ndarray, shape (E,)
        Vectors of one model.
    slices : mapping of str to slice
        As ``Embedder.slices`` gives them.

    Returns
    -------
    dict of str to float
        From -1 to 1; 0 where one of the slices is all zeros.

    Examples
    --------
    >>> slices = {"layers": slice(0, 2), "harmony": slice(2, 3)}
    >>> agreement(np.array([1.0, 0.0, 2.0]), np.array([0.0, 1.0, 4.0]), slices)
    {'layers': 0.0, 'harmony': 1.0}
    """
    found = {}
    for name, part in slices.items():
        a, b = first[part], second[part]
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        found[name] = float(a @ b) / lengths if lengths > LEAST_LENGTH else 0.0
    return found


def closer_than(
    first: np.ndarray, second: np.ndarray, others: np.ndarray, slices: Mapping[str, slice]
) -> dict[str, float]:
    """How many vectors are less like one than another is, by each slice.

    Parameters
    ----------
    first, second : ndarray, shape (E,)
        Vectors of one model.
    others : ndarray, shape (n, E)
        Vectors to compare the second with; at least one.
    slices : mapping of str to slice
        As ``Embedder.slices`` gives them.

    Returns
    -------
    dict of str to float
        Share of `others`, from 0 to 1, whose cosine with `first` is below that of `second`.

    Examples
    --------
    >>> first, second = np.array([1.0, 0.0, 2.0]), np.array([1.0, 0.1, -3.0])
    >>> others = np.array([[0.0, 1.0, 1.0], [-1.0, 0.0, -1.0]])
    >>> closer_than(first, second, others, {"layers": slice(0, 2), "harmony": slice(2, 3)})
    {'layers': 1.0, 'harmony': 0.0}
    """
    rows = np.concatenate([second[None], others])
    found = {}
    for name, part in slices.items():
        lengths = np.linalg.norm(rows[:, part], axis=1) * np.linalg.norm(first[part])
        cosines = rows[:, part] @ first[part] / np.maximum(lengths, LEAST_LENGTH)
        found[name] = float((cosines[1:] < cosines[0] - SLACK).mean())
    return found


def matching_stretches(
    first: Embedding, second: Embedding, count: int = 5, *, metric: Metric | None = None
) -> tuple[Stretches, ...]:
    """Pairs of stretches of two files that are most alike.

    Parameters
    ----------
    first, second : Embedding
        Of one model, by :meth:`patchifier.Embedder.embed_windows`.
    count : int
        Most pairs.
    metric : Metric
        How vectors are compared: ``store.metric()`` is that of a search. The plain cosine by
        default.

    Returns
    -------
    tuple of Stretches
        The highest cosine first; each stretch is in one pair.

    Examples
    --------
    >>> one = Embedding(np.eye(2, 3), np.array([0.0, 5.0]), np.array([5.0, 10.0]))
    >>> other = Embedding(np.eye(1, 3, 1), np.array([0.0]), np.array([5.0]))
    >>> (found,) = matching_stretches(one, other)
    >>> found.first_start_s, found.second_start_s, found.score
    (5.0, 0.0, 1.0)
    """
    units = [(metric or Metric()).unit(found.vectors) for found in (first, second)]
    cosines = units[0] @ units[1].T  # (k, l)
    pairs = list[Stretches]()
    while len(pairs) < min(count, *cosines.shape):
        row, column = np.unravel_index(int(cosines.argmax()), cosines.shape)
        times = (first.start_s[row], first.end_s[row], second.start_s[column])
        ends = (second.end_s[column], cosines[row, column])
        pairs.append(Stretches(*map(float, (*times, *ends))))
        cosines[row], cosines[:, column] = -np.inf, -np.inf
    return tuple(pairs)
