"""Endpoints: what is served, the list of tracks, one track, songs as a playlist."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starlette.responses import Response

from patchifier.app.parameters import NoParams, RefusedError, SongParams, require_range
from patchifier.app.state import Served
from patchifier.app.teach_routes import download
from patchifier.config import RequestError
from patchifier.library.playlist import Entry, m3u8_text

MOST_SKIPPED = 1000  # named in an answer
TITLES = {
    "similarity": ("how similar it sounds (learnt)", "sound"),
    "layers": ("timbre and texture (learnt)", "timbre"),
    "harmony": ("chords and notes together", "harmony"),
    "mode": ("major, minor and other modes", "harmony"),
    "tonic": ("home note", "harmony"),
    "degrees": ("steps of the scale", "harmony"),
    "pulse": ("regularity of the beat", "rhythm"),
    "rhythm": ("rhythmic pattern", "rhythm"),
    "tempo": ("speed", "rhythm"),
    "metre": ("grouping of beats", "rhythm"),
    "texture": ("loudness and brightness", "timbre"),
}


@dataclass(frozen=True)
class TracksParams:
    """Which tracks, in which order."""

    search: str = ""
    sort: Literal["title", "artist", "album", "year", "path", "duration"] = "title"
    order: Literal["asc", "desc"] = "asc"
    offset: int = 0
    limit: int = 100


def status(served: Served, params: NoParams) -> dict[str, Any]:
    """Name, model, size of the library, files that were skipped, and the job that makes it."""
    collection, embedder = served.collection, served.embedder
    return {
        "name": collection.name,
        "model": served.model,
        "identity": collection.table.identity if len(collection) else "",
        "n_tracks": len(collection),
        "n_skipped": len(served.skipped),
        "skipped": [list(one) for one in served.skipped[:MOST_SKIPPED]],
        "slices": [
            {
                "name": name,
                "title": TITLES.get(name, (name, ""))[0],
                "group": TITLES.get(name, ("", "other"))[1],
            }
            for name in slices(served)
        ],
        "can_reconstruct": True,
        "can_embed": embedder is not None,
        "job": served.job.report() if served.job else None,
        "message": served.message or None,
    }


def slices(served: Served) -> dict[str, slice]:
    """Named parts of a vector; one part where the model is not known."""
    if served.embedder:
        return served.embedder.slices
    collection = served.collection
    return {"all": slice(0, collection.table.length)} if len(collection) else {}


def cancel(served: Served, params: NoParams) -> dict[str, Any]:
    """Cancel the embedding of the folder; what is done stays."""
    if served.job:
        served.job.stop(2.0)
    return {"job": served.job.report() if served.job else None}


def listed(served: Served, params: TracksParams) -> dict[str, Any]:
    """Tracks with every searched word, a page at a time."""
    require_range("limit", params.limit, 0, 1000)
    require_range("offset", params.offset, 0, 2**40)
    collection = served.collection
    found = collection.ordered(params.search, params.sort, descending=params.order == "desc")
    page = found[params.offset : params.offset + params.limit]
    return {"total": len(found), "tracks": [collection.track(place) for place in page]}


def one(served: Served, params: SongParams) -> dict[str, Any]:
    """One track."""
    collection = served.collection
    return collection.track(collection.find(params.id))


MOST = 10_000


@dataclass(frozen=True)
class PlaylistParams:
    """Songs in playing order, and the name of the file."""

    ids: list[str]
    name: str = "playlist"

    def __post_init__(self) -> None:
        if not 1 <= len(self.ids) <= MOST:
            raise RequestError(f"ids has {len(self.ids)} songs, expected 1 to {MOST}.")


def playlist(served: Served, params: PlaylistParams) -> Response:
    """The songs as M3U8; paths are relative to the music's folder, where one is known."""
    collection = served.collection
    files = []
    for one in params.ids:
        if one in served.uploads:
            raise RefusedError(422, "an upload cannot stand in a playlist: take it out.")
        place = collection.find(one)
        path, artist = collection.paths[place], collection.column("artist")[place]
        real = collection.place.find(path) or path
        files.append(
            Entry(real, collection.title(place), artist or "", collection.duration_s(place))
        )
    folder: Path | None = collection.place.music
    stem = re.sub(r"[^\w.+-]+", "-", params.name, flags=re.ASCII).strip("-.")[:60] or "playlist"
    return download(
        m3u8_text(files, folder).encode(), f"{stem}.m3u8", "application/vnd.apple.mpegurl"
    )
