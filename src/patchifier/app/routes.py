"""Every endpoint of the API: its address, and the function that answers."""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from patchifier.app import audio, map, similar, tracks, uploads, why


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
    """

    method: Literal["GET", "POST"]
    path: str
    answer: Callable[..., Any]
    raw: bool = False

    @property
    def asked(self) -> type:
        """Dataclass of what is asked."""
        found: type = typing.get_type_hints(self.answer)["asked"]
        return found


ENDPOINTS = (
    Endpoint("GET", "/api/status", tracks.status),
    Endpoint("POST", "/api/job/cancel", tracks.cancel),
    Endpoint("GET", "/api/tracks", tracks.listed),
    Endpoint("GET", "/api/tracks/{id}", tracks.one),
    Endpoint("GET", "/api/audio/{id}", audio.sound),
    Endpoint("POST", "/api/similar", similar.similar),
    Endpoint("GET", "/api/why", why.why),
    Endpoint("GET", "/api/map", map.state),
    Endpoint("POST", "/api/map", map.start),
    Endpoint("GET", "/api/map/points", map.points),
    Endpoint("GET", "/api/map/ids", map.ids),
    Endpoint("GET", "/api/map/colours", map.colours),
    Endpoint("POST", "/api/upload", uploads.receive, raw=True),
)
