"""Lists in playing order, each file near the one before."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from patchifier.library.search.metric import SLACK
from patchifier.library.search.ranking import Caps, Ranked, Target
from patchifier.library.search.rows import Filter, SearchResult, unit, without

Nearest = Callable[[Target, Filter, Caps], Sequence[Ranked]]
"""The file nearest to a target, in a list; an empty one if none is left."""


def walk_on(
    target: Target,
    walk: list[Ranked],
    count: int,
    *,
    drift: float,
    artist_gap: int,
    caps: Caps,
    where: Filter,
    nearest: Nearest,
) -> list[Ranked]:
    """Add files to `walk` until it has `count`, or none is left; arguments as for a mix."""
    for file in walk:
        caps.add(file.row)
    while len(walk) < count:
        here = walk[-1].direction if walk else target.direction
        mixed = (1 - drift) * target.direction + drift * here
        direction = unit(mixed) if np.linalg.norm(mixed) > SLACK else here
        narrowed = _apart(where, walk[max(0, len(walk) - artist_gap) :])
        narrowed = without(narrowed, [file.row.path for file in walk])
        step = nearest(Target(target.metric, direction, direction), narrowed, caps)
        if not step:
            break
        caps.add(step[0].row)
        walk.append(step[0])
    return walk


def _apart(where: Filter, recent: Sequence[Ranked]) -> Filter:
    """Conditions without the artists of some files."""
    artists = [str(file.row.tags["artist"]) for file in recent if "artist" in file.row.tags]
    return dataclasses.replace(where, without_artists=(*where.without_artists, *artists))


def in_order(files: Sequence[Ranked], before: np.ndarray | None = None) -> list[SearchResult]:
    """Rows whose score is the cosine with the file before.

    That of the first is the cosine with `before` (E,), or 1.
    """
    rows = []
    for file in files:
        score = 1.0 if before is None else min(1.0, float(before @ file.direction))
        rows.append(dataclasses.replace(file.row, score=score))
        before = file.direction
    return rows
