"""Endpoints: what sounds like songs, paths, mixes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchifier.app.asked import RefusedError, require_range
from patchifier.app.collection import Collection
from patchifier.app.state import Served
from patchifier.app.tracks import slices
from patchifier.config import RequestError
from patchifier.library.search import Filter, SearchResult, Table, alike, slice_weights

MOST = 500  # results, seeds
MOST_WEIGHT = 4.0
LEAST_CLOSE = 0.2  # all of 250 tracks of two libraries have one that is nearer
SAMPLE, COMPARED = 200, 5_000  # songs whose nearest is looked for, and among how many
SHARE_FAR = 10  # percent of them that have no near song


@dataclass(frozen=True)
class Filters:
    """Which songs take part: every condition that is given must hold."""

    artist: str | None = None
    album: str | None = None
    genre: str | None = None
    year_from: int | None = None
    year_to: int | None = None
    path_prefix: str | None = None

    def where(self) -> Filter:
        """As a filter of the search."""
        given: dict[str, Any] = {
            name: value for name, value in vars(self).items() if value not in (None, "")
        }
        return Filter(**given)


@dataclass(frozen=True)
class SimilarAsked:
    """Songs that the results are like, and unlike; weights of the parts of the vector, 0 to 4."""

    like: list[str]
    unlike: list[str] = field(default_factory=list)
    count: int = 20
    weights: dict[str, float] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    max_per_artist: int = 0
    max_per_album: int = 0

    def __post_init__(self) -> None:
        _require_counts(self.count, self.max_per_artist, self.max_per_album)
        _require_songs("like", self.like, least=1)
        _require_songs("unlike", self.unlike)


@dataclass(frozen=True)
class PathAsked:
    """The first and the last song of a path, and songs on the way."""

    start: str
    end: str
    count: int = 10
    waypoints: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    max_per_artist: int = 0
    max_per_album: int = 0

    def __post_init__(self) -> None:
        _require_counts(self.count, self.max_per_artist, self.max_per_album)
        _require_songs("waypoints", self.waypoints)


@dataclass(frozen=True)
class MixAsked:
    """Songs that a mix begins from; drift is 0 (stays near them) to 1 (walks on)."""

    seeds: list[str]
    unlike: list[str] = field(default_factory=list)
    count: int = 25
    drift: float = 0.5
    weights: dict[str, float] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    max_per_artist: int = 0
    max_per_album: int = 0

    def __post_init__(self) -> None:
        _require_counts(self.count, self.max_per_artist, self.max_per_album)
        _require_songs("seeds", self.seeds, least=1)
        _require_songs("unlike", self.unlike)
        require_range("drift", self.drift, 0, 1)


def _require_counts(count: int, max_per_artist: int, max_per_album: int) -> None:
    require_range("count", count, 1, MOST)
    require_range("max_per_artist", max_per_artist, 0, 2**31)
    require_range("max_per_album", max_per_album, 0, 2**31)


def _require_songs(name: str, songs: list[str], *, least: int = 0) -> None:
    if not least <= len(songs) <= MOST:
        raise RequestError(
            f"{name} has {len(songs)} songs, expected {least} to {MOST}: choose others."
        )


def similar(served: Served, asked: SimilarAsked) -> dict[str, Any]:
    """Songs most like some, and unlike others, the most similar first."""
    likes = [served.song(one) for one in asked.like]
    found = store_of(served.collection).similar(
        [song.query for song in likes],
        asked.count,
        unlike=[served.song(one).query for one in asked.unlike],
        where=asked.filters.where(),
        weights=_weights(served, asked.weights),
        max_per_artist=asked.max_per_artist,
        max_per_album=asked.max_per_album,
    )
    mean = np.mean([song.vector for song in likes], axis=0)
    results = [
        one | {"slices": agreement(served, mean, _direction(served.collection, row))}
        for one, row in zip(_results(served.collection, found), found)
    ]
    close, note = _closeness(served, found)
    return {"results": results, "close": close, "note": note}


def path(served: Served, asked: PathAsked) -> dict[str, Any]:
    """Songs from one to another in small steps."""
    start, end, *waypoints = (
        _in_table(served, one) for one in (asked.start, asked.end, *asked.waypoints)
    )
    found = store_of(served.collection).path(
        start,
        end,
        asked.count,
        waypoints=waypoints,
        where=asked.filters.where(),
        weights=_weights(served, asked.weights),
        max_per_artist=asked.max_per_artist,
        max_per_album=asked.max_per_album,
    )
    return {"results": _results(served.collection, found)}


def mix(served: Served, asked: MixAsked) -> dict[str, Any]:
    """A walk through the library from some songs."""
    found = store_of(served.collection).mix(
        [served.song(one).query for one in asked.seeds],
        asked.count,
        unlike=[served.song(one).query for one in asked.unlike],
        where=asked.filters.where(),
        weights=_weights(served, asked.weights),
        drift=asked.drift,
        max_per_artist=asked.max_per_artist,
        max_per_album=asked.max_per_album,
    )
    return {"results": _results(served.collection, found)}


def agreement(served: Served, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Cosine of each part of two vectors (E,); 0 where one has nothing."""
    found = alike.agreement(first, second, slices(served))
    return {name: round(value, 4) for name, value in found.items()}


def store_of(collection: Collection) -> Table:
    """What is searched; refused for a library without a table."""
    if collection.store is None:
        raise RefusedError(409, "this library is empty, so nothing is similar: embed some music.")
    return collection.store


def _in_table(served: Served, one: str) -> str:
    """Path of a song of the table; an upload cannot stand in a path."""
    if one in served.uploads:
        raise RefusedError(
            422, "an upload is not in the library, so it cannot stand in a path: choose a song."
        )
    return str(served.song(one).query)


def _weights(served: Served, weights: dict[str, float]) -> np.ndarray | None:
    """Weights (E,) of a search; None if none is given."""
    for name, value in weights.items():
        require_range(f"weights.{name}", value, 0, MOST_WEIGHT)
    if not weights:
        return None
    return slice_weights(served.require_embedder().config, weights)


def _results(collection: Collection, found: Iterable[SearchResult]) -> list[dict[str, Any]]:
    return [
        {
            "track": collection.track(collection.by_path[row.path]),
            "similarity": None if row.score is None else round(row.score, 4),
            "start_s": row.start_s,
            "end_s": row.end_s,
        }
        for row in found
    ]


def _direction(collection: Collection, row: SearchResult) -> np.ndarray:
    return collection.direction(collection.by_path[row.path])


def _closeness(served: Served, found: Iterable[SearchResult]) -> tuple[bool, str]:
    """Whether the nearest song is close, measured by the songs of this library; and what to say."""
    best = next(iter(found), None)
    if best is None or best.score is None:
        return False, "No other song of this library passes these filters."
    least = least_close(served.collection)
    if best.score >= least:
        return True, ""
    return False, (
        f"Nothing in this library is close: the nearest song has a similarity of {best.score:.2f}, "
        f"and {100 - SHARE_FAR} % of the songs here have one of {least:.2f} or more."
    )


def least_close(collection: Collection) -> float:
    """Cosine that most songs reach with their nearest, from a sample; at least LEAST_CLOSE."""
    if collection.least_close is None:
        others = collection.sample(COMPARED)
        rows = np.unique(np.linspace(0, len(others) - 1, min(SAMPLE, len(others))).astype(int))
        cosines = others[rows] @ others.T  # (m, n)
        cosines[np.arange(len(rows)), rows] = -1.0
        near = float(np.percentile(cosines.max(1), SHARE_FAR))
        collection.least_close = max(LEAST_CLOSE, near)
    return collection.least_close
