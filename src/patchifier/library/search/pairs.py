"""Pairs of rows with a high cosine, each row compared with every other that can reach it."""

from collections.abc import Callable, Iterator

import numpy as np

from patchifier.heads import unit
from patchifier.io import Progress, silent
from patchifier.library.search.metric import SLACK

BLOCK = 1024  # rows compared with as many times WIDTH at once: 64 MB of scores
WIDTH = 16
QUERIES = 256  # rows whose cosines with all others are held at once: 100 MB of 100,000 rows


def pairs_above(
    vectors: np.ndarray, files: np.ndarray, threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows of different files, the first before the second, with their cosine."""
    for rows, others, scores in _blocks(vectors, lambda: threshold):
        row, column = np.nonzero(scores >= threshold - SLACK)
        first, second = rows[row], others[column]
        apart = files[first] != files[second]
        yield from _scored(vectors, first[apart], second[apart], threshold)


def nearest_pairs(
    vectors: np.ndarray,
    files: np.ndarray,
    count: int,
    least: float,
    *,
    progress: Progress = silent,
) -> Iterator[tuple[int, int, float]]:
    """Each row with up to `count` nearest rows of other files, from a cosine of `least` on.

    A pair comes once or twice, the first row before the second.
    """
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, E) in single precision
    for start in range(0, len(units), QUERIES):
        scores = units[start : start + QUERIES] @ units.T
        scores[files[start : start + QUERIES][:, None] == files] = -np.inf
        near = min(count, len(units))
        others = np.argpartition(-scores, near - 1, axis=1)[:, :near]
        reached = np.take_along_axis(scores, others, axis=1) >= least - SLACK
        rows = np.nonzero(reached)[0] + start
        yield from _scored(vectors, rows, others[reached], least)
        progress(min(len(units), start + QUERIES), len(units), "")


def nearest_of(vectors: np.ndarray, files: np.ndarray) -> tuple[int, int, float] | None:
    """The pair of rows of different files with the highest cosine, the first before the second."""
    best: tuple[int, int, float] | None = None

    def least() -> float:
        return best[2] if best else -1.0

    for rows, others, scores in _blocks(vectors, least):
        scores[files[rows][:, None] == files[others]] = -np.inf
        row, column = np.unravel_index([scores.argmax()], scores.shape)
        if scores[row, column] > (best[2] if best else -np.inf):
            (best,) = _scored(vectors, rows[row], others[column], -np.inf)
    return best


def _scored(
    vectors: np.ndarray, rows: np.ndarray, others: np.ndarray, least: float
) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows that reach a cosine, in double precision; the first is before the second."""
    for pair in zip(rows.tolist(), others.tolist(), strict=True):
        first, second = sorted(pair)
        score = min(1.0, float(unit(vectors[first]) @ unit(vectors[second])))
        if score >= least - 1e-12:  # equal vectors may miss 1 by a rounding
            yield first, second, score


def _blocks(
    vectors: np.ndarray, least: Callable[[], float]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, others and their cosines, in blocks that hold each pair of at least `least()` once."""
    if not len(vectors):
        return
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, E) in single precision
    # along one axis no two unit vectors of that cosine are further apart than they are in all: only
    # those nearby are compared
    places = units @ _longest_axis(units)
    order = np.argsort(places, kind="stable")
    units, places = units[order], places[order]
    for start in range(0, len(units), BLOCK):
        reach = np.sqrt(max(0.0, 2 - 2 * least())) + 1e-3
        last = places[min(start + BLOCK, len(units)) - 1] + reach
        end = int(np.searchsorted(places, last, side="right"))
        for other in range(start, end, WIDTH * BLOCK):
            one, two = slice(start, start + BLOCK), slice(other, min(end, other + WIDTH * BLOCK))
            scores = units[one] @ units[two].T  # (rows, others)
            if other == start:  # the same rows come first: a pair is not to come twice
                scores[np.tril_indices(len(scores), m=scores.shape[1])] = -np.inf
            yield order[one], order[two], scores


def _longest_axis(units: np.ndarray) -> np.ndarray:
    """Unit vector (E,) along which some of the rows differ most."""
    few = units[:: max(1, len(units) // BLOCK)]
    return np.asarray(np.linalg.svd(few - few.mean(0), full_matrices=False)[2][0])
