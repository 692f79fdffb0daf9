"""From rows near a direction to a list of files, with limits for artists and albums."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from patchifier.library.search.metric import Metric
from patchifier.library.search.rows import SearchResult, found

POOL, POOL_FACTOR = 100, 10  # rows that are ranked anew: 100 and 10 for each file of the answer
HUB_SAMPLE = 1000  # rows of the store that say how near a row is to rows in general
HUB_ROWS = 100  # with fewer rows nothing can be said about that
LEAST_SPREAD = 1e-6


class Candidates(NamedTuple):
    """Rows that may be the nearest, in any order: without vectors, and their vectors (n, E)."""

    rows: pa.Table
    vectors: np.ndarray
    complete: bool  # whether there are no more


@dataclass(frozen=True, eq=False)
class Target:
    """What a search looks for: directions (E,) of length 1 in a metric."""

    metric: Metric
    direction: np.ndarray  # rows are ranked by their cosine with it
    shown: np.ndarray  # a score is the cosine with it


@dataclass(frozen=True)
class Caps:
    """Most files of one artist and of one album in a list; 0 is no limit.

    Letters' case makes no difference. What has no such tag is not limited.
    """

    max_per_artist: int = 0
    max_per_album: int = 0
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def copy(self) -> "Caps":
        """The same limits and counts, to be counted on apart."""
        return dataclasses.replace(self, counts=self.counts.copy())

    def full(self, row: SearchResult) -> bool:
        """Whether one more file with these tags is too many."""
        limits = {"artist": self.max_per_artist, "album": self.max_per_album}
        return any(0 < limits[key[0]] <= self.counts[key] for key in keys(row))

    def add(self, row: SearchResult) -> None:
        """Count a file."""
        self.counts.update(keys(row))


def keys(row: SearchResult) -> list[tuple[str, ...]]:
    """What a file counts for: its artist, and its album."""
    artist, album = row.tags.get("artist"), album_of(row.path, row.tags)
    counted: list[tuple[str, ...]] = []
    if artist is not None:
        counted.append(("artist", str(artist).casefold()))
    if album is not None:
        counted.append(("album", *album))
    return counted


def album_of(path: str, tags: Mapping[str, object]) -> tuple[str, str] | None:
    """Name of a file's album, and what tells it from others of that name; None without album.

    That is the album artist. Without one it is the folder: the files of a compilation have many
    artists.
    """
    if tags.get("album") is None:
        return None
    owner = tags.get("albumartist")
    folder = path.replace("\\", "/").rpartition("/")[0]
    return str(tags["album"]).casefold(), folder if owner is None else str(owner).casefold()


class Ranked(NamedTuple):
    """A section of a file, its rank (the highest is the best), and its direction (E,)."""

    row: SearchResult
    rank: float
    direction: np.ndarray


Adjust = Callable[[np.ndarray, np.ndarray], np.ndarray]  # directions (n, E), cosines -> ranks (n,)


def best_files(
    parts: Iterator[Candidates],
    target: Target,
    count: int,
    *,
    caps: Caps,
    adjust: Adjust | None = None,
) -> list[Ranked]:
    """Best files, at most `count`, the nearest section of each, in order of rank.

    Each of the `parts` holds more rows than the one before. `caps` counts what is listed already,
    and is not changed. `adjust` gives other ranks than the cosine.
    """
    chosen: list[Ranked] = []
    for candidates in parts:
        chosen = _within(_per_file(candidates, target, adjust), count, caps.copy())
        if len(chosen) >= count or candidates.complete:
            break
    return chosen


def _per_file(candidates: Candidates, target: Target, adjust: Adjust | None) -> list[Ranked]:
    """The best row of each file, in order of rank."""
    directions = target.metric.unit(candidates.vectors)
    ranks = directions @ target.direction
    scores = directions @ target.shown
    if adjust is not None and len(ranks):
        ranks = adjust(directions, ranks)
    rows = [
        Ranked(row, rank, direction)
        for row, rank, direction in zip(
            found(candidates.rows, scores.tolist()), ranks.tolist(), directions, strict=True
        )
    ]
    rows.sort(key=lambda ranked: (-ranked.rank, ranked.row.path, ranked.row.start_s))
    best: dict[str, Ranked] = {}
    for ranked in rows:
        best.setdefault(ranked.row.path, ranked)
    return list(best.values())


def _within(files: Sequence[Ranked], count: int, caps: Caps) -> list[Ranked]:
    chosen: list[Ranked] = []
    for file in files:
        if len(chosen) == count:
            break
        if not caps.full(file.row):
            caps.add(file.row)
            chosen.append(file)
    return chosen


def hub_discount(sample: np.ndarray, direction: np.ndarray) -> Adjust:
    """Ranks in which a row that is near to everything counts less.

    Given directions (m, E) of some rows and that of the query, in its metric. A rank is the mean of
    two standard scores of a cosine: among the cosines of the row with the sample, and among those
    of the query with it. This is mutual proximity under normal distributions (Schnitzer et al.
    2012, "Local and global scaling reduce hubs in space").
    """
    few, query = sample.astype(np.float32), sample @ direction
    query_mean, query_spread = query.mean(), max(query.std(), LEAST_SPREAD)

    def ranks(directions: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        with_sample = directions.astype(np.float32) @ few.T  # (n, m)
        spread = np.maximum(with_sample.std(axis=1), LEAST_SPREAD)
        of_row = (cosines - with_sample.mean(axis=1)) / spread
        return (of_row + (cosines - query_mean) / query_spread) / 2

    return ranks
