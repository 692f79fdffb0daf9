"""Endpoints: what sounds like songs and why, paths, mixes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from patchifier import audio, spectrogram
from patchifier.app.collection import Collection
from patchifier.app.parameters import RefusedError, require_range
from patchifier.app.state import Served, Song
from patchifier.app.tracks import slices
from patchifier.config import RequestError
from patchifier.embed import Embedder, Embedding
from patchifier.library.search import Filter, SearchResult, Table, alike, slice_weights
from patchifier.library.search.alike import Stretches, closer_than, matching_stretches
from patchifier.library.search.closeness import not_close
from patchifier.library.search.metric import Metric

MOST = 500  # results, seeds
MOST_WEIGHT = 4.0
WINDOW_S = 10.0  # of stretches that match
LONGEST_S = 1200.0  # what lies behind it is not compared


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
    if not len(collection):
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


@dataclass(frozen=True)
class WhyParams:
    """Two songs."""

    first: str
    second: str

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise RequestError("first and second are the same song, expected two songs.")


@dataclass(frozen=True)
class WeightedWhyParams(WhyParams):
    """Two songs, and the weights of the parts of the vector, 0 to 4, as of a search."""

    weights: dict[str, float] = field(default_factory=dict)


def why(served: Served, params: WhyParams) -> dict[str, Any]:
    """Cosine of two songs, how near each part of their vectors is, and similar stretches."""
    return weighted_why(served, WeightedWhyParams(params.first, params.second))


def weighted_why(served: Served, params: WeightedWhyParams) -> dict[str, Any]:
    """Cosine of two songs by some weights, how near each part is, and similar stretches."""
    first, second = served.song(params.first), served.song(params.second)
    served.require_embedder()
    store, weights = served.collection.store, weights_of(served, params.weights)
    metric = store.metric(weights) if store else Metric()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda song: windows_of(served, song), (first, second))
    pairs = matching_stretches(one, other, metric=metric)
    units = metric.unit(np.stack([first.vector, second.vector]))  # (2, E)
    products = units[0] * units[1]
    factors = np.ones(len(products)) if metric.weights is None else metric.weights
    return {
        "similarity": round(float(products.sum()), 4),
        "slices": agreement(served, first.vector, [second.vector])[0],
        "shares": _of_parts(served, products, np.sum),
        "counts": _of_parts(served, units, _length),
        "weights": _of_parts(served, factors, np.mean),
        **_standing(served, params, metric),
        "stretches": [_pair(pair) for pair in pairs],
    }


def _standing(served: Served, params: WhyParams, metric: Metric) -> dict[str, Any]:
    """Share of the other songs that are less like the first song than the second is.

    By the metric, and by each part; None and nothing where there is no other song.
    """
    first, second = (served.song(one).vector for one in (params.first, params.second))
    places, vectors = served.collection.sample
    pair = [served.collection.number.get(one, -1) for one in (params.first, params.second)]
    others = vectors[~np.isin(places, pair)]
    if not len(others):
        return {"closer_than": None, "slices_closer_than": {}}
    parts = closer_than(first, second, others, slices(served))
    first, second, others = metric.unit(first), metric.unit(second), metric.unit(others)
    whole = closer_than(first, second, others, {"": slice(None)})
    return {
        "closer_than": round(whole[""], 4),
        "slices_closer_than": {name: round(share, 4) for name, share in parts.items()},
    }


def _length(pair: np.ndarray) -> float:
    """Product of the lengths of two vectors (2, k): what their cosine counts by."""
    return float(np.linalg.norm(pair, axis=1).prod())


def _of_parts(
    served: Served, numbers: np.ndarray, summed: Callable[[np.ndarray], Any]
) -> dict[str, float]:
    """One number for each part of a vector, of numbers (..., E)."""
    found = {name: summed(numbers[..., part]) for name, part in slices(served).items()}
    return {name: round(float(value), 4) for name, value in found.items()}


def _pair(found: Stretches) -> dict[str, float]:
    """Two stretches as JSON."""
    times = {name: round(value, 3) for name, value in asdict(found).items() if name != "score"}
    return times | {"similarity": round(found.score, 4)}


def windows_of(served: Served, song: Song) -> Embedding:
    """Vectors of windows of a song, embedded when they are first needed."""
    shared = [served.require_embedder()]
    found: Embedding = served.kept_from_worker(embed_windows, song.file(), shared=shared)
    return found


def embed_windows(embedder: Embedder, path: str) -> Embedding:
    """Embed windows of a file."""
    config = embedder.config.spectrogram
    pieces = spectrogram.stream_log_mel(_beginning(path, config.sample_rate), config)
    return embedder.embed_windows(pieces, window_s=WINDOW_S)


def _beginning(path: str, rate: int) -> Iterator[np.ndarray]:
    left = int(LONGEST_S * rate)
    for block in audio.blocks(path, sample_rate=rate):
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return
