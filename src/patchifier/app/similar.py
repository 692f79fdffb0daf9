"""Endpoints: what sounds like songs and why, paths, mixes, duplicates, playlists."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.responses import Response

from patchifier.app import standin
from patchifier.app.asked import RefusedError, require_range
from patchifier.app.state import Served, Song
from patchifier.app.tracks import slices
from patchifier.config import RequestError
from patchifier.library.search import Filter

MOST = 500  # results, seeds


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
        given = {name: value for name, value in vars(self).items() if value not in (None, "")}
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


def _require_counts(count: int, *most_per: int) -> None:
    require_range("count", count, 1, MOST)
    for value in most_per:
        require_range("max_per_artist or max_per_album", value, 0, 2**31)


def _require_songs(name: str, songs: list[str], *, least: int = 0) -> None:
    if not least <= len(songs) <= MOST:
        raise RequestError(
            f"{name} has {len(songs)} songs, expected {least} to {MOST}: choose others."
        )


def similar(served: Served, asked: SimilarAsked) -> dict[str, Any]:
    """Songs most like some, and unlike others, the most similar first."""
    likes = [served.song(one) for one in asked.like]
    unlikes = [served.song(one) for one in asked.unlike]
    weights = _weights(served, asked.weights)
    found = standin.similar(
        served.collection,
        [song.vector for song in likes],
        [song.vector for song in unlikes],
        asked.count,
        without=[*asked.like, *asked.unlike],
        weights=weights,
        where=asked.filters.where(),
        caps=(asked.max_per_artist, asked.max_per_album),
    )
    query = standin.query([song.vector for song in likes], [song.vector for song in unlikes])
    results = [_result(served, place, score, query) for place, score in found]
    close, note = _closeness(served, results)
    return {"results": results, "close": close, "note": note}


def _weights(served: Served, weights: dict[str, float]) -> np.ndarray | None:
    """Factor (E,) of each number's share of a cosine; None if all are 1."""
    parts = slices(served)
    for name, value in weights.items():
        if name not in parts:
            raise RequestError(f"weights.{name} is not a part here, expected {', '.join(parts)}.")
        require_range(f"weights.{name}", value, 0, 4)
    given = {name: weights.get(name, 1.0) for name in parts}
    if not any(given.values()):
        raise RequestError("every weight is 0, so nothing is compared: raise one of them.")
    if all(value == 1 for value in given.values()):
        return None
    return np.concatenate(
        [np.full(part.stop - part.start, given[name], np.float32) for name, part in parts.items()]
    )


def _result(served: Served, place: int, score: float, query: np.ndarray) -> dict[str, Any]:
    collection = served.collection
    return {
        "track": collection.track(place),
        "similarity": round(float(score), 4),
        "start_s": collection.column("start_s")[place],
        "end_s": collection.column("end_s")[place],
        "slices": agreement(served, query, collection.direction(place)),
    }


def agreement(served: Served, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Cosine of each part of two vectors (E,); 0 where one has nothing."""
    found = {}
    for name, part in slices(served).items():
        a, b = first[part], second[part]
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        found[name] = round(float(a @ b) / lengths, 4) if lengths > 1e-9 else 0.0
    return found


CLOSE = 0.4  # stand-in


def _closeness(served: Served, results: list[dict[str, Any]]) -> tuple[bool, str]:
    if results and results[0]["similarity"] >= CLOSE:
        return True, ""
    if not results:
        return False, "No other song in this library passes these filters."
    return False, (
        f"Nothing in this library is close: the nearest song has a similarity of "
        f"{results[0]['similarity']:.2f}."
    )


@dataclass(frozen=True)
class PathAsked:
    """The first and the last song of a path, and songs on the way."""

    start: str
    end: str
    count: int = 10
    waypoints: list[str] = field(default_factory=list)
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
    count: int = 25
    drift: float = 0.0
    filters: Filters = field(default_factory=Filters)
    max_per_artist: int = 0
    max_per_album: int = 0

    def __post_init__(self) -> None:
        _require_counts(self.count, self.max_per_artist, self.max_per_album)
        _require_songs("seeds", self.seeds, least=1)
        require_range("drift", self.drift, 0, 1)


def in_table(served: Served, one: str) -> Song:
    """A song of the table; an upload cannot stand in a playlist."""
    if one in served.uploads:
        raise RefusedError(
            422, "an upload is not in the library, so it cannot stand in a path: choose a song."
        )
    return served.song(one)


@dataclass(frozen=True)
class PlaylistAsked:
    """Songs in the order of a playlist."""

    ids: list[str]
    name: str = "patchifier"


def playlist(served: Served, asked: PlaylistAsked) -> Response:
    """The songs as an M3U8 file."""
    raise NotImplementedError
