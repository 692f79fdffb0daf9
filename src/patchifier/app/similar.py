"""Endpoints: what sounds like songs, paths, mixes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchifier.app.collection import Collection
from patchifier.app.parameters import RefusedError, require_range
from patchifier.app.state import Served
from patchifier.app.tracks import slices
from patchifier.config import RequestError
from patchifier.library.search import Filter, SearchResult, Table, alike, slice_weights
from patchifier.library.search.closeness import not_close

MOST = 500  # results, seeds
MOST_WEIGHT = 4.0


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


@dataclass(frozen=True, kw_only=True)
class SearchParams:
    """What all searches take; weights are those of the parts of the vector, 0 to 4."""

    count: int = 20
    weights: dict[str, float] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    max_per_artist: int = 0
    max_per_album: int = 0

    def __post_init__(self) -> None:
        require_range("count", self.count, 1, MOST)
        require_range("max_per_artist", self.max_per_artist, 0, 2**31)
        require_range("max_per_album", self.max_per_album, 0, 2**31)

    def options(self, served: Served) -> dict[str, Any]:
        """As arguments of a search."""
        return {
            "where": self.filters.where(),
            "weights": weights_of(served, self.weights),
            "max_per_artist": self.max_per_artist,
            "max_per_album": self.max_per_album,
        }


@dataclass(frozen=True, kw_only=True)
class SimilarParams(SearchParams):
    """Songs that the results are like, and unlike."""

    like: list[str]
    unlike: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_songs("like", self.like, least=1)
        _require_songs("unlike", self.unlike)


@dataclass(frozen=True, kw_only=True)
class PathParams(SearchParams):
    """The first and the last song of a path, and songs on the way."""

    start: str
    end: str
    waypoints: list[str] = field(default_factory=list)
    count: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_songs("waypoints", self.waypoints)


@dataclass(frozen=True, kw_only=True)
class MixParams(SearchParams):
    """Songs that a mix begins from; drift is 0 (stays near them) to 1 (walks on)."""

    seeds: list[str]
    unlike: list[str] = field(default_factory=list)
    count: int = 25
    drift: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_songs("seeds", self.seeds, least=1)
        _require_songs("unlike", self.unlike)
        require_range("drift", self.drift, 0, 1)


def _require_songs(name: str, songs: list[str], *, least: int = 0) -> None:
    if not least <= len(songs) <= MOST:
        raise RequestError(
            f"{name} has {len(songs)} songs, expected {least} to {MOST}: choose others."
        )


def similar(served: Served, params: SimilarParams) -> dict[str, Any]:
    """Songs most like some, and unlike others, the most similar first."""
    likes = [served.song(one) for one in params.like]
    store, queries = store_of(served.collection), [song.query for song in likes]
    options = params.options(served)
    found = store.similar(
        queries,
        params.count,
        unlike=[served.song(one).query for one in params.unlike],
        **options,
    )
    mean = np.mean([song.vector for song in likes], axis=0)
    collection = served.collection
    rows = [collection.direction(collection.by_path[row.path]) for row in found]
    parts = agreement(served, mean, rows)
    results = [
        one | {"slices": part}
        for one, part in zip(_results(served.collection, found), parts, strict=True)
    ]
    note = not_close(store, queries, found, weights=options["weights"], where=options["where"])
    return {"results": results, "close": not note, "note": note}


def path(served: Served, params: PathParams) -> dict[str, Any]:
    """Songs from one to another in small steps."""
    start, end, *waypoints = (
        _in_table(served, one) for one in (params.start, params.end, *params.waypoints)
    )
    found = store_of(served.collection).path(
        start,
        end,
        params.count,
        waypoints=waypoints,
        **params.options(served),
    )
    return {"results": _results(served.collection, found)}


def mix(served: Served, params: MixParams) -> dict[str, Any]:
    """A walk through the library from some songs."""
    found = store_of(served.collection).mix(
        [served.song(one).query for one in params.seeds],
        params.count,
        unlike=[served.song(one).query for one in params.unlike],
        drift=params.drift,
        **params.options(served),
    )
    return {"results": _results(served.collection, found)}


def agreement(
    served: Served, vector: np.ndarray, others: Sequence[np.ndarray]
) -> list[dict[str, float]]:
    """Cosines of each part of a vector (E,) with that of others; 0 where one has nothing."""
    parts = slices(served)
    found = [alike.agreement(vector, other, parts) for other in others]
    return [{name: round(value, 4) for name, value in one.items()} for one in found]


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


def weights_of(served: Served, weights: dict[str, float]) -> np.ndarray | None:
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
