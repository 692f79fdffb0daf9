"""Endpoint: songs as a playlist for players."""

import re
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response

from patchifier.app.parameters import RefusedError
from patchifier.app.state import Served
from patchifier.app.teach_routes import download
from patchifier.config import RequestError
from patchifier.library.playlist import Entry, m3u8_text

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
