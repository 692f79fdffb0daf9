"""Pairs of rows with a high cosine, each row compared with every other that can reach it."""

from collections.abc import Callable, Iterator

import numpy as np

from patchifier.io import Progress, silent
from patchifier.library.search.metric import SLACK
from patchifier.library.search.rows import unit

BLOCK = 1024  # rows compared with as many times WIDTH at once: 64 MB of scores
WIDTH = 16
QUERIES = 256  # rows whose cosines with all others are held at once: 100 MB of 100,000 rows


def pairs_above(
    vectors: np.ndarray, files: np.ndarray, threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows of different files, the first before the second, with their cosine."""
    for order, start, other, scores in _blocks(vectors, lambda: threshold):
        rows, others = np.nonzero(scores >= threshold - SLACK)
        apart = (rows + start < others + other) & (
            files[order[rows + start]] != files[order[others + other]]
        )
        for pair in zip(order[rows[apart] + start].tolist(), order[others[apart] + other].tolist()):
            first, second = sorted(pair)
            score = min(1.0, float(unit(vectors[first]) @ unit(vectors[second])))
            if score >= threshold - 1e-12:  # equal vectors may miss 1 by a rounding
                yield first, second, score


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
        for row, column in np.argwhere(reached).tolist():
            first, second = sorted((start + row, int(others[row, column])))
            score = min(1.0, float(unit(vectors[first]) @ unit(vectors[second])))
            if score >= least - 1e-12:
                yield first, second, score
        progress(min(len(units), start + QUERIES), len(units), "")


def nearest_of(vectors: np.ndarray, files: np.ndarray) -> tuple[int, int, float] | None:
    """The pair of rows of different files with the highest cosine, the first before the second."""
    best: tuple[int, int, float] | None = None

    def least() -> float:
        return best[2] if best else -1.0

    for order, start, other, scores in _blocks(vectors, least):
        rows, others = order[start : start + len(scores)], order[other : other + scores.shape[1]]
        apart = np.where(files[rows][:, None] != files[others], scores, -np.inf)
        row, column = np.unravel_index(int(apart.argmax()), apart.shape)
        if apart[row, column] > (best[2] if best else -np.inf):
            first, second = sorted((int(rows[row]), int(others[column])))
            best = first, second, min(1.0, float(unit(vectors[first]) @ unit(vectors[second])))
    return best


def _blocks(
    vectors: np.ndarray, least: Callable[[], float]
) -> Iterator[tuple[np.ndarray, int, int, np.ndarray]]:
    """Cosines of rows with rows, in blocks that hold each pair of a cosine of at least `least()`.

    Yields an order of the rows, the first of some and of others in that order, and their cosines.
    """
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
            # (rows, others)
            scores = units[start : start + BLOCK] @ units[other : min(end, other + WIDTH * BLOCK)].T
            yield order, start, other, scores


def _longest_axis(units: np.ndarray) -> np.ndarray:
    """Unit vector (E,) along which some of the rows differ most."""
    few = units[:: max(1, len(units) // BLOCK)]
    return np.asarray(np.linalg.svd(few - few.mean(0), full_matrices=False)[2][0])
