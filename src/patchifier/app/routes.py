"""Every endpoint of the API: its address, and the function that answers."""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from patchifier.app import (
    audio,
    duplicates,
    inside_routes,
    map,
    navidrome,
    playlist,
    similar,
    teach_routes,
    tracks,
    uploads,
    why,
)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint.

    Attributes
    ----------
    method : str
    path : str
        With names in braces, which are fields of what is asked.
    answer : callable
        Called with a :class:`patchifier.app.state.Served` and what is asked; gives what becomes
        JSON, or a response. The first line of its docstring says what it does.
    raw : bool
        It is a coroutine that takes the request itself.
    sends : str
        Kind of the answer.
    """

    method: Literal["GET", "POST"]
    path: str
    answer: Callable[..., Any]
    raw: bool = False
    sends: str = "application/json"

    @property
    def params(self) -> type:
        """Dataclass of its parameters."""
        found: type = typing.get_type_hints(self.answer)["params"]
        return found


ENDPOINTS = (
    Endpoint("GET", "/api/status", tracks.status),
    Endpoint("POST", "/api/job/cancel", tracks.cancel),
    Endpoint("GET", "/api/tracks", tracks.listed),
    Endpoint("GET", "/api/tracks/{id}", tracks.one),
    Endpoint("GET", "/api/audio/{id}", audio.sound, sends="audio/*"),
    Endpoint("POST", "/api/similar", similar.similar),
    Endpoint("GET", "/api/why", why.why),
    Endpoint("POST", "/api/why", why.weighted_why),
    Endpoint("POST", "/api/path", similar.path),
    Endpoint("POST", "/api/mix", similar.mix),
    Endpoint("GET", "/api/duplicates", duplicates.listed),
    Endpoint("POST", "/api/duplicates", duplicates.start),
    Endpoint("POST", "/api/playlist", playlist.playlist, sends="application/vnd.apple.mpegurl"),
    Endpoint("POST", "/api/upload", uploads.receive, raw=True),
    Endpoint("GET", "/api/map", map.state),
    Endpoint("POST", "/api/map", map.start),
    Endpoint("GET", "/api/map/points", map.points, sends="application/octet-stream"),
    Endpoint("GET", "/api/map/ids", map.ids),
    Endpoint("GET", "/api/map/colours", map.colours),
    Endpoint("GET", "/api/inside/{id}", inside_routes.window),
    Endpoint("POST", "/api/inside/{id}/reconstruct", inside_routes.reconstruct),
    Endpoint("GET", "/api/inside/{id}/sound", inside_routes.hear, sends="audio/wav"),
    Endpoint("GET", "/api/inside/{id}/structure", inside_routes.structure),
    Endpoint("GET", "/api/inside/{id}/music", inside_routes.music),
    Endpoint("POST", "/api/navidrome/similar", navidrome.similar),
    Endpoint("POST", "/api/navidrome/path", navidrome.path),
    Endpoint("POST", "/api/navidrome/songs", navidrome.songs),
    Endpoint("GET", "/api/heads", teach_routes.listed),
    Endpoint("POST", "/api/predict", teach_routes.predict),
    Endpoint("POST", "/api/teach", teach_routes.taught),
    Endpoint("POST", "/api/teach/apply", teach_routes.applied),
    Endpoint("POST", "/api/teach/save", teach_routes.saved, sends="application/octet-stream"),
)
