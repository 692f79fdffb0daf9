"""Endpoints of the Navidrome plugin: songs as Navidrome describes them, found in the table.

Navidrome names a song by MusicBrainz id, title, artists, album and duration, never by its path. The
forms are those of its plugins' ``SongRef``. Navidrome finds the answer's songs in the same way.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchifier.app.collection import Collection, folded
from patchifier.app.parameters import RefusedError
from patchifier.app.similar import MOST, store_of
from patchifier.app.state import Served
from patchifier.app.subsonic import nearest, walk

UNKNOWN_ARTIST = "[Unknown Artist]"  # what Navidrome calls the artist of a file without one
NEAR_S = 5.0  # two readers of a file do not differ by more
JOINTS = re.compile(r"\s*[;,/&•]\s*|\s+(?:feat|ft|vs|with)\b\.?\s*", re.IGNORECASE)


class Lenient:
    """What Navidrome says, in which later versions may have other names too."""

    others_ignored = True


@dataclass(frozen=True)
class Artist(Lenient):
    """An artist of a song."""

    name: str = ""


@dataclass(frozen=True)
class SongRef(Lenient):
    """A song of Navidrome; the duration in milliseconds stands above that in seconds."""

    name: str
    mbid: str = ""
    artist: str = ""
    artists: list[Artist] = field(default_factory=list)
    album: str = ""
    duration: float = 0.0
    duration_ms: int = field(default=0, metadata={"name": "durationMs"})

    @property
    def duration_s(self) -> float:
        """Seconds; 0 if unknown."""
        return self.duration_ms / 1000 or self.duration

    @property
    def credited(self) -> set[str]:
        """Names of its artists, for comparison."""
        return credits([self.artist, *(artist.name for artist in self.artists)])


@dataclass(frozen=True)
class SimilarParams(Lenient):
    """Songs like one: Navidrome's GetSonicSimilarTracks."""

    song: SongRef
    count: int = 10


@dataclass(frozen=True)
class PathParams(Lenient):
    """A path from a song to another: Navidrome's FindSonicPath."""

    start: SongRef = field(metadata={"name": "startSong"})
    end: SongRef = field(metadata={"name": "endSong"})
    count: int = 25


@dataclass(frozen=True)
class SongsParams(Lenient):
    """Songs like one, as a metadata agent gives them: Navidrome's GetSimilarSongsByTrack."""

    name: str
    artist: str = ""
    mbid: str = ""
    count: int = 10


def similar(served: Served, params: SimilarParams) -> dict[str, Any]:
    """Navidrome: songs that sound like one, the most similar first."""
    place = find(served.collection, params.song)
    return _matches(served.collection, nearest(served, place, _bounded(params.count)))


def path(served: Served, params: PathParams) -> dict[str, Any]:
    """Navidrome: a path from a song to another, both included."""
    start, end = (find(served.collection, song) for song in (params.start, params.end))
    return _matches(served.collection, walk(served, start, end, _bounded(params.count)))


def songs(served: Served, params: SongsParams) -> dict[str, Any]:
    """Navidrome: songs that sound like one, without similarities, for its mixes."""
    song = SongRef(params.name, params.mbid, params.artist)
    found = nearest(served, find(served.collection, song), _bounded(params.count))
    return {"songs": [described(served.collection, place) for place, _ in found]}


def _bounded(count: int) -> int:
    return min(MOST, max(1, count))


def _matches(collection: Collection, found: Sequence[tuple[int, float]]) -> dict[str, Any]:
    matches = [
        {"song": described(collection, place), "similarity": score} for place, score in found
    ]
    return {"matches": matches}


# --- from Navidrome's song to a track, and back ---


@functools.lru_cache(maxsize=1)
def _known(collection: Collection) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Places of tracks by MusicBrainz id and by folded title."""
    by_id, by_title = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for place, ids in enumerate(collection.column("mb_recording_id")):
        by_title[folded(collection.title(place)).strip()].append(place)
        for one in (ids or "").split("; "):
            by_id[one.lower()].append(place)
    return dict(by_id), dict(by_title)


def find(collection: Collection, song: SongRef) -> int:
    """Place of the track that is a song of Navidrome; refused with 422 if there is none.

    The MusicBrainz id of the recording decides; without it title, artist and duration together. Of
    several, one of the same album, then the nearest duration.
    """
    store_of(collection)
    by_id, by_title = _known(collection)
    places = by_id.get(song.mbid.lower(), []) if song.mbid else []
    if not places:
        same_title = by_title.get(folded(song.name).strip(), [])
        places = [place for place in same_title if _is_same(collection, place, song)]
    if not places:
        by = f" by {song.artist[:80]!r}" if song.artist else ""
        raise RefusedError(
            422,
            f"no song of this table is {song.name[:80]!r}{by}: embed its file with 'patchifier "
            "embed', or compare the tags.",
        )
    return min(places, key=functools.partial(_difference, collection, song))


def _is_same(collection: Collection, place: int, song: SongRef) -> bool:
    """Whether a track with the title of a song has its duration and one of its artists."""
    gap = _gap_s(collection, place, song)
    if gap is not None and gap > NEAR_S:
        return False
    own = credits([collection.column(name)[place] for name in ("artist", "albumartist")])
    wanted = song.credited - {folded(UNKNOWN_ARTIST)}
    if own and wanted:
        return bool(own & wanted)
    return gap is not None  # a title alone says too little


def _difference(collection: Collection, song: SongRef, place: int) -> tuple[bool, float]:
    album = collection.column("album")[place]
    other_album = folded(album or "") != folded(song.album)
    return other_album, _gap_s(collection, place, song) or 0.0


def _gap_s(collection: Collection, place: int, song: SongRef) -> float | None:
    """How far the durations are apart; None if one is unknown."""
    seconds = collection.duration_s(place)
    return abs(seconds - song.duration_s) if seconds and song.duration_s else None


def credits(texts: Iterable[str | None]) -> set[str]:
    """Names of artists in tags, each whole and in parts, for comparison."""
    names = (name for text in texts if text for name in (text, *JOINTS.split(text)))
    return {folded(name).strip() for name in names} - {""}


def described(collection: Collection, place: int) -> dict[str, Any]:
    """A track as Navidrome's SongRef; what is not known is left out.

    Navidrome 0.62 reads `artist` and `duration`, later ones `artists` and `durationMs`.
    """
    artist = collection.column("artist")[place] or UNKNOWN_ARTIST
    seconds = collection.duration_s(place) or 0.0
    names = dict.fromkeys([artist, *filter(None, JOINTS.split(artist))])
    values = {
        "name": collection.title(place),
        "mbid": (collection.column("mb_recording_id")[place] or "").partition("; ")[0],
        "artist": artist.partition("; ")[0],
        "artists": [{"name": name} for name in names],
        "album": collection.column("album")[place],
        "duration": round(seconds, 3),
        "durationMs": round(seconds * 1000),
    }
    return {name: value for name, value in values.items() if value}
