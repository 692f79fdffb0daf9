"""STAND-IN until library.search takes several seeds, weights and caps. To be deleted."""

from collections.abc import Sequence

import numpy as np

from patchifier.app.collection import Collection
from patchifier.library.search import Filter


def query(likes: Sequence[np.ndarray], unlikes: Sequence[np.ndarray]) -> np.ndarray:
    """Direction of what is looked for."""
    mean = np.mean(likes, axis=0)
    if len(unlikes):
        mean = mean - 0.5 * np.mean(unlikes, axis=0)
    return np.asarray(mean / max(np.linalg.norm(mean), 1e-9), np.float32)


def similar(
    collection: Collection,
    likes: Sequence[np.ndarray],
    unlikes: Sequence[np.ndarray],
    count: int,
    *,
    without: Sequence[str],
    weights: np.ndarray | None,
    where: Filter,
    caps: tuple[int, int],
) -> list[tuple[int, float]]:
    """Places and scores of the nearest tracks."""
    units = collection.directions
    target = query(likes, unlikes)
    if weights is None:
        scores = units @ target
    else:
        norms = np.sqrt((units**2) @ weights) * np.sqrt((target**2) @ weights)
        scores = (units @ (weights * target)) / np.maximum(norms, 1e-9)
    assert collection.table is not None
    mask = where.mask(collection.table.rows)[collection.first]
    mask[[collection.number[one] for one in without if one in collection.number]] = False
    scores[~mask] = -np.inf
    found, counts = list[tuple[int, float]](), dict[tuple[str, str], int]()
    for place in np.argsort(-scores):
        if len(found) == count or not np.isfinite(scores[place]):
            break
        keys = [
            (tag, collection.column(tag)[place], most)
            for tag, most in zip(("artist", "album"), caps)
            if most and collection.column(tag)[place]
        ]
        if any(counts.get((tag, value), 0) >= most for tag, value, most in keys):
            continue
        for tag, value, _ in keys:
            counts[tag, value] = counts.get((tag, value), 0) + 1
        found.append((int(place), float(scores[place])))
    return found
